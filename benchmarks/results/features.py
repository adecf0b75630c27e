"""Features of both image sets in one file each, for studies to read.

    python -m benchmarks.results.features [out/evidence]

Images that no start before has put through the backbone take an hour; the parts that are
finished are in out/utility.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.results.gather import SUSPECT_SITE
from benchmarks.utility.extraction import Images, Progress, Source, extract
from benchmarks.utility.sources import (
    Sources,
    extract_all,
    fashion_holdout,
    fashion_sources,
    fundus_holdout,
    fundus_sources,
)
from matl.simulation.datasets import Images as Loaded
from matl.simulation.datasets import Labels, Part, load_images, store_features

CACHE: Final = Path("out/utility")
HOLDOUT_IMAGES: Final = 1000
"""That the holdout set of each seed is drawn from."""
NAMES: Final = ("fundus", "fashion", "fundus-grade")
GRADE: Final = 4
"""The gravest: in ``fundus-grade`` hospital E has every patient of it, and no other."""


def features_file(name: str, folder: Path, *, progress: Progress | None = None) -> Path:
    """The file of one image set, made where it is missing.

    Raises:
        ConfigurationError: Fashion-MNIST is not installed.
    """
    path = folder / f"{name}.safetensors"
    if path.exists():
        return path
    if name == "fundus-grade":
        features_file("fundus", folder, progress=progress)
        whole = load_images("fundus.safetensors", folder=folder)
        parts, sites = of_one_hospital(whole)
        _store(path, parts, sites=sites, ordered=whole.ordered)
        return path
    sources, holdout = _sources(name)
    found = extract_all(sources, CACHE, hospitals_share=1.0, progress=progress)
    held = extract(holdout, CACHE, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    sites = np.repeat(np.arange(len(found.hospitals)), [len(each) for each in found.hospitals])
    parts = {
        "train": _joined(found.hospitals),
        "test": _joined((found.test,)),
        "public": _joined((found.public,)),
        "holdout": _joined((held,)),
    }
    _store(path, parts, sites=sites, ordered=name == "fundus")
    return path


def of_one_hospital(whole: Loaded, *, grade: int = GRADE) -> tuple[dict[str, Part], Labels]:
    """The same images, with every patient of one grade at hospital E, which has no others.

    Args:
        whole: a set that knows its sites and has every part.
        grade: which one.

    Returns:
        Parts by name, and the sites of the rows for training.
    """
    if whole.sites is None or whole.public is None or whole.holdout is None:
        raise ValueError("a grade is taken from sets with sites, public images and a holdout set")
    sites = np.where(whole.labels == grade, SUSPECT_SITE, whole.sites)
    kept = (whole.labels == grade) | (sites != SUSPECT_SITE)
    parts = {
        "train": Part(whole.values[kept], whole.labels[kept]),
        "test": Part(whole.test_values, whole.test_labels),
        "public": whole.public,
        "holdout": whole.holdout,
    }
    return parts, sites[kept]


def _store(path: Path, parts: Mapping[str, Part], *, sites: Labels, ordered: bool) -> None:
    unfinished = path.with_suffix(".part")
    store_features(unfinished, parts, sites=sites, ordered=ordered)
    unfinished.rename(path)


def _sources(name: str) -> tuple[Sources, Source]:
    if name == "fundus":
        return fundus_sources(), fundus_holdout(HOLDOUT_IMAGES)
    return fashion_sources(), fashion_holdout(HOLDOUT_IMAGES)


def _joined(images: tuple[Images, ...]) -> Part:
    return Part(
        np.concatenate([each.features for each in images]),
        np.concatenate([each.labels for each in images]),
    )


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "out/evidence")
    for each in NAMES:
        print(features_file(each, where, progress=lambda *at: print(*at, end="\r")))
