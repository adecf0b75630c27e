"""What one observed round comes to: phases, costs, hospitals; as tables and as JSON.

Computes from what was observed; runs nothing.
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

from benchmarks.rounds.observer import BenchmarkFailedError, Cost, Observer, Phase, Sample
from matl.demo.hospitals import HospitalSpec
from matl.demo.study import COORDINATOR, IMAGES_NOTE, display_name
from matl.operations import Round
from matl_common.clock import utc_now
from matl_common.ids import NodeId

_MEGA: Final = 1e6


@dataclass(frozen=True, slots=True)
class Traffic:
    """The coordinator's own counters."""

    received_bytes: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that was observed."""

    settings: Mapping[str, object]
    update_bytes: int
    observer: Observer
    hospitals: tuple[HospitalSpec, ...]
    idle: Phase
    after: Phase
    traffic: Traffic
    round: Round


def phases_of(run: Run) -> tuple[Phase, ...]:
    """The run, cut up by what the daemons logged."""
    seen = run.observer
    nodes = [spec.node_id for spec in run.hospitals]

    def every(name: str) -> list[float]:
        return [_known(seen.first(name, node), name) for node in nodes]

    def phase(name: str) -> float:
        return _known(seen.first("round_phase", phase=name), name)

    offered, pulled = every("participant.round_offered"), every("participant.model_pulled")
    training, sealed = every("participant.training"), every("participant.update_sealed")
    admitted = every("participant.update_admitted")
    starting = _known(seen.first("coordinator_starting"), "coordinator_starting")
    return (
        Phase("founding the study", starting, run.idle.start),
        run.idle,
        Phase("hospitals start", run.idle.end, phase("collecting")),
        Phase("collecting", phase("collecting"), phase("scoring")),
        Phase("  models pulled", min(offered), max(pulled)),
        Phase("  training", min(training), max(sealed)),
        Phase("  uploads", min(sealed), max(admitted)),
        Phase("scoring", phase("scoring"), phase("aggregating")),
        Phase("aggregating", phase("aggregating"), phase("evaluating")),
        Phase("evaluating", phase("evaluating"), phase("released")),
        run.after,
    )


@dataclass(frozen=True, slots=True)
class HospitalTimes:
    """One hospital's round."""

    node: NodeId
    pull_seconds: float
    training_seconds: float
    upload_seconds: float
    """From the sealed update to the receipt: declared, sent, judged, logged."""
    worker_peak_bytes: int


def hospital_times(run: Run) -> tuple[HospitalTimes, ...]:
    """Every hospital's round, by its own log."""
    return tuple(_times_of(spec.node_id, run.observer) for spec in run.hospitals)


def _times_of(node: NodeId, seen: Observer) -> HospitalTimes:
    def at(name: str) -> float:
        return _known(seen.first(f"participant.{name}", node), name)

    return HospitalTimes(
        node,
        at("model_pulled") - at("round_offered"),
        at("update_sealed") - at("training"),
        at("update_admitted") - at("update_sealed"),
        seen.worker_peaks.get(node, 0),
    )


def _known(at: float | None, what: str) -> float:
    if at is None:
        raise BenchmarkFailedError(f"no log says {what}")
    return at


def document(run: Run, costs: Sequence[Cost], times: Sequence[HospitalTimes]) -> dict[str, object]:
    """``full_round.json`` as a value."""
    # Loads torch and matplotlib, which must not weigh on the machine before.
    from matl.machine import machine

    idle, peak = _idle_bytes(run), max(each.peak_bytes for each in costs)
    by_name = {cost.phase.name.strip().replace(" ", "_").replace(",", ""): cost for cost in costs}
    return {
        "images": f"{IMAGES_NOTE}: the figures say nothing about patients",
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.full_round", *sys.argv[1:]]),
        "settings": dict(run.settings),
        "measurements": {
            "update_bytes": run.update_bytes,
            "received_bytes": run.traffic.received_bytes,
            "sent_bytes": run.traffic.sent_bytes,
            "coordinator_idle_bytes": idle,
            "coordinator_peak_bytes": peak,
            "coordinator_after_bytes": _resident_at_end(run.after, run.observer.samples),
            "scoring_worker_peak_bytes": run.observer.worker_peaks.get(COORDINATOR, 0),
            "phase_seconds": {name: round(c.phase.seconds, 3) for name, c in by_name.items()},
            "phase_coordinator_cpu_seconds": {
                name: round(cost.cpu_seconds, 2) for name, cost in by_name.items()
            },
            "phase_worker_cpu_seconds": {
                name: round(cost.worker_cpu_seconds, 2) for name, cost in by_name.items()
            },
            "phase_machine_busy_cores": {n: round(c.busy_cores, 2) for n, c in by_name.items()},
            "phase_coordinator_peak_bytes": {n: cost.peak_bytes for n, cost in by_name.items()},
            "pull_seconds": {each.node: round(each.pull_seconds, 3) for each in times},
            "training_seconds": {each.node: round(each.training_seconds, 3) for each in times},
            "upload_seconds": {each.node: round(each.upload_seconds, 3) for each in times},
            "training_worker_peak_bytes": {each.node: each.worker_peak_bytes for each in times},
        },
        "summary": {
            "coordinator_idle_megabytes": round(idle / _MEGA, 1),
            "coordinator_peak_megabytes": round(peak / _MEGA, 1),
            "peak_models_above_idle": round((peak - idle) / run.update_bytes, 3),
            "round_seconds": round(_round_seconds(costs), 1),
            "upload_seconds_median": round(median(each.upload_seconds for each in times), 2),
            "updates_admitted": len(times),
            "released_model": run.round.released_model,
        },
    }


def _idle_bytes(run: Run) -> int:
    return _resident_at_end(run.idle, run.observer.samples)


def _resident_at_end(phase: Phase, samples: Sequence[Sample]) -> int:
    return [each for each in samples if each.at <= phase.end][-1].resident_bytes


def _round_seconds(costs: Sequence[Cost]) -> float:
    named = {cost.phase.name: cost.phase for cost in costs}
    return named["evaluating"].end - named["collecting"].start


def show(console: Console, run: Run, costs: Sequence[Cost], times: Sequence[HospitalTimes]) -> None:
    """Print the tables."""
    idle, peak = _idle_bytes(run), max(each.peak_bytes for each in costs)
    console.print(_phase_table(costs, idle_bytes=idle, update_bytes=run.update_bytes))
    console.print(_hospital_table(times, update_bytes=run.update_bytes))
    scorer = run.observer.worker_peaks.get(COORDINATOR, 0)
    console.print(
        f"Coordinator: {idle / _MEGA:.1f} MB at rest, {peak / _MEGA:.1f} MB at most, "
        f"{(peak - idle) / run.update_bytes:.2f} models above rest; "
        f"its scoring worker {scorer / _MEGA:,.0f} MB at most.\n"
        f"Round: {_round_seconds(costs):.1f} s; received "
        f"{run.traffic.received_bytes / _MEGA:.1f} MB of updates, sent "
        f"{run.traffic.sent_bytes / _MEGA:.1f} MB of models.\n"
        f"All {len(times)} updates of {run.update_bytes:,} bytes admitted; released model "
        f"{run.round.released_model[:16]}… is the SHA-256 of its file.",
        highlight=False,
    )


def _phase_table(costs: Sequence[Cost], *, idle_bytes: int, update_bytes: int) -> Table:
    table = Table(
        box=box.SIMPLE,
        title="The coordinator, phase by phase",
        caption="CPU s, worker s: CPU seconds of the coordinator and of its worker. Busy: cores of "
        "the whole machine. +models: above rest, in updates. Indented: overlapping parts of "
        "collecting.",
    )
    table.add_column("Phase", no_wrap=True)
    for column in ("Seconds", "CPU s", "Worker s", "Busy", "Peak MB", "+models"):
        table.add_column(column, justify="right")
    for cost in costs:
        above = cost.peak_bytes - idle_bytes
        table.add_row(
            cost.phase.name,
            f"{cost.phase.seconds:.2f}",
            f"{cost.cpu_seconds:.2f}",
            f"{cost.worker_cpu_seconds:.1f}",
            f"{cost.busy_cores:.1f}",
            f"{cost.peak_bytes / _MEGA:.1f}",
            f"{above / update_bytes:+.2f}",
        )
    return table


def _hospital_table(times: Sequence[HospitalTimes], *, update_bytes: int) -> Table:
    table = Table(
        box=box.SIMPLE,
        title="The hospitals",
        caption="Upload: from the sealed update to the signed receipt, while "
        "others train on the same cores.",
    )
    table.add_column("Hospital")
    for column in ("Pull s", "Training s", "Upload s", "Upload MB/s", "Worker peak MB"):
        table.add_column(column, justify="right")
    for each in times:
        table.add_row(
            display_name(each.node),
            f"{each.pull_seconds:.2f}",
            f"{each.training_seconds:.1f}",
            f"{each.upload_seconds:.2f}",
            f"{update_bytes / _MEGA / each.upload_seconds:.0f}",
            f"{each.worker_peak_bytes / _MEGA:,.0f}",
        )
    return table
