"""The two image sets of the utility evidence: who owns which images.

Fundus: semi-synthetic photographs, drawn when first needed. Five hospitals of the tutorial's
size with the demonstration's cameras and mixes of grades, all labels right; test images from
the same cameras; public images of another seed, from cameras that no hospital has.
Fashion-MNIST: the hospitals' and the public images are disjoint parts of its training
images; the test images are its own.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.utility.extraction import Images, Labels, Progress, Source, extract
from matl.demo.fundus import CAMERAS, fundus_jpeg
from matl.demo.fundus.image_set import ImageSet
from matl.demo.hospitals import (
    CAREFUL,
    HOLDOUT,
    PUBLIC,
    TEST,
    TUTORIAL_PATIENTS,
    five_hospitals,
    plan_balanced,
    plan_hospital,
)
from matl.simulation.datasets import DataSet, load_images
from matl_common.vision.images import IMAGENET_MEAN, IMAGENET_STDDEV, View, load_image, render

FUNDUS_SEED: Final = 23
FUNDUS_PUBLIC_SEED: Final = 29
FUNDUS_TEST: Final = 1500
FUNDUS_PUBLIC: Final = 2000
FUNDUS_PX: Final = 224

FASHION_PX: Final = 96
FASHION_PUBLIC: Final = 8_000
_FASHION_SEED: Final = 2026


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the images of one data set come from."""

    public: Source
    test: Source
    hospitals: tuple[Source, ...]
    """One for each hospital in order of size, or one that is dealt out afterwards."""
    public_origins: Labels
    """Number of the camera that took each public image."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """The same as features."""

    public: Images
    test: Images
    hospitals: tuple[Images, ...]
    public_origins: Labels


def extract_all(
    sources: Sources, cache: Path, *, hospitals_share: float, progress: Progress | None = None
) -> Extracted:
    """Features from the cache, or made now; of the hospitals' patients the first share."""
    return Extracted(
        extract(sources.public, cache, progress=progress),
        extract(sources.test, cache, progress=progress),
        tuple(
            extract(source, cache, share=hospitals_share, progress=progress)
            for source in sources.hospitals
        ),
        sources.public_origins,
    )


def fundus_sources() -> Sources:
    """The semi-synthetic photographs."""
    hospitals = five_hospitals(TUTORIAL_PATIENTS, careless=CAREFUL)
    theirs = tuple(hospital.camera for hospital in hospitals)
    others = tuple(camera for camera in CAMERAS.values() if camera not in theirs)
    public = plan_balanced(PUBLIC, FUNDUS_PUBLIC, others, seed=FUNDUS_PUBLIC_SEED)
    test = plan_balanced(TEST, FUNDUS_TEST, theirs, seed=FUNDUS_SEED)
    return Sources(
        _fundus_source(public),
        _fundus_source(test),
        tuple(_fundus_source(plan_hospital(each, seed=FUNDUS_SEED)) for each in hospitals),
        np.array([others.index(image.camera) for image in public.images]),
    )


def fundus_holdout(images: int) -> Source:
    """The coordinator's photographs: other patients, the same cameras, grades in equal parts."""
    theirs = tuple(hospital.camera for hospital in five_hospitals(TUTORIAL_PATIENTS))
    return _fundus_source(plan_balanced(HOLDOUT, images, theirs, seed=FUNDUS_SEED))


def fashion_holdout(images: int) -> Source:
    """Training images that are neither the hospitals' nor public.

    Raises:
        ConfigurationError: it is not installed.
    """
    found = load_images(DataSet.FASHION)
    order = np.random.default_rng(_FASHION_SEED).permutation(len(found.labels))
    own = order[FASHION_PUBLIC + TUTORIAL_PATIENTS :][:images]
    return _fashion_source(HOLDOUT, found.values[own], found.labels[own])


def _fundus_source(images: ImageSet) -> Source:
    def read(numbers: range) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.jpg"
            rendered = []
            for number in numbers:
                image = images.images[number]
                path.write_bytes(fundus_jpeg(image.eye, image.grade, image.camera))
                rendered.append(render(load_image(path, image_size=FUNDUS_PX), View()))
        return torch.stack(rendered)

    labels = [int(image.recorded_grade) for image in images.images]
    return Source(f"fundus-{images.name}", f"{images.spec_digest} {FUNDUS_PX}", labels, read)


def fashion_sources() -> Sources:
    """Fashion-MNIST, enlarged to ``FASHION_PX``; the hospitals in one piece.

    Raises:
        ConfigurationError: it is not installed.
    """
    images = load_images(DataSet.FASHION)
    order = np.random.default_rng(_FASHION_SEED).permutation(len(images.labels))
    public = order[:FASHION_PUBLIC]
    owned = order[FASHION_PUBLIC : FASHION_PUBLIC + TUTORIAL_PATIENTS]
    return Sources(
        _fashion_source(PUBLIC, images.values[public], images.labels[public]),
        _fashion_source(TEST, images.test_values, images.test_labels),
        (_fashion_source("hospitals", images.values[owned], images.labels[owned]),),
        np.zeros(FASHION_PUBLIC, dtype=np.int64),
    )


def _fashion_source(name: str, values: NDArray[np.float32], labels: NDArray[np.int64]) -> Source:
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    stddev = torch.tensor(IMAGENET_STDDEV)[:, None, None]

    def read(numbers: range) -> Tensor:
        small = torch.from_numpy(values[numbers.start : numbers.stop]).view(-1, 1, 28, 28)
        large = functional.interpolate(small, FASHION_PX, mode="bilinear", align_corners=False)
        return (large.expand(-1, 3, -1, -1) - mean) / stddev

    spec = f"fashion-mnist {name} {_FASHION_SEED} {FASHION_PX}"
    return Source(f"fashion-{name}", spec, [int(label) for label in labels], read)
