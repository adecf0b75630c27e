"""Images to features of a public backbone, kept on disk in parts.

A part is written whole or not at all; an interrupted run goes on with the next part. The
features are those of ``efficientnet_lite0_layers``, whose first 1280 are what
``efficientnet_lite0`` gives: a choice between the two needs no second pass. Nothing here
trains.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matl_common.durable import write_atomically
from matl_common.vision.backbones import EFFICIENTNET_LITE0_SHA256, load_backbone
from matl_common.vision.efficientnet_lite import FEATURE_DIM

Float32Array = NDArray[np.float32]
Labels = NDArray[np.int64]

BACKBONE: Final = "efficientnet_lite0_layers"
PLAIN: Final = slice(0, FEATURE_DIM)
"""What ``efficientnet_lite0`` gives."""
PART_IMAGES: Final = 250
_FORMAT: Final = 2
_BATCH: Final = 50

Progress = Callable[[str, int, int], None]


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Features ``(n, d)`` and labels ``(n,)``, one row a patient."""

    features: Float32Array
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: slice | Labels) -> "Images":
        """Some of them."""
        return Images(self.features[rows], self.labels[rows])


@dataclass(frozen=True, slots=True)
class Source:
    """Images that are made or read when they are needed.

    Attributes:
        name: the folder of its parts.
        spec: everything that the images depend on.
        labels: one for each image.
        read: the images with these numbers, ``(m, 3, h, w)``.
    """

    name: str
    spec: str
    labels: Sequence[int]
    read: Callable[[range], Tensor]


def extract(
    source: Source, cache: Path, *, share: float = 1.0, progress: Progress | None = None
) -> Images:
    """Features of the first ``share`` of a source; missing parts are computed and kept."""
    wanted = round(share * len(source.labels))
    module: nn.Module | None = None
    parts: list[Float32Array] = []
    folder = cache / f"{source.name}-{_digest(source)}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, images in enumerate(_parts(len(source.labels))):
        if images.start >= wanted:
            break
        path = folder / f"{number:04d}.safetensors"
        if not path.exists():
            module = module or load_backbone(BACKBONE).module
            content = safetensors.numpy.save({"features": _features(module, source, images)})
            write_atomically(path, [content])
        parts.append(safetensors.numpy.load_file(path)["features"])
        if progress is not None:
            progress(source.name, images.stop, len(source.labels))
    labels = np.asarray(source.labels[:wanted], dtype=np.int64)
    return Images(np.concatenate(parts)[:wanted], labels)


def _features(module: nn.Module, source: Source, images: range) -> Float32Array:
    rows: list[Float32Array] = []
    with torch.inference_mode():
        for start in range(images.start, images.stop, _BATCH):
            batch = source.read(range(start, min(start + _BATCH, images.stop)))
            found = module(batch.contiguous(memory_format=torch.channels_last))
            rows.append(found.numpy().astype(np.float32))
    return np.concatenate(rows)


def _parts(images: int) -> Iterator[range]:
    for start in range(0, images, PART_IMAGES):
        yield range(start, min(start + PART_IMAGES, images))


def _digest(source: Source) -> str:
    parts = [_FORMAT, BACKBONE, EFFICIENTNET_LITE0_SHA256, source.spec, list(source.labels)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
