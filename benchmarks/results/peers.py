"""Other implementations' rules in the simulation: Flower's and ByzFL's own aggregators.

    make evidence ARGS='--only peers'

Flower runs in an environment of its own, which make installs. What comes out is in table 2
of docs/evidence.md, on the same updates, hospitals and attackers as the product's rules there.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.results.peer_rules import (
    BYZFLS,
    FLOWERS,
    MOST,
    PeerArm,
    Rule,
    byzfl_rule,
    flower_rules,
    rules_digest,
)
from matl.simulation.arms import Arm
from matl.simulation.campaign import (
    Finished,
    Job,
    carry_out,
    images_of,
    jobs_of,
    open_finished,
    unfinished,
)
from matl.simulation.datasets import FASHION_FOLDER
from matl.simulation.federation import Simulation, prepare, run_under
from matl.simulation.outcome import Outcome
from matl.simulation.study import ArmName, Study, read_study
from matl_common.errors import ConfigurationError

NAME: Final = "peers"
STUDY: Final = Path("benchmarks/studies/robust-n20.toml")
ATTACKS: Final = (
    "none",
    "sign_flip_5",
    "label_complement",
    "alie",
    "ipm_2",
    "mimic",
    "within_classes",
)
HOSTILE: Final = (0, 4, 9)
SEEDS: Final = 5
ALPHA: Final = 0.5
OUT: Final = Path("out/evidence")
FLOWER: Final = Path(os.environ.get("MATL_FLOWER_PYTHON", "out/venv-flower/bin/python"))


def studies() -> list[Study]:
    """Those of table 2 that the others' rules are run on."""
    return [
        study
        for study in read_study(STUDY).studies
        if study.hostile.attack in ATTACKS
        and study.hostile_count in HOSTILE
        and study.hospitals.alpha == ALPHA
    ]


def peer_jobs(*, fashion: Path = FASHION_FOLDER) -> list[Job]:
    """Every run that is asked for: another implementation's rule, or the oracle."""
    wanted = set(studies())
    jobs = jobs_of(read_study(STUDY), fashion=fashion)
    return [
        replace(job, arms=tuple(_arms()), beside=rules_digest())
        for job in jobs
        if job.study in wanted and job.seed < SEEDS
    ]


def _arms() -> list[Any]:
    # Names of arms beside those of the product's.
    return [ArmName.ORACLE, *(f"flwr {n}" for n in FLOWERS), *(f"byzfl {n}" for n in BYZFLS)]


def _outcome(simulation: Simulation, name: str, rule: Rule) -> Outcome:
    arm: Arm = PeerArm(rule, first_model=simulation.learner.initial())
    return replace(run_under(simulation, arm), arm=name)


def run_peers(
    jobs: Sequence[Job], console: Console, *, flower: Path = FLOWER, out: Path = OUT
) -> None:
    """Run those of the jobs that are not finished, one after the other.

    Raises:
        ConfigurationError: Flower is not installed, or a data set is missing.
    """
    finished = open_finished(out, NAME)
    missing = unfinished(jobs, finished)
    if not missing:
        return
    if not flower.exists():
        raise ConfigurationError(f"{flower} is missing, which has Flower's rules; make peers")
    with flower_rules(flower) as flowers:
        for job in missing:
            simulation = prepare(images_of(job), job.study, seed=job.seed)
            for name in job.arms:
                found = _one(simulation, job, name, flowers)
                _keep(finished, job, name, found)
                console.print(f"{job.name}: {name} {100 * found.accuracy:.1f} %")


def _one(
    simulation: Simulation, job: Job, name: str, flowers: Callable[[str, int], Rule]
) -> Outcome:
    if name == ArmName.ORACLE:
        return carry_out(replace(job, arms=(ArmName.ORACLE,)))[0]
    whose, rule = name.split(" ")
    f = min(simulation.federation.byzantine, MOST[rule](job.study.members))
    return _outcome(simulation, name, (flowers if whose == "flwr" else byzfl_rule)(rule, f))


def _keep(finished: Finished, job: Job, name: Any, outcome: Outcome) -> None:
    finished.add(replace(job, arms=(name,)), [outcome])
