"""Features of both image sets in one file each, for studies to read.

    python -m benchmarks.results.features [out/evidence]

Images that no start before has put through the backbone take an hour; the parts that are
finished are in out/utility.
"""

import sys
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.utility.extraction import Images, Progress, Source, extract
from benchmarks.utility.sources import (
    Sources,
    extract_all,
    fashion_holdout,
    fashion_sources,
    fundus_holdout,
    fundus_sources,
)
from matl.simulation.datasets import Part, store_features

CACHE: Final = Path("out/utility")
HOLDOUT_IMAGES: Final = 1000
"""That the holdout set of each seed is drawn from."""
NAMES: Final = ("fundus", "fashion")


def features_file(name: str, folder: Path, *, progress: Progress | None = None) -> Path:
    """The file of one image set, made where it is missing.

    Raises:
        ConfigurationError: Fashion-MNIST is not installed.
    """
    path = folder / f"{name}.safetensors"
    if path.exists():
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
    unfinished = path.with_suffix(".part")
    store_features(unfinished, parts, sites=sites, ordered=name == "fundus")
    unfinished.rename(path)
    return path


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
