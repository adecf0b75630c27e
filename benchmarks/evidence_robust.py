"""``make evidence-robust``: how far hostile hospitals move the model, rule by rule.

A simulation that calls the product's admission, judgement and aggregation for every attack of
``matl.attacks``. Prints tables, writes out/evidence/robust.json and a heat map beside it.
Finished runs are kept in out/evidence, and a second start goes on from there as long as
neither the product nor this benchmark has changed.
"""

import json
import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.robust.arms import ArmName, is_available
from benchmarks.robust.cohort import ROOT_IMAGES, Mix, Setting
from benchmarks.robust.datasets import FASHION_FOLDER, DataSet, Images, load_images
from benchmarks.robust.learners import DELTA, EPSILON, HeadRecipe, NetworkRecipe
from benchmarks.robust.report import draw, show
from benchmarks.robust.simulation import NO_ATTACK, Outcome, prepare, run, settings_of
from benchmarks.robust.summary import HARM_POINTS, cells_of, summarise
from matl.attacks import ATTACKS, Room
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, MatlError

OUT: Final = Path("out/evidence")
ARMS: Final = tuple(name for name in ArmName if is_available(name))
QUICK_ATTACKS: Final = (NO_ATTACK, "sign_flip_5", "label_complement", "ipm_2")
QUICK_ARMS: Final = (ArmName.ORACLE, ArmName.MATL, ArmName.MEAN)
QUICK_SETTINGS: Final = (
    Setting(DataSet.DIGITS, 20, 9, Mix.DIRICHLET, private=False, seed=0),
    Setting(DataSet.DIGITS, 20, 9, Mix.DIRICHLET, private=True, seed=0),
)
_EVERY_SEED: Final = frozenset({ArmName.ORACLE, ArmName.MATL, ArmName.MEAN})
"""The others are there for context, and run on the first split only."""
_WRONG_LENGTH: Final = frozenset({"too_long", "too_short", "truncated"})
"""Refused by their size before anybody looks at a value; the tests show that."""


@dataclass(frozen=True, slots=True)
class Job:
    """One attack on one federation, under every rule."""

    setting: Setting
    attack: str
    arms: tuple[ArmName, ...]
    fashion: Path

    @property
    def key(self) -> str:
        """Names the job among those finished earlier."""
        return f"{self.setting.name}/{self.attack}/{'+'.join(self.arms)}"


def attacks_on(setting: Setting) -> list[str]:
    """Every attack that makes sense there; those against privacy noise need some."""
    return [NO_ATTACK] + [
        name
        for name, entry in ATTACKS.items()
        if name not in _WRONG_LENGTH
        and (setting.private or entry.room is not Room.PRIVATE)
        # Malformed updates are refused whatever the split.
        and (setting.seed == 0 or entry.room is not Room.PROTOCOL)
    ]


def arms_of(setting: Setting, chosen: tuple[ArmName, ...]) -> tuple[ArmName, ...]:
    """Which rules to run: those chosen, else those that are there for context only once.

    The oracle and the mean always: gaps and harm are measured against them.
    """
    wanted = set(chosen or (ARMS if setting.seed == 0 else _EVERY_SEED))
    return tuple(arm for arm in ARMS if arm in wanted | {ArmName.ORACLE, ArmName.MEAN})


def carry_out(job: Job) -> list[Outcome]:
    """Run one job."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        study = prepare(_images(job.setting.data_set, job.fashion), job.setting, job.attack)
        outcomes = []
        for arm in job.arms:
            if arm is ArmName.ORACLE and job.attack != NO_ATTACK:
                found = replace(_oracle(job.setting, job.fashion), attack=job.attack)
            else:
                found = run(study, arm, Path(folder))
            outcomes.append(found)
    return outcomes


@cache
def _images(data_set: DataSet, fashion: Path) -> Images:
    return load_images(data_set, fashion=fashion)


@cache
def _oracle(setting: Setting, fashion: Path) -> Outcome:
    """The same for every attack, since it looks at none of the attackers' updates."""
    with tempfile.TemporaryDirectory() as folder:
        study = prepare(_images(setting.data_set, fashion), setting, "sign_flip_1")
        return run(study, ArmName.ORACLE, Path(folder))


def fingerprint() -> str:
    """Of everything that enters a result: the product's core, the attacks, this simulation."""
    root = Path(__file__).resolve().parent.parent
    folders = ("matl_coordinator", "matl_common", "matl/attacks", "benchmarks/robust")
    digest = sha256()
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        if path.name not in {"report.py", "summary.py"}:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Finished:
    """Outcomes of earlier starts; the file is owned by one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fingerprint = fingerprint()
        self._known: dict[str, list[Outcome]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                if entry["fingerprint"] == self._fingerprint:
                    self._known[entry["job"]] = [Outcome(**each) for each in entry["outcomes"]]

    def get(self, job: Job) -> list[Outcome] | None:
        """What the job gave, if it is known."""
        return self._known.get(job.key)

    def add(self, job: Job, outcomes: list[Outcome]) -> None:
        """Keep what a job gave."""
        entry = {
            "fingerprint": self._fingerprint,
            "job": job.key,
            "outcomes": [asdict(each) for each in outcomes],
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def run_jobs(
    jobs: list[Job], finished: Finished, *, processes: int, console: Console
) -> list[Outcome]:
    """Run what is not yet known, with progress."""
    outcomes: list[Outcome] = []
    open_jobs = []
    for job in jobs:
        known = finished.get(job)
        if known is None:
            open_jobs.append(job)
        else:
            outcomes.extend(known)
    if not open_jobs:
        return outcomes
    with _workers(processes) as pool, _progress(console) as progress:
        task = progress.add_task("simulating", total=len(open_jobs))
        futures = {pool.submit(carry_out, job): job for job in open_jobs}
        try:
            for future in as_completed(futures):
                found = future.result()
                finished.add(futures[future], found)
                outcomes.extend(found)
                job = futures[future]
                progress.update(
                    task, advance=1, description=f"{job.setting.name} {job.attack}"[:60]
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


@contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    # Read when a new process loads numpy; small products are no faster on two threads.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield pool


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def document(outcomes: list[Outcome], settings: dict[str, object]) -> dict[str, object]:
    """``robust.json`` as a value: everything measured, and per data set what it comes to."""
    from matl.demo.summary import machine

    cells = cells_of(outcomes)
    reported = DataSet.FASHION if any(c.data_set == DataSet.FASHION for c in cells) else None
    by_set = {
        name: summarise([cell for cell in cells if cell.data_set == name]) for name in DataSet
    }
    return {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.evidence_robust", *sys.argv[1:]]),
        "settings": settings,
        "measurements": {
            "runs": [asdict(each) for each in outcomes],
            "cells": [asdict(each) for each in cells],
        },
        # The rule was tuned on digits; where both were run, only the other set is a claim.
        "summary": {"data_set": reported or DataSet.DIGITS} | by_set[reported or DataSet.DIGITS],
        "summary_by_data_set": by_set,
    }


def main(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few attacks on digits, in a minute.")
    ] = False,
    datasets: Annotated[str, typer.Option(help="digits, fashion, or both.")] = "digits,fashion",
    attacks: Annotated[str, typer.Option(help="Names from matl.attacks; all unless given.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Splits of each federation.")] = 3,
    members: Annotated[str, typer.Option(help="Federation sizes, 20 or 5.")] = "20,5",
    privacy: Annotated[str, typer.Option(help="none, eps1, or both.")] = "none,eps1",
    arms: Annotated[str, typer.Option(help="Rules to compare; all unless given.")] = "",
    fashion: Annotated[Path, typer.Option(help="Folder of Fashion-MNIST.")] = FASHION_FOLDER,
    processes: Annotated[int, typer.Option(min=1)] = len(os.sched_getaffinity(0)),
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = OUT,
) -> None:
    """Measure every attack against every rule."""
    console = Console()
    try:
        if quick:
            jobs = [
                Job(setting, attack, QUICK_ARMS, fashion)
                for setting in QUICK_SETTINGS
                for attack in QUICK_ATTACKS
            ]
        else:
            jobs = _jobs(
                data_sets=[DataSet(name) for name in _listed(datasets, list(DataSet))],
                members=[int(each) for each in _listed(members, ["20", "5"])],
                private=[each == "eps1" for each in _listed(privacy, ["none", "eps1"])],
                attacks=_listed(attacks, [NO_ATTACK, *ATTACKS]),
                arms=tuple(ArmName(name) for name in _listed(arms, list(ARMS))),
                seeds=seeds,
                fashion=fashion,
            )
        if not jobs:
            raise ConfigurationError(
                "no run fits these options; malformed lengths are not simulated"
            )
        for data_set in {job.setting.data_set for job in jobs}:
            _images(data_set, fashion)
        name = "robust-quick" if quick else "robust"
        out.mkdir(parents=True, exist_ok=True)
        outcomes = run_jobs(
            jobs,
            Finished(out / f"{name}-runs.jsonl"),
            processes=processes,
            console=console,
        )
        result = document(outcomes, _settings(jobs))
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(out / f"{name}.json", [text.encode() + b"\n"], mode=0o644)
        cells = cells_of(outcomes)
        show(console, cells, result)
        draw(cells, out / f"{name}.png")
        console.print(f"Written: {out / name}.json and {out / name}.png", highlight=False)
    except MatlError as error:
        console.print(str(error), style="red", highlight=False)
        raise typer.Exit(1) from error


def _jobs(
    *,
    data_sets: list[DataSet],
    members: list[int],
    private: list[bool],
    attacks: list[str],
    arms: tuple[ArmName, ...],
    seeds: int,
    fashion: Path,
) -> list[Job]:
    return [
        Job(setting, attack, arms_of(setting, arms), fashion)
        for data_set in data_sets
        for setting in settings_of(data_set, seeds=seeds)
        if setting.members in members and setting.private in private
        for attack in attacks_on(setting)
        if not attacks or attack in attacks
    ]


def _listed(text: str, valid: list[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in valid]:
        raise ConfigurationError(f"{', '.join(unknown)}: choose from {', '.join(valid)}")
    return names


def _settings(jobs: list[Job]) -> dict[str, object]:
    return {
        "root_images": ROOT_IMAGES,
        "epsilon": EPSILON,
        "delta": DELTA,
        "network": asdict(NetworkRecipe()),
        "head": asdict(HeadRecipe()),
        "arms": sorted({arm for job in jobs for arm in job.arms}),
        "seeds": sorted({job.setting.seed for job in jobs}),
        "harmful_from_points": HARM_POINTS,
        "tuned_on": DataSet.DIGITS,
    }


if __name__ == "__main__":
    typer.run(main)
