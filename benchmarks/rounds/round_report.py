"""What ``bench-round`` found, as tables and as JSON. Runs nothing."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.rounds.growth import Growth, line_through
from benchmarks.rounds.idle import Idle
from benchmarks.rounds.peers import PeerRounds
from benchmarks.rounds.study import Cost, Found
from matl.machine import machine
from matl_common.clock import utc_now

PEER_TARGETS: Final = {"flare": 3.0, "flower": 20.0}
MEMORY_TARGET: Final = 0.2
ALONE_TARGET: Final = 0.01
WAITING_TARGET: Final = 0.05
"""Cores."""
_PARTS: Final = ("compared", "million", "resnet", "idle")


@dataclass(slots=True)
class Findings:
    """All that was measured; what was not is empty."""

    path: Path
    """Of the JSON file, whose earlier figures stand where nothing new was measured."""
    compared: tuple[list[Found], dict[str, list[PeerRounds]]] = field(
        default_factory=lambda: ([], {})
    )
    million: list[Growth] = field(default_factory=list)
    resnet: list[Growth] = field(default_factory=list)
    idle: tuple[Idle, Idle] | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """Medians over all turns."""

    seconds: float
    cpu_seconds: float
    server_peak_bytes: float
    clients_peak_bytes: float


def ours_of(runs: Sequence[Found]) -> Round:
    """Of every round that counts, and of every turn's peak."""
    costs = [cost for run in runs for cost in run.costs]
    return Round(
        median(each.seconds for each in costs),
        median(each.whole_cpu_seconds for each in costs),
        median(run.coordinator_peak_bytes for run in runs),
        median(run.hospitals_peak_bytes for run in runs),
    )


def theirs_of(runs: Sequence[PeerRounds]) -> Round:
    """The same of a peer, whose first round counts too."""
    return Round(
        median(seconds for run in runs for seconds in run.seconds),
        median(run.cpu_seconds for run in runs),
        median(run.server_peak_bytes for run in runs),
        median(run.clients_peak_bytes for run in runs),
    )


def document(findings: Findings) -> dict[str, object]:
    """``round.json`` as a value."""
    now = utc_now().isoformat(timespec="seconds")
    command = shlex.join(["python", "-m", "benchmarks.round", *sys.argv[1:]])
    earlier = _earlier(findings.path)
    measured = {part: getattr(findings, part) for part in _PARTS}
    new = {
        part: {"date": now, "command": command}
        for part, found in measured.items()
        if found and (part != "compared" or found[0])
    }
    return {
        "machine": machine(),
        "date": now,
        "command": command,
        "measured": {**earlier.get("measured", {}), **new},
        "settings": {
            "database": "sqlite",
            "rule": "geometric_median",
            **earlier.get("settings", {}),
            **({"hospitals": findings.compared[0][0].hospitals} if findings.compared[0] else {}),
        },
        "measurements": {**earlier.get("measurements", {}), **_measurements(findings)},
        "ratios": {**earlier.get("ratios", {}), **_ratios(findings)},
    }


def _earlier(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _measurements(findings: Findings) -> dict[str, object]:
    said: dict[str, object] = {}
    runs, peers = findings.compared
    if runs:
        costs = [cost for run in runs for cost in run.costs]
        said |= {
            **_round_facts("matl", ours_of(runs)),
            "matl_seconds": [round(each.seconds, 3) for each in costs],
            "matl_first_round_seconds": [round(run.first.seconds, 3) for run in runs],
            "matl_coordinator_cpu_seconds_per_round": round(
                median(each.cpu_seconds["coordinator"] for each in costs), 2
            ),
            "matl_phase_seconds": {
                phase: round(median(each.phase_seconds[phase] for each in costs), 3)
                for phase in costs[0].phase_seconds
            },
        }
    for name, theirs in peers.items():
        if theirs:
            said |= _round_facts(name, theirs_of(theirs))
            said[f"{name}_seconds"] = [seconds for run in theirs for seconds in run.seconds]
    for prefix, series in (("", findings.million), ("resnet50_", findings.resnet)):
        for each in series:
            name = f"{prefix}n{each.n}"
            said[f"seconds_per_round_{name}"] = round(each.found.seconds, 3)
            said[f"cpu_seconds_per_round_{name}"] = round(each.found.cpu_seconds, 2)
            said[f"coordinator_peak_bytes_{name}"] = each.found.coordinator_peak_bytes
        if len(series) > 1:
            line = line_through([(each.n, each.found.seconds) for each in series])
            said[f"{prefix}growth"] = {
                "seconds_fixed": round(line.fixed, 3),
                "seconds_per_hospital": round(line.each, 4),
                "worst_distance_from_line": round(line.worst, 3),
            }
    if findings.idle is not None:
        for idle in findings.idle:
            said[f"idle_cores_n{idle.hospitals}"] = round(idle.cores, 5)
            said[f"idle_bytes_n{idle.hospitals}"] = idle.resident_bytes
            said[f"idle_watched_seconds_n{idle.hospitals}"] = round(idle.seconds, 1)
    return said


def _round_facts(name: str, each: Round) -> dict[str, object]:
    return {
        f"{name}_seconds_per_round": round(each.seconds, 3),
        f"{name}_cpu_seconds_per_round": round(each.cpu_seconds, 2),
        f"{name}_server_peak_bytes": each.server_peak_bytes,
        f"{name}_clients_peak_bytes": each.clients_peak_bytes,
    }


def _ratios(findings: Findings) -> dict[str, float]:
    runs, peers = findings.compared
    if not runs:
        return {}
    ours, said = ours_of(runs), {}
    for name, theirs in peers.items():
        if theirs:
            peer = theirs_of(theirs)
            said[f"round_vs_{name}"] = round(peer.seconds / ours.seconds, 3)
            said[f"cpu_vs_{name}"] = round(peer.cpu_seconds / ours.cpu_seconds, 3)
            memory = ours.server_peak_bytes / peer.server_peak_bytes
            said[f"server_memory_vs_{name}"] = round(memory, 3)
    return said


def show(console: Console, findings: Findings) -> None:
    """Print the tables."""
    runs, peers = findings.compared
    if runs:
        console.print(_comparison(runs, peers))
        console.print(_phases([cost for run in runs for cost in run.costs]))
    for title, series in (
        ("A million parameters", findings.million),
        ("ResNet-50", findings.resnet),
    ):
        if series:
            console.print(_growth(title, series))
    for each in findings.idle or ():
        target = WAITING_TARGET if each.hospitals else ALONE_TARGET
        console.print(
            f"Coordinator with {each.hospitals} hospitals that wait: {each.cores:.2%} of a core "
            f"over {each.seconds:.0f} s (target {target:.0%}), "
            f"{each.resident_bytes / 1e6:,.0f} MB.",
            highlight=False,
        )


def _comparison(runs: Sequence[Found], peers: Mapping[str, Sequence[PeerRounds]]) -> Table:
    table = Table(
        box=box.SIMPLE,
        title="A round of five hospitals, ResNet-50 each way, no training",
        caption=f"Medians. Targets: {PEER_TARGETS['flare']:g} times FLARE, "
        f"{PEER_TARGETS['flower']:g} times Flower; a coordinator's memory at most "
        f"{MEMORY_TARGET:.0%} of FLARE's server.",
    )
    table.add_column("Framework")
    for column in ("Seconds", "CPU s", "Server MB", "Clients MB", "× ours", "× CPU"):
        table.add_column(column, justify="right")
    ours = ours_of(runs)
    rows = {"matl": ours, **{name: theirs_of(each) for name, each in peers.items() if each}}
    for name, each in rows.items():
        table.add_row(
            name,
            f"{each.seconds:.2f}",
            f"{each.cpu_seconds:.1f}",
            f"{each.server_peak_bytes / 1e6:,.0f}",
            f"{each.clients_peak_bytes / 1e6:,.0f}",
            f"{each.seconds / ours.seconds:.1f}",
            f"{each.cpu_seconds / ours.cpu_seconds:.1f}",
        )
    return table


def _phases(costs: Sequence[Cost]) -> Table:
    table = Table(box=box.SIMPLE, title="Where a round of ours goes")
    table.add_column("Phase")
    table.add_column("Seconds", justify="right")
    for phase in costs[0].phase_seconds:
        table.add_row(phase, f"{median(each.phase_seconds[phase] for each in costs):.2f}")
    return table


def _growth(title: str, series: Sequence[Growth]) -> Table:
    caption = ""
    if len(series) > 1:
        line = line_through([(each.n, each.found.seconds) for each in series])
        caption = (
            f"Nearest line: {line.fixed:.2f} s and {1e3 * line.each:.0f} ms a hospital, "
            f"{line.worst:.0%} off at most."
        )
    table = Table(box=box.SIMPLE, title=f"{title}, many hospitals to a process", caption=caption)
    for column in ("Hospitals", "Seconds", "ms each", "CPU s", "Coordinator MB"):
        table.add_column(column, justify="right")
    for each in series:
        table.add_row(
            str(each.n),
            f"{each.found.seconds:.2f}",
            f"{1e3 * each.found.seconds / each.n:.0f}",
            f"{each.found.cpu_seconds:.1f}",
            f"{each.found.coordinator_peak_bytes / 1e6:,.0f}",
        )
    return table
