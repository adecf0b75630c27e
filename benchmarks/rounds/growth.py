"""How rounds grow with the number of hospitals: a fit, and a picture."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.rounds.study import Found

# A hospital's model, update and the worker's result of it, and the coordinator's spooled one.
_FILES_A_HOSPITAL: Final = 4
_SPARE_BYTES: Final = 8 << 30
"""What is left on the disk for everybody else."""


@dataclass(frozen=True, slots=True)
class Growth:
    """A study of ``n`` hospitals."""

    n: int
    update_bytes: int
    found: Found


@dataclass(frozen=True, slots=True)
class Line:
    """Least squares: seconds = ``fixed`` + ``each`` × n."""

    fixed: float
    each: float
    worst: float
    """The largest distance of a measurement from the line, as a part of what the line says."""


def fits(folder: Path, *, n: int, update_bytes: int) -> bool:
    """Whether the disk has room for a study's files."""
    needed = n * update_bytes * _FILES_A_HOSPITAL + _SPARE_BYTES
    return shutil.disk_usage(folder).free > needed


def line_through(points: Sequence[tuple[int, float]]) -> Line:
    """The line that is nearest to the measurements relative to their size; needs two of them."""
    sizes, seconds = (np.array(each, dtype=np.float64) for each in zip(*points, strict=True))
    # Weighted, or the largest would be all that counts.
    slope, fixed = np.polyfit(sizes, seconds, 1, w=1.0 / seconds)
    said = fixed + slope * sizes
    return Line(float(fixed), float(slope), float(np.max(np.abs(seconds - said) / said)))


def draw(million: Sequence[Growth], resnet: Sequence[Growth], path: Path) -> None:
    """Seconds and memory over the number of hospitals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (seconds, memory) = pyplot.subplots(1, 2, figsize=(10.0, 4.0))
    for name, series in (("1 M parameters", million), ("ResNet-50", resnet)):
        if not series:
            continue
        sizes = [each.n for each in series]
        seconds.plot(sizes, [each.found.seconds for each in series], "o-", label=name)
        peaks = [each.found.coordinator_peak_bytes / 1e6 for each in series]
        memory.plot(sizes, peaks, "o-", label=name)
    seconds.set_ylabel("seconds a round")
    memory.set_ylabel("coordinator's peak memory, MB")
    for axes in (seconds, memory):
        axes.set_xlabel("hospitals")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
