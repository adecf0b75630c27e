"""Many runs: what is known from before, an engine for the rest, and progress.

A run is known by its study, seed, arm and by a digest of all code and data that enter it, so
that a campaign goes on where it was stopped and never mixes versions.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from matl.attacks.attack import AttackError
from matl.simulation.datasets import FASHION_FOLDER, FEATURES_SUFFIX, Images, load_images
from matl.simulation.federation import prepare, run
from matl.simulation.outcome import Outcome
from matl.simulation.parts import Trainer, in_blocks
from matl.simulation.study import ArmName, Study, StudyFile
from matl.sources import sources_hash
from matl_common.errors import ConfigurationError

_ENTERS: Final = (
    "matl/attacks",
    "matl/simulation",
    "matl_common/privacy",
    "matl_common/vision/linear_head.py",
    "matl_common/vision/metrics.py",
    "matl_coordinator/aggregation",
    "matl_coordinator/core",
    "matl_coordinator/scoring/beyond.py",
    "matl_coordinator/scoring/path.py",
    "matl_coordinator/scoring/reach.py",
    "matl_coordinator/scoring/split.py",
    "matl_coordinator/service/averaging.py",
    "matl_coordinator/service/judging.py",
    "matl_coordinator/service/survey.py",
)
_ENTERS_NOT: Final = frozenset(
    {"campaign.py", "report.py", "intervals.py", "parts.py", "ray_engine.py"}
)
_TRUST_ONLY: Final = frozenset(
    {
        "composite.py",
        "judgement.py",
        "path.py",
        "power.py",
        "profile.py",
        "reach.py",
        "trust.py",
        "trust_evidence.py",
        "trust_reasons.py",
        "trust_record.py",
        "weighting.py",
    }
)
"""Of those, what only arms that keep trust carry out."""
_TRUSTING: Final = frozenset({ArmName.MATL, ArmName.MATL_PEERS})
_IN_MEMORY: Final = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Places:
    """Where data sets are."""

    fashion: Path = FASHION_FOLDER
    features: Path = Path()
    """What names of feature files are relative to."""


@dataclass(frozen=True, slots=True)
class Job:
    """One study with one seed, under several rules."""

    study: Study
    seed: int
    arms: tuple[ArmName, ...]
    places: Places = Places()
    beside: str = ""
    """Names what enters its results beside the code that every arm of ours carries out."""

    def key(self, arm: ArmName) -> str:
        """Names a run among those finished earlier."""
        return f"{arm} seed {self.seed} {self.study.key()} {self.beside}".rstrip()

    @property
    def name(self) -> str:
        """For people who watch."""
        return f"{self.study.setting} {self.study.hostile.attack}"


def jobs_of(
    file: StudyFile, *, fashion: Path = FASHION_FOLDER, features: Path | None = None
) -> list[Job]:
    """Every job of a study file; features lie beside it unless said otherwise.

    Row by row, so that a campaign that is stopped early has rows with all their seeds.
    """
    places = Places(fashion, features or file.folder)
    return [
        Job(study, seed, file.arms, places)
        for row in file.rows
        for seed in file.seeds
        for study in row
    ]


def carry_out(
    job: Job, images: Images | None = None, *, trainer: Trainer = in_blocks
) -> list[Outcome]:
    """Run one job.

    Args:
        job: which one.
        images: its data set, for whom has it at hand.
        trainer: who trains its hospitals.
    """
    if images is None:
        images = images_of(job)
    simulation = prepare(images, job.study, seed=job.seed, trainer=trainer)
    return [
        replace(
            _oracle(_shown(job.study), job.seed, images, trainer), attack=job.study.hostile.attack
        )
        if arm is ArmName.ORACLE
        else _in_folder(lambda folder, arm=arm: run(simulation, arm, folder))  # type: ignore[misc]
        for arm in job.arms
    ]


@dataclass(frozen=True, slots=True)
class Impossible:
    """A job that no start can carry out."""

    reason: str


Ended = list[Outcome] | Impossible
"""How a job ended."""


def attempt(job: Job, images: Images | None = None, *, trainer: Trainer = in_blocks) -> Ended:
    """As ``carry_out``; a study that cannot be, or whose attackers cannot do what it asks, ends
    no campaign."""
    try:
        return carry_out(job, images, trainer=trainer)
    except (AttackError, ConfigurationError) as error:
        return Impossible(str(error))


def _shown(study: Study) -> Study:
    """The same hospitals hostile, by whatever attack: the oracle looks at none of their updates."""
    if not study.hostile_count:
        return study
    shown = study.hostile.model_copy(update={"attack": "sign_flip_1"})
    return study.model_copy(update={"hostile": shown})


@lru_cache(maxsize=64)
def _oracle(study: Study, seed: int, images: Images, trainer: Trainer) -> Outcome:
    simulation = prepare(images, study, seed=seed, trainer=trainer)
    return _in_folder(lambda folder: run(simulation, ArmName.ORACLE, folder))


def _in_folder(work: Callable[[Path], Outcome]) -> Outcome:
    where = _IN_MEMORY if _IN_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        return work(Path(folder))


def images_of(job: Job) -> Images:
    """The job's data set, read once.

    Raises:
        ConfigurationError: there is no such set, or it is not what it should be.
    """
    return _images(job.study.data.set, job.places)


@cache
def _images(data_set: str, places: Places) -> Images:
    return load_images(data_set, fashion=places.fashion, folder=places.features)


@cache
def fingerprint(features: Path | None = None, *, keeps_trust: bool = True) -> str:
    """Of everything that enters a result: the core, attacks, this simulation, and features.

    Args:
        features: the file of the study's data set, if it is one.
        keeps_trust: whether trust enters too; to the other arms it may be changed.
    """
    without = _ENTERS_NOT if keeps_trust else _ENTERS_NOT | _TRUST_ONLY
    digest = sources_hash(_ENTERS, without=without)
    if features is not None:
        with features.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


class Finished:
    """Outcomes of earlier starts; the file is owned by one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Read when asked for: those of other code may have other fields.
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        written = path.read_bytes() if path.exists() else b""
        # By a start that was killed: what is added must not go on in the middle of a line.
        self._is_broken_off = written[-1:] not in {b"\n", b""}
        for line in written.splitlines():
            entry = _entry(line)
            if entry is not None:
                key = entry["fingerprint"], entry["run"]
                self._known[key] = entry["outcome"]

    def get(self, job: Job, arm: ArmName) -> Outcome | None:
        """What the run gave, if it is known."""
        found = self._known.get((fingerprint_of(job, arm), job.key(arm)))
        return None if found is None else _outcome(found)

    def add(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        """Keep what a job gave, run by run."""
        lines = []
        for arm, outcome in zip(job.arms, outcomes, strict=True):
            code, run_key, told = fingerprint_of(job, arm), job.key(arm), plain(outcome)
            self._known[code, run_key] = told
            entry = {"fingerprint": code, "run": run_key, "outcome": told}
            lines.append(json.dumps(entry, allow_nan=False) + "\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._is_broken_off + "".join(lines))
        self._is_broken_off = False


def plain(outcome: Outcome) -> dict[str, Any]:
    """As JSON, which has no infinity."""
    found = asdict(outcome)
    return found | {"epsilon": found["epsilon"] if outcome.is_private else "inf"}


def _outcome(found: dict[str, Any]) -> Outcome | None:
    """``None`` where it is not what this code writes."""
    try:
        kept = {"epsilon": float(found["epsilon"]), "site_accuracy": tuple(found["site_accuracy"])}
        return Outcome(**found | kept)
    except (KeyError, TypeError, ValueError):
        return None


def _entry(line: bytes) -> dict[str, Any] | None:
    """``None`` for half a line, and for whatever else is no run: it is made again."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    is_run = isinstance(entry, dict) and isinstance(entry.get("outcome"), dict)
    return entry if is_run and {"fingerprint", "run"} <= entry.keys() else None


def fingerprint_of(job: Job, arm: ArmName) -> str:
    """Of everything that enters this run."""
    data_set = job.study.data.set
    is_file = data_set.endswith(FEATURES_SUFFIX)
    features = job.places.features / data_set if is_file else None
    return fingerprint(features, keeps_trust=arm in _TRUSTING)


Done = Callable[[Job, Ended], None]
Told = Callable[[Job, int], None]
"""A job, and the number of the round that begins, for who watches."""


class Engine(Protocol):
    """Where jobs are run. The outcomes are the same, to the bit."""

    def run(self, jobs: Sequence[Job], *, done: Done, told: Told) -> None:
        """Run every job, and hand over each as it ends, in any order."""
        ...


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Processes of this machine, one job at a time each."""

    processes: int

    def run(self, jobs: Sequence[Job], *, done: Done, told: Told) -> None:
        """As ``Engine.run``."""
        if self.processes == 1:
            for job in jobs:
                done(job, attempt(job))
            return
        with _workers(self.processes) as pool:
            futures = {pool.submit(attempt, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    done(futures[future], future.result())
            except BaseException:
                # Waiting, for the block's end would shut down once more, and cancel nothing.
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def unfinished(jobs: Sequence[Job], finished: Finished) -> list[Job]:
    """The jobs with the arms that are left to run; without those that have none left."""
    left = [
        replace(job, arms=tuple(arm for arm in job.arms if finished.get(job, arm) is None))
        for job in jobs
    ]
    return [job for job in left if job.arms]


def run_jobs(
    jobs: Sequence[Job], finished: Finished, *, engine: Engine, console: Console
) -> list[tuple[Job, list[Outcome]]]:
    """Run what is not yet known, with progress; everything in the order of ``jobs``.

    A job that cannot be carried out is told of on the console, and has no outcomes.

    Raises:
        ConfigurationError: a data set is missing.
    """
    for job in jobs:
        # In this process, so that what is missing is said once, and clearly.
        images_of(job)
    _run_unknown(unfinished(jobs, finished), finished, engine, console)
    found = []
    for job in jobs:
        outcomes = [finished.get(job, arm) for arm in job.arms]
        found.append((job, [each for each in outcomes if each is not None]))
    return found


def _run_unknown(jobs: Sequence[Job], finished: Finished, engine: Engine, console: Console) -> None:
    if not jobs:
        return
    with _progress(console) as progress:
        task = progress.add_task("simulating", total=sum(len(job.arms) for job in jobs))

        def done(job: Job, outcomes: Ended) -> None:
            if isinstance(outcomes, Impossible):
                said = f"{job.name}, seed {job.seed}, cannot be carried out: {outcomes.reason}"
                console.print(said, style="red", highlight=False, markup=False, soft_wrap=True)
            else:
                finished.add(job, outcomes)
            progress.update(task, advance=len(job.arms), description=job.name[:60])

        def told(job: Job, number: int) -> None:
            last = job.study.training.rounds
            progress.update(task, description=f"{job.name[:60]}, round {number} of {last}")

        engine.run(jobs, done=done, told=told)


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


def open_finished(folder: Path, name: str) -> Finished:
    """What earlier starts left in ``folder``, made where it is missing.

    Raises:
        ConfigurationError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make {folder}: {error.strerror}") from None
    return Finished(folder / f"{name}-runs.jsonl")
