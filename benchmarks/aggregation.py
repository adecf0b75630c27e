"""``make bench-aggregation``: what every rule costs on ResNet-50 updates, and what Flower's cost.

Each measurement is a process of its own over files of random numbers; ours, a plain mean of
the same files and Flower's rules take turns. Prints tables and writes
out/bench/aggregation.json.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from benchmarks.aggregation_runs import flower as peer
from benchmarks.aggregation_runs.child import MEAN_PASS, Job
from benchmarks.aggregation_runs.report import (
    PEER_N,
    Arm,
    Cost,
    Findings,
    Series,
    document,
    show,
)
from benchmarks.aggregation_runs.updates import (
    UPDATE_BYTES,
    fits_page_cache,
    fitting,
    make_updates,
    read_through,
    remove_updates,
)
from matl_common.durable import write_atomically
from matl_common.errors import MatlError
from matl_coordinator.core.robust.registry import Choice, make_aggregator

# The first four, and the last, at every n; the others where the peer is compared with.
ARMS: Final = (
    Arm("mean pass", MEAN_PASS, needs_geometry=False),
    Arm("weighted_mean", "weighted_mean", needs_geometry=False),
    Arm("coordinate_median", "coordinate_median", needs_geometry=False),
    Arm("trimmed_mean", "trimmed_mean", needs_geometry=False),
    Arm("multi_krum", "multi_krum"),
    Arm("geometric_median", "geometric_median"),
    Arm("nnm, geometric_median", "geometric_median", ("nnm",)),
    Arm("nnm, trimmed_mean", "trimmed_mean", ("nnm",)),
    Arm("matl", "matl"),
)
PEER_ARMS: Final = (
    Arm("matl, 20 root rows", "matl", root_rows=20),
    Arm("clipped_weighted_mean", "clipped_weighted_mean"),
    Arm("meamed", "meamed", needs_geometry=False),
    Arm("bulyan", "bulyan"),
    Arm("centered_clipping", "centered_clipping"),
    Arm("caf", "caf"),
    Arm("dnc", "dnc"),
    Arm("foolsgold", "foolsgold"),
)
LARGE_N: Final = 100
"""From here on every arm runs once, and those that mix all rows with all others do not."""
# A core type chosen by hand, or the cache size that goes with it, is not what users have.
_UNSET: Final = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class MeasurementFailedError(MatlError):
    """A process that should have measured an aggregation ended without figures."""


def arms_for(n: int, chosen: Sequence[str]) -> list[Arm]:
    """The arms that run at this number of updates."""
    arms = [*ARMS, *(PEER_ARMS if n == PEER_N else ())]
    return [
        arm
        for arm in arms
        if (not chosen or arm.rule in chosen or arm.rule == MEAN_PASS)
        and not (arm.pre and n >= LARGE_N)
        and (arm.rule == MEAN_PASS or n >= _aggregator_least_n(arm, n))
    ]


def byzantine(n: int) -> int:
    """f: a tenth, as in the peer's program at n = 20."""
    return max(1, n // 10)


def _aggregator_least_n(arm: Arm, n: int) -> int:
    pre = [Choice(each) for each in arm.pre]
    return make_aggregator(Choice(arm.rule), pre, f=byzantine(n)).least_n


def run_once(arm: Arm, n: int, folder: Path, *, threads: int) -> Cost:
    """One measurement in a process of its own.

    Raises:
        MeasurementFailedError: it ended without figures.
    """
    job = Job(str(folder), arm.rule, arm.pre, n, byzantine(n), arm.root_rows, threads)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.aggregation_runs.child", json.dumps(asdict(job))],
        env={key: value for key, value in os.environ.items() if key not in _UNSET},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MeasurementFailedError(f"{arm.name} at n = {n} failed: {done.stderr[-500:]}")
    return Cost(**json.loads(done.stdout))


def measure(
    console: Console,
    folder: Path,
    *,
    sizes: Sequence[int],
    rules: Sequence[str],
    repeats: int,
    threads: int,
    flower: tuple[Path, Path] | None,
) -> Findings:
    """Run everything; ``flower`` is its interpreter and its program.

    Raises:
        MatlError: a measurement failed.
    """
    findings = Findings([], {}, [], threads)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        for wanted in sorted(sizes):
            extra = max((arm.root_rows for arm in arms_for(wanted, rules)), default=0)
            # One more than the updates stands for the last aggregate.
            files = fitting(folder, wanted + max(1, extra))
            if files < wanted + max(1, extra):
                findings.notes.append(
                    f"n = {wanted} was not measured: the disk has no room for its files."
                )
                continue
            bar = progress.add_task(f"n = {wanted}: files", total=files)
            make_updates(folder, files, on_update=partial(progress.advance, bar))
            cached = fits_page_cache(files)
            if cached:
                read_through(folder, files)
            else:
                findings.notes.append(
                    f"n = {wanted}: {wanted * UPDATE_BYTES / 1e9:.0f} GB of distinct files do not "
                    "fit the page cache; their seconds are the disk's too."
                )
            series = [Series(arm, wanted, cached) for arm in arms_for(wanted, rules)]
            turns = repeats if wanted < LARGE_N else 1
            peers = peer.RULES if flower and wanted == PEER_N else ()
            bar = progress.add_task(f"n = {wanted}: runs", total=turns * (len(series) + len(peers)))
            findings.series += series
            for _ in range(turns):
                _turn(progress, bar, series, folder, threads)
                for rule in peers:
                    assert flower is not None
                    found = peer.run(*flower, rule, PEER_N)
                    findings.flower.setdefault(rule, []).append(found)
                    progress.advance(bar)
    return findings


def _turn(
    progress: Progress, bar: TaskID, series: Sequence[Series], folder: Path, threads: int
) -> None:
    for each in series:
        each.costs.append(run_once(each.arm, each.n, folder, threads=threads))
        progress.advance(bar)


def prepare_flower(console: Console, tool: Path, environment: Path) -> tuple[Path, Path] | None:
    """Its interpreter and program, or None where the program is absent."""
    if not tool.is_file():
        console.print(
            f"{tool} is not there, so nothing is compared with Flower: its ratios are not "
            "measured. Name the program with --flower.",
            soft_wrap=True,
        )
        return None
    with console.status("An environment for Flower …"):
        return peer.install(environment), tool


@app.command()
def command(
    *,
    n: Annotated[str, typer.Option(help="Numbers of updates.")] = "5,20,50,200",
    rules: Annotated[str, typer.Option(help="Only these rules, by name.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    flower: Annotated[Path, typer.Option(help="Program that runs Flower's rules.")] = peer.TOOL,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the updates on disk.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("out/bench"),
) -> None:
    """Measure aggregation rules on files of the size of ResNet-50."""
    console = Console()
    folder = out.resolve() / "aggregation_updates"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        findings = measure(
            console,
            folder,
            sizes=[int(each) for each in n.split(",")],
            rules=[each for each in rules.split(",") if each],
            repeats=repeats,
            threads=threads,
            flower=prepare_flower(console, flower, out.resolve().parent / "venv-flower"),
        )
    except MatlError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    finally:
        if not keep:
            remove_updates(folder)
    show(console, findings)
    text = json.dumps(document(findings), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "aggregation.json", [text.encode() + b"\n"], mode=0o644)
    console.print(f"Figures: {out / 'aggregation.json'}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.aggregation")
