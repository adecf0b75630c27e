"""``make bench-weighting``: what hospitals should count for when each adds its own noise.

Hospitals of 10,000, 5,000, 3,000, 2,000 and 1,000 patients at ε = 1, with nobody hostile and
with the largest. Training, attacks and rounds are those of the robustness evidence, and so is
the product's judgement; only the shares it comes to are weighed anew. Prints tables and writes
out/bench/weighting.json.
"""

import json
import math
import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from itertools import count, islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Final

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.robust.settings import EPSILON, HEAD
from matl.machine import machine
from matl.simulation.arms import Federation, TrustedArm
from matl.simulation.cohort import hostile_of
from matl.simulation.datasets import FASHION_FOLDER, DataSet, Float32Array, Images, load_images
from matl.simulation.federation import prepare, run_under
from matl.simulation.study import NO_ATTACK, TUTORIAL_PATIENTS, ArmName, Study
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.errors import MatlError
from matl_coordinator.core.robust.sizes import size_cap
from matl_coordinator.core.rounds import NodeWeight
from matl_coordinator.service.judging import Verdict

MEMBERS: Final = len(TUTORIAL_PATIENTS)
ALPHAS: Final = (math.inf, 0.5)
_FILE_COLUMNS: Final = 150
ATTACKS: Final = ("sign_flip_1", "sleeper")
"""By the largest hospital: one that is seen at once, and one that has earned full trust."""


class Weighting(StrEnum):
    """What a hospital of N patients counts for, before trust."""

    EQUAL = "1"
    SIZE = "N"
    CAPPED_SIZE = "min(N, U)"
    """The product's."""
    SQUARE = "N^2"
    """Of least variance where the noise of an update goes as 1/N."""
    CAPPED_SQUARE = "min(N^2, U)"
    """The same, and the f largest have half of the weight at most."""


def weigh(weighting: Weighting, patients: Sequence[int], *, f: int) -> list[float]:
    """What each hospital counts for, by its enrolled size."""
    match weighting:
        case Weighting.EQUAL:
            return [1.0] * len(patients)
        case Weighting.SIZE:
            return [float(size) for size in patients]
        case Weighting.SQUARE:
            return [float(size**2) for size in patients]
        case Weighting.CAPPED_SIZE:
            return [float(min(size, size_cap(patients, f=f))) for size in patients]
        case Weighting.CAPPED_SQUARE:
            squares = [size**2 for size in patients]
            return [float(min(square, size_cap(squares, f=f))) for square in squares]


class WeighedArm(TrustedArm):
    """The product's coordinator but for what sizes count; hospitals' trust counts as it does."""

    def __init__(
        self,
        weighting: Weighting,
        federation: Federation,
        folder: Path,
        *,
        first_model: Float32Array,
    ) -> None:
        super().__init__(
            ArmName.MATL, federation, folder, first_model=first_model, weigh=self._weighed
        )
        patients = [each.patients for each in federation.enrolled.values()]
        wanted = weigh(weighting, patients, f=federation.byzantine)
        usual = weigh(Weighting.CAPPED_SIZE, patients, f=federation.byzantine)
        self._factors = {
            node: mine / theirs
            for node, mine, theirs in zip(federation.enrolled, wanted, usual, strict=True)
        }

    def _weighed(self, verdict: Verdict) -> tuple[NodeWeight, ...]:
        raw = [each.weight * self._factors[each.node_id] for each in verdict.weights]
        return tuple(
            NodeWeight(each.node_id, weight / sum(raw))
            for each, weight in zip(verdict.weights, raw, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One split under one attack, for every weighting."""

    study: Study
    seed: int
    fashion: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Accuracies on the test images, as fractions."""

    data_set: str
    mix: str
    f: int
    attack: str
    seed: int
    weighting: str
    accuracy: float
    """Of the mean of the second half's models."""
    last_accuracy: float
    """Of the last round's own model."""
    held_rounds: int
    hostile_excluded: float | None


def carry_out(job: Job) -> list[Measured]:
    """Run one job."""
    data_set = DataSet(job.study.data.set)
    simulation = prepare(_images(data_set, job.fashion), job.study, seed=job.seed)
    learner, cohort = simulation.learner, simulation.cohort
    shared = Path("/dev/shm")
    found = []
    for weighting in Weighting:
        with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
            arm = WeighedArm(
                weighting, simulation.federation, Path(folder), first_model=learner.initial()
            )
            outcome = run_under(simulation, arm)
            last = learner.predict(arm.last(), cohort.test_values)
        found.append(
            Measured(
                data_set=data_set,
                mix=outcome.mix,
                f=outcome.byzantine,
                attack=outcome.attack,
                seed=job.seed,
                weighting=weighting,
                accuracy=outcome.accuracy,
                last_accuracy=float(np.mean(last == cohort.test_labels)),
                held_rounds=outcome.held_rounds,
                hostile_excluded=outcome.hostile_excluded,
            )
        )
    return found


@cache
def _images(data_set: DataSet, fashion: Path) -> Images:
    return load_images(data_set, fashion=fashion)


def federation(data_set: DataSet, f: int, alpha: float, attack: str) -> Study:
    """The tutorial's sizes at ε = 1, with f declared and as many drawn to be hostile."""
    return Study.model_validate(
        {
            "data": {"set": data_set},
            "hospitals": {"patients": TUTORIAL_PATIENTS, "alpha": alpha},
            "training": HEAD | {"averaging": "second-half"},
            "privacy": {"epsilon": EPSILON},
            "coordinator": {"byzantine": f},
            "hostile": {"attack": attack, "count": f},
        }
    )


def jobs_of(data_sets: Sequence[DataSet], *, seeds: int, fashion: Path) -> list[Job]:
    """Nobody hostile, then the largest hospital, with f = 1 and f = 2 declared."""
    jobs = []
    for data_set in data_sets:
        for alpha in ALPHAS:
            for f in (1, 2):
                calm = federation(data_set, f, alpha, NO_ATTACK)
                jobs += [Job(calm, seed, fashion) for seed in range(seeds)]
                for attack in ATTACKS:
                    study = federation(data_set, f, alpha, attack)
                    hostile = list(islice(_largest_hostile(study), seeds))
                    jobs += [Job(study, seed, fashion) for seed in hostile]
    return jobs


def _largest_hostile(study: Study) -> Iterator[int]:
    """The seeds whose draw makes the largest hospital hostile, and at f = 2 another one."""
    return (seed for seed in count() if hostile_of(study, seed=seed)[0])


@dataclass(frozen=True, slots=True)
class Cell:
    """One weighting in one federation under one attack, over its splits; in points."""

    data_set: str
    mix: str
    f: int
    attack: str
    weighting: str
    splits: int
    accuracy: float
    """Of the last round's own model."""
    gain: float
    """Over the product's weighting, split by split: the noise is the same."""
    gain_error: float
    """Standard error of that mean."""
    averaging_gain: float
    """Of the mean of the second half's models over the last one."""
    hostile_excluded: float | None


def cells_of(runs: Sequence[Measured]) -> list[Cell]:
    """What the runs come to."""
    groups: dict[tuple[str, str, int, str], dict[str, list[Measured]]] = {}
    for run in sorted(runs, key=lambda m: (m.data_set, m.mix, m.f, m.attack != NO_ATTACK, m.seed)):
        group = groups.setdefault((run.data_set, run.mix, run.f, run.attack), {})
        group.setdefault(run.weighting, []).append(run)
    return [
        _cell(found, group[Weighting.CAPPED_SIZE])
        for group in groups.values()
        for found in group.values()
    ]


def _cell(found: Sequence[Measured], usual: Sequence[Measured]) -> Cell:
    gains = [100 * (a.last_accuracy - b.last_accuracy) for a, b in zip(found, usual, strict=True)]
    excluded = [each.hostile_excluded for each in found if each.hostile_excluded is not None]
    first = found[0]
    return Cell(
        data_set=first.data_set,
        mix=first.mix,
        f=first.f,
        attack=first.attack,
        weighting=first.weighting,
        splits=len(found),
        accuracy=100 * fmean(each.last_accuracy for each in found),
        gain=fmean(gains),
        gain_error=stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0,
        averaging_gain=100 * fmean(each.accuracy - each.last_accuracy for each in found),
        hostile_excluded=fmean(excluded) if excluded else None,
    )


def document(runs: Sequence[Measured], *, seeds: int) -> dict[str, object]:
    """``weighting.json`` as a value."""
    return {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.weighting", *sys.argv[1:]]),
        "settings": {"epsilon": EPSILON, "splits": seeds, "attacks": list(ATTACKS)},
        "measurements": [asdict(each) for each in runs],
        "summary": [asdict(each) for each in cells_of(runs)],
    }


def show(console: Console, cells: Sequence[Cell]) -> None:
    """Print the product's accuracy, and what the other weightings gain over it."""
    table = Table(
        box=box.SIMPLE,
        title="Accuracy of the last model, and points gained by weighing otherwise",
        caption="± standard error over splits. Averaging: the mean of the second half's models "
        "over the last one. Out: hostile hospitals excluded at the end.",
    )
    others = [each for each in Weighting if each is not Weighting.CAPPED_SIZE]
    for column in ("Data", "Classes", "f", "Largest hospital"):
        table.add_column(column, no_wrap=True)
    for column in (Weighting.CAPPED_SIZE, *others, "Averaging", "Out"):
        table.add_column(column, justify="right", no_wrap=True)
    for usual in cells:
        if usual.weighting != Weighting.CAPPED_SIZE:
            continue
        key = (usual.data_set, usual.mix, usual.f, usual.attack)
        gains = {
            each.weighting: f"{each.gain:+.1f} ± {each.gain_error:.1f}"
            for each in cells
            if (each.data_set, each.mix, each.f, each.attack) == key
        }
        excluded = usual.hostile_excluded
        table.add_row(
            usual.data_set,
            usual.mix,
            str(usual.f),
            "honest" if usual.attack == NO_ATTACK else usual.attack,
            f"{usual.accuracy:.1f}",
            *(gains[each] for each in others),
            f"{usual.averaging_gain:+.1f}",
            "" if excluded is None else f"{100 * excluded:.0f} %",
        )
    console.print(table)


def measure(console: Console, jobs: Sequence[Job], *, processes: int) -> list[Measured]:
    """Run every job, with progress."""
    # Read when a new process loads numpy; small products are no faster on two threads.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    runs: list[Measured] = []
    with (
        ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("", total=len(jobs))
        for future in as_completed([pool.submit(carry_out, job) for job in jobs]):
            runs += future.result()
            progress.advance(bar)
    return runs


def command(
    *,
    datasets: Annotated[list[DataSet] | None, typer.Option("--data", help="Both unless given.")] = (
        None
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Splits of each federation.")] = 3,
    fashion: Annotated[Path, typer.Option(help="Folder of Fashion-MNIST.")] = FASHION_FOLDER,
    processes: Annotated[int, typer.Option(min=1)] = len(os.sched_getaffinity(0)),
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("out/bench"),
) -> None:
    """Measure what hospitals of different size should count for."""
    # In a file the table would be cut to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
    try:
        jobs = jobs_of(datasets or list(DataSet), seeds=seeds, fashion=fashion)
        runs = measure(console, jobs, processes=processes)
    except MatlError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    show(console, cells_of(runs))
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document(runs, seeds=seeds), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "weighting.json", [text.encode() + b"\n"], mode=0o644)
    console.print(f"Figures: {out / 'weighting.json'}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(command)
