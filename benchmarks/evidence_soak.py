"""``make evidence-soak``: hundreds of rounds under random faults, and what grows.

Five scripted hospitals and a coordinator, each the real daemon, over mutual TLS on loopback;
the model is small. About every third round something is killed, stopped, cut off or silenced.
After each round the kernel is asked what every process and its folder use. Prints growth per
round, and writes out/evidence/soak.json and a plot beside it. Takes some 4 s a round.
"""

import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import matl_common  # noqa: F401  (before gRPC, which reads its TLS settings once)
from benchmarks.soak.faults import Processes, draw_fault, fault_names, inflict
from benchmarks.soak.plot import draw
from benchmarks.soak.usage import Slope, Usage, Verdict, slope_of, usage_of
from matl.calls import CoordinatorUnavailableError
from matl.machine import machine
from matl.operations import OperationsClient
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.errors import MatlError
from matl_common.ids import NodeId
from tests.store.proxy import proxied_port
from tests.system.federation import (
    COORDINATOR,
    EXTRA_HOSPITALS,
    HOSPITALS,
    Federation,
    found_federation,
    logged_events,
    prepare_material,
)

OUT: Final = Path("out/evidence")
NODES: Final = (*HOSPITALS, *EXTRA_HOSPITALS)
ROUND_PATIENCE_SECONDS: Final = 180.0
MOST_SPARE_ROUNDS: Final = 100
"""What the coordinator's configuration allows."""
KEEP_MODELS: Final = 10
_POLL_SECONDS: Final = 0.05
_ON_DISK: Final = ("spool_mib", "models_mib", "other_files_mib")
# The log, and the ledgers of hospitals.
_BY_DESIGN: Final = "other_files_mib"
# Once in every round, or once for each hospital in it.
_ONCE_A_ROUND: Final = ("round_opened", "collection_closed", "round_scored", "model_released")


@dataclass(slots=True)
class Soak:
    """What was seen."""

    usages: list[Usage] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    """Of each round."""
    faults: list[tuple[int, str, NodeId]] = field(default_factory=list)


class SoakFailedError(MatlError):
    """A round did not end, the log is not what it must be, or something grows for ever."""


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the study.")] = 500,
    seed: Annotated[int, typer.Option(help="Draws the faults.")] = 0,
    fault_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the rounds in which one strikes.")
    ] = 0.33,
    settle_rounds: Annotated[
        int, typer.Option(min=0, help="Rounds at the start of each life that growth leaves out.")
    ] = 20,
) -> None:
    """Run one long study under faults, and say what grows with its rounds."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="matl-soak-") as folder, ExitStack() as running:
        federation = _found(Path(folder), rounds)
        soak = _run(
            federation,
            rounds,
            chance=Random(seed),
            fault_share=fault_share,
            console=console,
            running=running,
        )
        doubled, lost = _check_log(federation, rounds)
    slopes = {
        f"{role}_{quantity}": slope
        for role, usages in _by_role(soak.usages).items()
        for quantity in usages[0].values
        if any(each.values[quantity] for each in usages)
        and (
            slope := slope_of(
                usages,
                quantity,
                settle_rounds=settle_rounds,
                across_lives=quantity in _ON_DISK,
            )
        )
    }
    undisturbed = _undisturbed(soak)
    if slope := slope_of(undisturbed, "round_seconds", settle_rounds=settle_rounds):
        slopes["round_seconds"] = slope
    _show(console, soak, slopes, doubled=doubled, lost=lost)
    _write(soak, slopes, doubled=doubled, lost=lost)
    draw(soak.usages, soak.seconds, [at for at, _, _ in soak.faults], OUT / "soak.png")
    console.print(str(OUT / "soak.png"))
    if doubled or lost:
        raise SoakFailedError(f"{doubled} log entries are double and {lost} are missing")
    if growing := what_grows(slopes):
        raise SoakFailedError(f"{', '.join(growing)} grew from round to round")


def what_grows(slopes: Mapping[str, Slope]) -> Sequence[str]:
    """The names of what grew, and not because it keeps every entry."""
    return [
        name.replace("_", " ")
        for name, slope in slopes.items()
        if slope.verdict is Verdict.GROWS and not name.endswith(_BY_DESIGN)
    ]


def _found(folder: Path, rounds: int) -> Federation:
    material = prepare_material(folder / "material")
    federation = found_federation(
        folder,
        material,
        hospitals=NODES,
        study={
            "rounds": rounds,
            "spare_rounds": min(rounds, MOST_SPARE_ROUNDS),
            "send_after_seconds": 0.05,
        },
    )
    return replace(federation, sections={"limits": {"keep_models": KEEP_MODELS}})


def _run(
    federation: Federation,
    rounds: int,
    *,
    chance: Random,
    fault_share: float,
    console: Console,
    running: ExitStack,
) -> Soak:
    links = {node: running.enter_context(proxied_port(federation.port)) for node in NODES}
    processes = Processes(federation, links)
    running.callback(processes.end)
    for node in (COORDINATOR, *NODES):
        processes.start(node)
    soak = Soak()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        federation.operator() as operator,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        task = progress.add_task("rounds", total=rounds)
        typical = 1.0
        for round_id in range(1, rounds + 1):
            started = time.monotonic()
            if chance.random() < fault_share:
                fault, node = draw_fault(chance, NODES)
                time.sleep(chance.random() * typical)
                inflict(fault, node, processes)
                soak.faults.append((round_id, fault, node))
                progress.update(task, description=f"rounds (last: {fault})")
            _await_release(operator, round_id, processes)
            soak.seconds[round_id] = time.monotonic() - started
            typical = 0.9 * typical + 0.1 * min(soak.seconds[round_id], 5.0)
            soak.usages += _usages(federation, processes, round_id)
            progress.advance(task)
        for node in NODES:
            if status := processes.running[node].wait():
                raise SoakFailedError(f"{node} ended with status {status}")
        if status := processes.running[COORDINATOR].drain():
            raise SoakFailedError(f"the coordinator ended with status {status}")
    return soak


def _await_release(operator: OperationsClient, round_id: int, processes: Processes) -> None:
    deadline = time.monotonic() + ROUND_PATIENCE_SECONDS
    while True:
        try:
            if operator.status().rounds_released >= round_id:
                return
        except CoordinatorUnavailableError:
            pass
        if time.monotonic() > deadline:
            newest = "\n".join(
                f"{node}: …{daemon.output[-1500:]}" for node, daemon in processes.running.items()
            )
            raise SoakFailedError(f"round {round_id} did not end\n{newest}")
        time.sleep(_POLL_SECONDS)


def _usages(federation: Federation, processes: Processes, round_id: int) -> Iterator[Usage]:
    for node, daemon in processes.running.items():
        if values := usage_of(daemon.pid, federation.folder / node):
            yield Usage(node, processes.lives[node], round_id, values)


def _by_role(usages: Sequence[Usage]) -> Mapping[str, list[Usage]]:
    return {
        "coordinator": [each for each in usages if each.node == COORDINATOR],
        "hospital": [each for each in usages if each.node != COORDINATOR],
    }


def _undisturbed(soak: Soak) -> Sequence[Usage]:
    """Rounds in which nothing struck, nor in the one before, by how long they took."""
    struck = {round_id for round_id, _, _ in soak.faults}
    return [
        Usage("all", 0, round_id, {"round_seconds": seconds})
        for round_id, seconds in soak.seconds.items()
        if not struck & {round_id, round_id - 1}
    ]


def _check_log(federation: Federation, rounds: int) -> tuple[int, int]:
    """How many entries the log, whose tree is verified on the way, has twice or not at all."""
    found = Counter(
        (str(entry["event"]), entry.get("round"), entry.get("node"))
        for entry in logged_events(federation)
        if entry["event"] in {*_ONCE_A_ROUND, "update_admitted"}
    )
    wanted = {
        (event, round_id, None) for event in _ONCE_A_ROUND for round_id in range(1, rounds + 1)
    } | {("update_admitted", round_id, node) for node in NODES for round_id in range(1, rounds + 1)}
    doubled = sum(count - 1 for count in found.values())
    return doubled, len(wanted - set(found))


def _show(
    console: Console, soak: Soak, slopes: Mapping[str, Slope], *, doubled: int, lost: int
) -> None:
    table = Table(
        title="Growth in 1,000 rounds, within each life of a process",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for column in ("median", "growth", "± 95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for name, slope in slopes.items():
        by_design = name.endswith(_BY_DESIGN) and slope.verdict is Verdict.GROWS
        table.add_row(
            name.replace("_", " "),
            f"{slope.median:.2f}",
            f"{1000 * slope.per_round:+.2f}",
            f"{1000 * slope.interval:.2f}",
            "keeps every entry" if by_design else slope.verdict,
        )
    console.print(table)
    counts = Counter(fault for _, fault, _ in soak.faults)
    told = ", ".join(f"{count} × {fault}" for fault, count in counts.most_common())
    console.print(f"{len(soak.seconds)} rounds, {len(soak.faults)} faults: {told or 'none'}")
    console.print(f"Log: verified; {doubled} entries double, {lost} missing")


def _write(soak: Soak, slopes: Mapping[str, Slope], *, doubled: int, lost: int) -> None:
    document = {
        "machine": machine(),
        "date": utc_now().date().isoformat(),
        "command": shlex.join(("python", "-m", "benchmarks.evidence_soak", *sys.argv[1:])),
        "measurements": {
            "round_seconds": [round(each, 3) for each in soak.seconds.values()],
            "faults": {
                name: sum(fault == name for _, fault, _ in soak.faults) for name in fault_names()
            },
        },
        "summary": {
            "rounds": len(soak.seconds),
            "faults": len(soak.faults),
            "log_entries_doubled": doubled,
            "log_entries_missing": lost,
            "slopes_per_round": {
                name: {
                    "slope": slope.per_round,
                    "interval_95": slope.interval,
                    "median": slope.median,
                    "samples": slope.rounds,
                    "verdict": slope.verdict,
                }
                for name, slope in slopes.items()
            },
        },
    }
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(OUT / "soak.json", [text.encode() + b"\n"], mode=0o644)


if __name__ == "__main__":
    typer.run(main)
