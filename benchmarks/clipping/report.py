"""What the measured processes come to: medians and ratios, as a table and as JSON.

Computes from what was measured; runs nothing.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.clipping.arms import Arm, Figures
from matl.machine import machine
from matl_common.clock import utc_now

_MEGA: Final = 1e6
TIME_TARGET: Final = 1.5
MEMORY_TARGET: Final = 1.3


@dataclass(frozen=True, slots=True)
class Medians:
    """One arm at one size: medians over its processes."""

    seconds_per_image: float
    cpu_seconds_per_image: float
    peak_bytes: float


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that was measured; ``figures`` by image size and arm, one each repeat."""

    settings: Mapping[str, object]
    figures: Mapping[tuple[int, Arm], Sequence[Figures]]
    release_seconds: float
    busy_cores: float
    """Of the whole machine, on average: more than the cores used means disturbance."""


def medians_of(figures: Sequence[Figures]) -> Medians:
    """The middle of the repeats."""
    return Medians(
        median(each.seconds_per_image for each in figures),
        median(each.cpu_seconds_per_image for each in figures),
        median(each.peak_bytes_above_idle for each in figures),
    )


def ratios_of(medians: Mapping[tuple[int, Arm], Medians]) -> dict[str, float]:
    """What is compared with a target, by name."""
    ratios: dict[str, float] = {}
    for size in sorted({size for size, _ in medians}):
        plain, mixed = medians[size, Arm.NON_PRIVATE], medians[size, Arm.MIXED]
        hooks, ghost = medians[size, Arm.HOOKS], medians[size, Arm.GHOST]
        ratios |= {
            f"mixed_vs_nonprivate_time_{size}": mixed.seconds_per_image / plain.seconds_per_image,
            f"mixed_vs_nonprivate_cpu_{size}": (
                mixed.cpu_seconds_per_image / plain.cpu_seconds_per_image
            ),
            f"mixed_vs_nonprivate_memory_{size}": mixed.peak_bytes / plain.peak_bytes,
            f"hooks_vs_mixed_time_{size}": hooks.seconds_per_image / mixed.seconds_per_image,
            f"ghost_vs_mixed_time_{size}": ghost.seconds_per_image / mixed.seconds_per_image,
            f"hooks_vs_mixed_memory_{size}": hooks.peak_bytes / mixed.peak_bytes,
            f"ghost_vs_mixed_memory_{size}": ghost.peak_bytes / mixed.peak_bytes,
        }
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def document(run: Run) -> dict[str, object]:
    """``dp.json`` as a value."""
    medians = {key: medians_of(figures) for key, figures in run.figures.items()}
    return {
        "images": "random, and weights untrained: the figures are about time and memory",
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.dp", *sys.argv[1:]]),
        "settings": dict(run.settings),
        "measurements": {
            **{
                f"{arm.value}_{size}": {
                    "seconds_per_image": [round(f.seconds_per_image, 5) for f in figures],
                    "cpu_seconds_per_image": [round(f.cpu_seconds_per_image, 5) for f in figures],
                    "peak_bytes_above_idle": [f.peak_bytes_above_idle for f in figures],
                    "gradient_norm": figures[0].gradient_norm,
                }
                for (size, arm), figures in run.figures.items()
            },
            "release_seconds": round(run.release_seconds, 2),
            "machine_busy_cores": round(run.busy_cores, 2),
        },
        "ratios": ratios_of(medians),
    }


def show(console: Console, run: Run) -> None:
    """Print the table."""
    table = Table(
        box=box.SIMPLE,
        title="A step of the full recipe, per image",
        caption="Medians. Memory: the peak above a process with its libraries loaded. "
        f"Targets of mixed: {TIME_TARGET}x the time, {MEMORY_TARGET}x the memory.",
    )
    for column in ("Pixels", "Clipping"):
        table.add_column(column)
    for column in ("ms", "CPU ms", "Peak MB", "x time", "x CPU", "x memory"):
        table.add_column(column, justify="right")
    for (size, arm), figures in sorted(run.figures.items(), key=lambda item: item[0][0]):
        found = medians_of(figures)
        plain = medians_of(run.figures[size, Arm.NON_PRIVATE])
        table.add_row(
            str(size),
            "none" if arm is Arm.NON_PRIVATE else arm.value,
            f"{1e3 * found.seconds_per_image:.1f}",
            f"{1e3 * found.cpu_seconds_per_image:.1f}",
            f"{found.peak_bytes / _MEGA:,.0f}",
            f"{found.seconds_per_image / plain.seconds_per_image:.2f}",
            f"{found.cpu_seconds_per_image / plain.cpu_seconds_per_image:.2f}",
            f"{found.peak_bytes / plain.peak_bytes:.2f}",
        )
    console.print(table)
    console.print(
        f"Noise of one release, once a step whatever its batch: {run.release_seconds:.1f} s. "
        f"Busy cores of the machine: {run.busy_cores:.1f}.",
        highlight=False,
    )
