"""What the measurements come to: medians, ratios, tables, JSON. Runs nothing."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.aggregation_runs.updates import UPDATE_BYTES
from matl_common.clock import utc_now

PEER_N: Final = 20
"""The number of updates that is compared with the peer."""
TARGETS: Final[Mapping[str, tuple[str, float]]] = {
    "median_vs_flower": ("at least", 20.0),
    "trimmed_mean_vs_flower": ("at least", 20.0),
    "multikrum_vs_flower": ("at least", 30.0),
    "matl_vs_flower_multikrum": ("at least", 30.0),
    "mean_vs_flower": ("at least", 8.0),
    **{
        f"peak_models_above_idle_n{n}": ("at most", (2 * UPDATE_BYTES + (64 << 20)) / UPDATE_BYTES)
        for n in (5, 20, 50, 200)
    },
}
_MEGA, _GIGA = 1e6, 1e9


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process measured of itself."""

    seconds: float
    first_pass_seconds: float
    cpu_seconds: float
    idle_bytes: int
    peak_bytes: int
    read_from_disk_bytes: int
    load: float
    """Of the machine over the minute before."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to aggregate."""

    name: str
    rule: str
    pre: tuple[str, ...] = ()
    root_rows: int = 0
    needs_geometry: bool = True
    """Whether its plan follows from the Gram matrix, so that the first pass is part of it."""


@dataclass(slots=True)
class Series:
    """One arm at one number of updates, measured several times."""

    arm: Arm
    n: int
    cached: bool
    """Whether the page cache has room for the files."""
    costs: list[Cost] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of the passes that the arm needs."""
        return self._median(lambda cost: cost.seconds - self._left_out(cost))

    @property
    def first_pass_seconds(self) -> float:
        return self._median(lambda cost: cost.first_pass_seconds)

    @property
    def second_pass_seconds(self) -> float:
        return self._median(lambda cost: cost.seconds - cost.first_pass_seconds)

    @property
    def cpu_seconds(self) -> float:
        """Of both passes."""
        return self._median(lambda cost: cost.cpu_seconds)

    @property
    def above_idle_bytes(self) -> int:
        """The most of all its runs."""
        return max(cost.peak_bytes - cost.idle_bytes for cost in self.costs)

    @property
    def gigabytes_per_second(self) -> float:
        return self.n * UPDATE_BYTES / self.seconds / _GIGA

    def _left_out(self, cost: Cost) -> float:
        return 0.0 if self.arm.needs_geometry else cost.first_pass_seconds

    def _median(self, value: Callable[[Cost], float]) -> float:
        return median(map(value, self.costs))


@dataclass(slots=True)
class Findings:
    """Everything that was measured."""

    series: list[Series]
    flower: dict[str, list[dict[str, float | str]]]
    """What Flower's program printed, by its rule; empty without it."""
    notes: list[str]
    threads: int


def ratios(findings: Findings) -> dict[str, float]:
    """What is compared with a target; a ratio whose parts were not measured is left out.

    Speed: Flower's seconds over ours. Of rules that need no geometry only the second pass
    counts, which is what Flower's does too; of the others both.
    """
    ours = {each.arm.name: each for each in findings.series if each.n == PEER_N}
    result: dict[str, float] = {}

    def compare(key: str, arm: str, peer: str, *, both_passes: bool = False) -> None:
        if arm in ours and findings.flower.get(peer):
            theirs = median(float(run["seconds"]) for run in findings.flower[peer])
            one = ours[arm]
            mine = one.first_pass_seconds + one.second_pass_seconds if both_passes else one.seconds
            result[key] = round(theirs / mine, 2)

    compare("median_vs_flower", "coordinate_median", "median")
    compare("trimmed_mean_vs_flower", "trimmed_mean", "median")
    compare("multikrum_vs_flower", "multi_krum", "multikrum")
    compare("matl_vs_flower_multikrum", "matl", "multikrum")
    compare("mean_vs_flower", "weighted_mean", "fedavg")
    compare("median_both_passes_vs_flower", "coordinate_median", "median", both_passes=True)
    compare("mean_both_passes_vs_flower", "weighted_mean", "fedavg", both_passes=True)
    if "coordinate_median" in ours and "mean pass" in ours:
        mean_pass = ours["mean pass"].seconds
        result["median_vs_mean_pass"] = round(ours["coordinate_median"].seconds / mean_pass, 2)
    for n in sorted({each.n for each in findings.series}):
        highest = max(each.above_idle_bytes for each in findings.series if each.n == n)
        result[f"peak_models_above_idle_n{n}"] = round(highest / UPDATE_BYTES, 3)
    return result


def document(findings: Findings) -> dict[str, object]:
    """``aggregation.json`` as a value."""
    # Loads torch and matplotlib, which must not weigh on the machine before.
    from matl.machine import machine

    return {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.aggregation", *sys.argv[1:]]),
        "threads": findings.threads,
        "update_bytes": UPDATE_BYTES,
        "notes": findings.notes,
        "measurements": {
            "ours": [
                {
                    "arm": asdict(each.arm),
                    "n": each.n,
                    "files_fit_page_cache": each.cached,
                    "seconds_median": round(each.seconds, 4),
                    "gigabytes_per_second": round(each.gigabytes_per_second, 3),
                    "above_idle_bytes": each.above_idle_bytes,
                    "runs": [asdict(cost) for cost in each.costs],
                }
                for each in findings.series
            ],
            "flower": findings.flower,
        },
        "ratios": ratios(findings),
    }


def show(console: Console, findings: Findings) -> None:
    """Print the tables."""
    console.print(_arms(findings.series))
    if findings.flower:
        console.print(_peers(findings.flower))
    console.print(_ratios(ratios(findings)))
    for note in findings.notes:
        console.print(note, soft_wrap=True, highlight=False)


def _arms(series: Sequence[Series]) -> Table:
    table = Table(
        box=box.SIMPLE,
        title="Aggregation of ResNet-50 updates, 102 MB each",
        caption="Medians. Pass 1 measures geometry; where a rule needs none, its seconds are "
        "pass 2's. CPU: seconds, both passes. +MB: peak above the idle process, the highest run. "
        "Load: of the machine before. *: the files do not fit the page cache.",
    )
    table.add_column("Rule", no_wrap=True)
    for column in ("n", "Sec", "GB/s", "Pass 1", "Pass 2", "CPU", "+MB", "Load"):
        table.add_column(column, justify="right")
    for each in series:
        table.add_row(
            each.arm.name,
            f"{each.n}{'' if each.cached else '*'}",
            f"{each.seconds:.2f}",
            f"{each.gigabytes_per_second:.1f}",
            f"{each.first_pass_seconds:.2f}",
            f"{each.second_pass_seconds:.2f}",
            f"{each.cpu_seconds:.2f}",
            f"{each.above_idle_bytes / _MEGA:.0f}",
            f"{max(cost.load for cost in each.costs):.1f}",
        )
    return table


def _peers(flower: Mapping[str, Sequence[Mapping[str, float | str]]]) -> Table:
    table = Table(box=box.SIMPLE, title=f"Flower, {PEER_N} updates in its own memory")
    table.add_column("Rule")
    for column in ("Seconds", "Peak MB"):
        table.add_column(column, justify="right")
    for rule, runs in flower.items():
        seconds = median(float(run["seconds"]) for run in runs)
        peak = max(float(run["peak_mb"]) for run in runs)
        table.add_row(rule, f"{seconds:.2f}", f"{peak:,.0f}")
    return table


def _ratios(measured: Mapping[str, float]) -> Table:
    table = Table(box=box.SIMPLE, title="Ratios")
    table.add_column("Ratio")
    table.add_column("Measured", justify="right")
    table.add_column("Target")
    for key in [*measured, *(key for key in TARGETS if key not in measured)]:
        word, bound = TARGETS.get(key, ("", 0.0))
        value = measured.get(key)
        met = value is not None and (value >= bound if word == "at least" else value <= bound)
        colour = "green" if met else "red"
        table.add_row(
            key,
            "not measured" if value is None else f"{value:g}",
            f"[{colour}]{word} {bound:.3g}[/{colour}]" if word else "",
        )
    return table
