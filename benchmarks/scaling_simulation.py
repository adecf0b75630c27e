"""``make bench-scaling_simulation``: a thousand hospitals on one machine, against Flower's engine.

The same studies in turn: our local engine (one core), ours on Ray, and Flower's simulation engine,
which is on Ray too, with the same hospitals' images, model, local steps and rounds. Then with
fewer hospitals, for what grows with their number. Prints tables and writes
out/bench/scaling_simulation.json.
"""

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.thousand.dealt import accuracy_of, deal
from benchmarks.thousand.sized import sized
from benchmarks.thousand.tree import run_counted
from matl.machine import machine
from matl_common.clock import utc_now
from matl_common.durable import write_atomically

STUDIES: Final = {"network": "thousand.toml", "head": "thousand-head.toml"}
FOLDER: Final = Path("benchmarks/thousand")
FLOWER: Final = Path(os.environ.get("MATL_FLOWER_PYTHON", "out/venv-flower/bin/python"))
PEER: Final = "Flower"
_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Way:
    """Who runs the study: an engine, and what it does with the updates."""

    arm: str
    engine: str

    @property
    def name(self) -> str:
        """For people."""
        judged = {"matl": "judged by MATL", "mean": "FedAvg"}[self.arm]
        return f"{self.engine}, {judged}"


WAYS: Final = (
    Way("mean", "local"),
    Way("mean", "ray"),
    Way("matl", "local"),
    Way("matl", "ray"),
    Way("mean", PEER),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One way through one study, in a process of its own."""

    recipe: str
    hospitals: int
    arm: str
    engine: str
    wall_seconds: float
    """From the start of its process, what it imports and starts included."""
    cpu_seconds: float
    """Of all its processes together: what a busy machine changes least."""
    round_seconds: tuple[float, ...]
    """Each but the first, in which workers warm up, and ours but the last, which ends in scores."""
    trained_seconds: tuple[float, ...]
    """Of all hospitals together inside training itself; empty where nobody counts."""
    accuracy: float

    @property
    def way(self) -> Way:
        return Way(self.arm, self.engine)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs have in common."""

    flower: Path
    prefix: tuple[str, ...]
    workers: int
    rounds: int

    def run(self, recipe: str, hospitals: int, way: Way) -> Run:
        """One run.

        Raises:
            RunFailedError: it failed.
        """
        path = FOLDER / STUDIES[recipe]
        with tempfile.TemporaryDirectory(prefix="matl-simulation-") as name:
            if way.engine == PEER:
                job = sized(path, hospitals=hospitals, rounds=self.rounds)
                deal(job, Path(name))
                told = self._told(self.flower, "benchmarks.thousand.flower", name, self.workers)
                told["accuracy"] = accuracy_of(job, Path(name))
            else:
                size = hospitals, self.rounds
                told = self._told(
                    Path(sys.executable),
                    "benchmarks.thousand.ours",
                    *(path, *size, way.arm, way.engine, self.workers),
                )
        lengths = [later - earlier for earlier, later in pairwise(told["stamps"])]
        return Run(
            recipe=recipe,
            hospitals=hospitals,
            arm=way.arm,
            engine=way.engine,
            wall_seconds=told["wall_seconds"],
            cpu_seconds=told["cpu_seconds"],
            round_seconds=tuple(lengths[1:]),
            trained_seconds=tuple(told["trained_seconds"]),
            accuracy=told["accuracy"],
        )

    def _told(self, python: Path, module: str, *arguments: object) -> dict[str, Any]:
        command = [*self.prefix, str(python), "-m", module, *map(str, arguments)]
        environment = os.environ | {
            "PYTHONPATH": os.getcwd(),
            # One core a process, everywhere, as Ray has it for its workers.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # Both count their starts over the network otherwise.
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        line, cpu_seconds = run_counted(command, environment, seconds=_SECONDS)
        told: dict[str, Any] = json.loads(line)
        return told | {"cpu_seconds": cpu_seconds}


def seconds(
    runs: Sequence[Run], recipe: str, hospitals: int, way: Way
) -> tuple[float, float, float]:
    """Medians of wall time, of CPU time and of all rounds."""
    own = [r for r in runs if (r.recipe, r.hospitals, r.way) == (recipe, hospitals, way)]
    rounds = [each for run in own for each in run.round_seconds]
    return (
        median(run.wall_seconds for run in own),
        median(run.cpu_seconds for run in own),
        median(rounds),
    )


def ratios(runs: Sequence[Run], *, hospitals: int) -> dict[str, float]:
    """Flower's seconds over ours."""
    found = {}
    for recipe in dict.fromkeys(run.recipe for run in runs):
        present = {r.way for r in runs if (r.recipe, r.hospitals) == (recipe, hospitals)}
        if Way("mean", PEER) not in present:
            continue
        theirs = seconds(runs, recipe, hospitals, Way("mean", PEER))
        for way in WAYS[:-1]:
            if way in present:
                own = seconds(runs, recipe, hospitals, way)
                for what, their, our in zip(("wall", "cpu", "round"), theirs, own, strict=True):
                    found[f"{recipe}_{way.arm}_{way.engine}_{what}_vs_flower"] = their / our
    return found


def measured(
    bench: Bench,
    console: Console,
    *,
    recipes: Sequence[str],
    ways: Sequence[Way],
    hospitals: int,
    turns: int,
) -> Iterator[Run]:
    """Every way through every study, in turn."""
    for turn in range(turns):
        for recipe in recipes:
            for way in ways:
                run = bench.run(recipe, hospitals, way)
                console.print(
                    f"turn {turn + 1} of {turns}, {hospitals} hospitals, {recipe}: {way.name} "
                    f"{run.wall_seconds:.1f} s, {median(run.round_seconds):.2f} s a round, "
                    f"{100 * run.accuracy:.1f} %"
                )
                yield run


def show(console: Console, runs: Sequence[Run], *, hospitals: int) -> None:
    """For people."""
    for recipe in dict.fromkeys(run.recipe for run in runs):
        table = Table(
            *("", "wall, s", "CPU, s", "a round, s", "a hospital's round, ms"),
            *("training alone, ms", "accuracy, %", "× faster: wall", "CPU", "a round"),
            title=f"{hospitals} hospitals, {recipe}; medians",
            box=box.SIMPLE,
            title_justify="left",
        )
        quotients = ratios(runs, hospitals=hospitals)
        for way in WAYS:
            own = [r for r in runs if (r.recipe, r.hospitals, r.way) == (recipe, hospitals, way)]
            if not own:
                continue
            wall, cpu, a_round = seconds(runs, recipe, hospitals, way)
            inside = [each for run in own for each in run.trained_seconds[1:]]
            name = f"{recipe}_{way.arm}_{way.engine}"
            table.add_row(
                way.name,
                f"{wall:.1f}",
                f"{cpu:.1f}",
                f"{a_round:.2f}",
                f"{1000 * a_round / hospitals:.2f}",
                f"{1000 * median(inside) / hospitals:.2f}" if inside else "",
                f"{100 * median(run.accuracy for run in own):.1f}",
                *(
                    f"{found:.1f}" if (found := quotients.get(f"{name}_{what}_vs_flower")) else ""
                    for what in ("wall", "cpu", "round")
                ),
            )
        console.print(table)


def show_growth(console: Console, runs: Sequence[Run]) -> None:
    """For people."""
    sizes = sorted({run.hospitals for run in runs})
    for recipe in dict.fromkeys(run.recipe for run in runs):
        table = Table(
            "",
            *map(str, sizes),
            title=f"Seconds a round by number of hospitals, {recipe}",
            box=box.SIMPLE,
            title_justify="left",
        )
        for way in WAYS:
            have = {r.hospitals for r in runs if (r.recipe, r.way) == (recipe, way)}
            if have:
                table.add_row(
                    way.name,
                    *(
                        f"{seconds(runs, recipe, n, way)[2]:.2f}" if n in have else ""
                        for n in sizes
                    ),
                )
        console.print(table)


def main(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("out/bench"),
    hospitals: Annotated[int, typer.Option(min=2)] = 1000,
    rounds: Annotated[int, typer.Option(min=3, help="Of every run.")] = 5,
    turns: Annotated[int, typer.Option(min=1, help="Of every way.")] = 3,
    recipes: Annotated[str, typer.Option(help="Which studies.")] = ",".join(STUDIES),
    growth: Annotated[str, typer.Option(help="Further numbers of hospitals.")] = "300,100,10",
    workers: Annotated[int, typer.Option(min=1)] = len(os.sched_getaffinity(0)),
    flower: Annotated[
        Path, typer.Option(help="The interpreter that has flwr[simulation].")
    ] = FLOWER,
    prefix: Annotated[str, typer.Option(help="What starts each run, such as taskset.")] = "",
) -> None:
    """Measure."""
    console = Console(highlight=False, width=120)
    ways = [way for way in WAYS if way.engine != PEER or flower.exists()]
    if len(ways) < len(WAYS):
        console.print(f"nothing is compared with Flower: {flower} is missing; make peers")
    bench = Bench(flower, tuple(shlex.split(prefix)), workers, rounds)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "scaling_simulation.json"
    runs: list[Run] = []
    sizes = [int(each) for each in growth.split(",") if each]
    # A whole turn first: what was measured is kept if the rest is stopped.
    plan = [(hospitals, 1), *((n, 1) for n in sizes), (hospitals, turns - 1)]
    for n, times in plan:
        for run in measured(
            bench, console, recipes=recipes.split(","), ways=ways, hospitals=n, turns=times
        ):
            runs.append(run)
            document = {
                "machine": machine(),
                "date": utc_now().isoformat(timespec="seconds"),
                "command": shlex.join(
                    ["python", "-m", "benchmarks.scaling_simulation", *sys.argv[1:]]
                ),
                "simulated": True,
                "measurements": {
                    "hospitals": hospitals,
                    "rounds": rounds,
                    "workers": workers,
                    "runs": [asdict(run) for run in runs],
                },
                "ratios": ratios(runs, hospitals=hospitals),
            }
            text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
            write_atomically(path, [text.encode() + b"\n"], mode=0o644)
    show(console, runs, hospitals=hospitals)
    show_growth(console, runs)
    console.print(f"Figures: {path}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
