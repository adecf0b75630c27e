"""``make evidence-check``: are the published figures what these sources give?

Draws published runs of docs/results/evidence.json at random, evenly over the studies, runs them
again here, and compares every figure to its last published digit. Whoever doubts a table, or has
changed code that should not change one, need not wait a night for all of it.
"""

import json
import os
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from benchmarks.evidence_results import OUT, RESULTS, studies_of, write
from benchmarks.results.gather import Run, run_of, runs_in
from benchmarks.results.known import by_key, feature_files, taken_over
from benchmarks.results.peers import NAME as PEERS
from benchmarks.results.publication import carried, read_published
from matl.machine import machine
from matl.simulation.campaign import Ended, Engine, Impossible, Job, LocalEngine, images_of, jobs_of
from matl.simulation.datasets import FASHION_FOLDER
from matl.simulation.outcome import Outcome
from matl.simulation.study import ArmName, StudyFile
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, MatlError

RESULT: Final = "check.json"
Difference = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Check:
    """One published run, and the job that is the same run here."""

    file: str
    job: Job
    published: Run
    is_same_code: bool
    """Whether all code and data that enter it are what the published figures came of."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.file}: {self.job.name}, {self.published.arm}, seed {self.job.seed}"

    def differences(self, outcome: Outcome) -> dict[str, Difference]:
        """Figures that came out otherwise: as published, and as they are here."""
        here, before = run_of(self.job.study, outcome).figures, self.published.figures
        return {key: (before[key], here[key]) for key in before if before[key] != here[key]}


def checks_of(file: StudyFile, published: Mapping[str, Any], jobs: Sequence[Job]) -> list[Check]:
    """Every published run of a study file.

    Args:
        file: the study file.
        published: what is published of it.
        jobs: its jobs, where their data are here.
    """
    by_run = {(job.study, job.seed): job for job in jobs}
    same = by_key(taken_over(published, jobs))
    return [
        Check(
            file.name,
            replace(by_run[run.study, run.seed], arms=(ArmName(run.arm),)),
            run,
            (run.study, run.arm, run.seed) in same,
        )
        for run in runs_in(published.get("cells", []), jobs)
    ]


def drawn(checks: Sequence[Sequence[Check]], runs: int, chance: random.Random) -> list[Check]:
    """So many at random, as evenly over the studies as they have runs."""
    shuffled = [chance.sample(each, min(runs, len(each))) for each in checks]
    chance.shuffle(shuffled)
    in_turn = chain.from_iterable(zip_longest(*shuffled))
    return [each for each in in_turn if each is not None][:runs]


def run_again(
    checks: Sequence[Check], engine: Engine, console: Console
) -> dict[str, dict[str, Difference]]:
    """Every check, each said as it ends; those whose figures differ, by name, and how."""
    of_job = {check.job: check for check in checks}
    found: dict[str, dict[str, Difference]] = {}

    def done(job: Job, outcomes: Ended) -> None:
        check = of_job[job]
        if isinstance(outcomes, Impossible):
            raise ConfigurationError(f"{check.name} cannot be carried out: {outcomes.reason}")
        (outcome,) = outcomes
        differences = check.differences(outcome)
        if differences:
            found[check.name] = differences
        console.print(
            f"{'differs' if differences else 'same':8}{check.name}",
            style="red" if differences else None,
        )
        for key, (before, here) in differences.items():
            console.print(f"        {key}: {before} published, {here} here")

    engine.run([check.job for check in checks], done=done, told=lambda _job, _round: None)
    return found


def published_checks(
    files: Sequence[StudyFile], *, fashion: Path, out: Path
) -> tuple[list[list[Check]], list[str]]:
    """Every published run, study by study, and the studies whose features are not here."""
    published = read_published(RESULTS)["studies"]
    found, left_out = [], []
    for file in files:
        if all(path.exists() for path in feature_files(file, out)):
            jobs = jobs_of(file, fashion=fashion, features=out)
            found.append(checks_of(file, published.get(file.name, {}), jobs))
        else:
            left_out.append(file.name)
    return found, left_out


def carry(checks: Sequence[Check], *, why: str, seed: int, out: Path) -> None:
    """Publish the same figures as those of the code that is here, and write what was checked."""
    features: dict[str, Path | None] = {PEERS: None}
    for file in studies_of([]):
        files = feature_files(file, out)
        if all(path.exists() for path in files):
            features[file.name] = files[0] if files else None
    record = {
        "date": utc_now().isoformat(timespec="seconds"),
        "why": why,
        "runs_made_again": len(checks),
        "seed": seed,
    }
    write(carried(read_published(RESULTS), features, record))


def result_of(
    checks: Sequence[Check], differing: Mapping[str, Mapping[str, Difference]], seed: int
) -> dict[str, Any]:
    """What ``check.json`` says."""
    return {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.evidence_check", *sys.argv[1:]]),
        "seed": seed,
        "summary": {"runs": len(checks), "same": len(checks) - len(differing)},
        "measurements": {
            "runs": [
                {
                    "run": check.name,
                    "same_code": check.is_same_code,
                    "differences": differing.get(check.name, {}),
                }
                for check in checks
            ]
        },
    }


def main(
    *,
    runs: Annotated[int, typer.Option(min=1, help="How many are run again.")] = 24,
    only: Annotated[str, typer.Option(help="Names of studies; all unless given.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Draws the same runs again.")] = None,
    fashion: Annotated[Path, typer.Option(help="Folder of Fashion-MNIST.")] = FASHION_FOLDER,
    processes: Annotated[int, typer.Option(min=1)] = len(os.sched_getaffinity(0)),
    out: Annotated[Path, typer.Option(help="Folder of features; takes the result.")] = OUT,
    why: Annotated[
        str,
        typer.Option(
            "--carry",
            help="Why the change since then moves no figure: where none moved, what is published "
            "is written as of this code, with the reason and what was checked.",
        ),
    ] = "",
) -> None:
    """Run some published runs again; end with 1 where a figure is another.

    make evidence-check ARGS='--runs 100 --only robust-n5' for more, of one study. After a
    change that should not move a figure, it says whether one moved; and with --carry 'reason',
    from all studies, what was published stays published.
    """
    console = Console(soft_wrap=True, highlight=False)
    chance = random.SystemRandom().randrange(2**32) if seed is None else seed
    try:
        if why and only:
            raise ConfigurationError("--carry speaks for every study: leave --only out")
        files = studies_of([name for name in only.split(",") if name])
        published, left_out = published_checks(files, fashion=fashion, out=out)
        checks = drawn(published, runs, random.Random(chance))
        if left_out:
            console.print(
                f"Left out, for their features are not here: {', '.join(left_out)}; "
                f"python -m benchmarks.results.features {out} makes them in an hour"
            )
        if not checks:
            raise ConfigurationError(
                "nothing that is published can be run again here: it is of studies whose features "
                "are not here, of other implementations, or older than its cells name their study"
            )
        for check in checks:
            # In this process, so that what is missing is said once, and clearly.
            images_of(check.job)
        changed = sum(not check.is_same_code for check in checks)
        older = f"; {changed} published by other code: if they differ, that may be why"
        console.print(f"{len(checks)} runs, each some seconds{older if changed else ''}")
        differing = run_again(checks, LocalEngine(processes), console)
        if why and not differing:
            carry(checks, why=why, seed=chance, out=out)
    except (MatlError, ValueError) as error:
        console.print(str(error), style="red")
        raise typer.Exit(1) from error
    result = result_of(checks, differing, chance)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(out / RESULT, [text.encode() + b"\n"], mode=0o644)
    console.print(
        f"{result['summary']['same']} of {len(checks)} came out the same, to the last published "
        f"digit (with the same options --seed {chance} draws them again); {out / RESULT}"
    )
    if differing:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
