"""Other implementations' rules in the simulation: Flower's and ByzFL's own aggregators.

    make evidence ARGS='--only peers'

Flower runs in an environment of its own, which make installs. What comes out is in table 2
of docs/evidence.md, on the same updates, hospitals and attackers as the product's rules there.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from matl.simulation.arms import Arm, Decision, RoundInput
from matl.simulation.campaign import (
    Finished,
    Job,
    carry_out,
    images_of,
    jobs_of,
    open_finished,
)
from matl.simulation.datasets import FASHION_FOLDER, Float32Array
from matl.simulation.federation import Simulation, prepare, run_under
from matl.simulation.outcome import Outcome
from matl.simulation.study import ArmName, Study, read_study
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId
from matl_coordinator.core.trust_record import TrustRecord

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
Rows = NDArray[np.float32]
Rule = Callable[[Rows], Rows]

# How many Byzantine rows of n each accepts at most.
_MOST: Final[Mapping[str, Callable[[int], int]]] = {
    "median": lambda n: (n - 1) // 2,
    "trimmed-mean": lambda n: (n - 1) // 2,
    "krum": lambda n: (n - 3) // 2,
    "multi-krum": lambda n: (n - 3) // 2,
    "bulyan": lambda n: (n - 3) // 4,
    "nnm+trimmed-mean": lambda n: (n - 1) // 2,
    "geometric-median": lambda n: (n - 1) // 2,
    "centered-clipping": lambda n: (n - 1) // 2,
}
FLOWERS: Final = ("median", "trimmed-mean", "krum", "multi-krum", "bulyan")
BYZFLS: Final = ("krum", "multi-krum", "geometric-median", "centered-clipping", "nnm+trimmed-mean")


class RuleFailedError(RuntimeError):
    """The rule cannot be applied to what is left: it raised."""


class PeerArm:
    """A rule that somebody else wrote, on every admitted update; an ``arms.Arm``."""

    name = ArmName.MEAN
    trust: tuple[TrustRecord, ...] = ()

    def __init__(self, rule: Rule, *, first_model: Float32Array) -> None:
        self.refused: frozenset[NodeId] = frozenset()
        self._rule = rule
        self._model = first_model

    def decide(self, closed: RoundInput) -> Decision:
        """As ``Arm.decide``."""
        self.refused = frozenset(closed.violations)
        if not closed.updates:
            return Decision(None, {})
        try:
            change = self._rule(np.stack(list(closed.updates.values())))
        except RuleFailedError:
            # Flower ends the whole run; here the round is held, as the coordinator would.
            return Decision(None, {})
        self._model = (self._model + change).astype(np.float32)
        return Decision(self._model, dict.fromkeys(closed.updates, 1.0 / len(closed.updates)))

    def guess(self, updates: Mapping[NodeId, Float32Array], root: RoundInput) -> Float32Array:
        """As ``Arm.guess``."""
        return self._rule(np.stack(list(updates.values())))

    def released(self) -> Float32Array:
        """As ``Arm.released``."""
        return self._model


def byzfl_rule(name: str, f: int) -> Rule:
    """One of ByzFL's aggregators."""
    import byzfl

    match name:
        case "krum":
            found: Any = byzfl.Krum(f=f)
        case "multi-krum":
            found = byzfl.MultiKrum(f=f)
        case "geometric-median":
            found = byzfl.GeometricMedian()
        case "centered-clipping":
            clipping = byzfl.CenteredClipping(L=3)

            def found(rows: Rows) -> Rows:
                # The default is a hundred, far longer than any update here: then it is the mean.
                clipping.tau = float(np.median(np.linalg.norm(rows, axis=1)))
                return np.asarray(clipping(rows))
        case _:
            mix, trim = byzfl.NNM(f=f), byzfl.TrMean(f=f)

            def found(rows: Rows) -> Rows:
                return np.asarray(trim(mix(rows)))

    def rule(rows: Rows) -> Rows:
        try:
            return np.asarray(found(rows), dtype=np.float32)
        except (ValueError, IndexError) as error:
            raise RuleFailedError(str(error)) from error

    return rule


@contextmanager
def flower_rules(python: Path) -> Iterator[Callable[[str, int], Rule]]:
    """Flower's aggregators, asked in their own interpreter."""
    script = Path(__file__).with_name("flower_rules.py")
    # Flower counts its starts over the network otherwise.
    env = {"PATH": os.environ["PATH"], "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        ) as process,
    ):
        source, target = Path(folder) / "rows.npy", Path(folder) / "answer.npy"

        def ask(name: str, f: int, rows: Rows) -> Rows:
            assert process.stdin is not None, "it is a pipe"
            assert process.stdout is not None, "it is a pipe"
            np.save(source, rows)
            process.stdin.write(f"{name} {f} {source} {target}\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
            if answer == "failed":
                raise RuleFailedError(name)
            if answer != "done":
                raise RuntimeError(f"Flower's interpreter {python} ended")
            return np.asarray(np.load(target), dtype=np.float32)

        yield lambda name, f: partial(ask, name, f)
        assert process.stdin is not None, "it is a pipe"
        process.stdin.close()


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
        replace(job, arms=tuple(_arms()))
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
    missing = [
        replace(job, arms=tuple(a for a in job.arms if finished.get(job, a) is None))
        for job in jobs
    ]
    missing = [job for job in missing if job.arms]
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
        return carry_out(Job(job.study, job.seed, (ArmName.ORACLE,), job.places))[0]
    whose, rule = name.split(" ")
    f = min(simulation.federation.byzantine, _MOST[rule](job.study.members))
    return _outcome(simulation, name, (flowers if whose == "flwr" else byzfl_rule)(rule, f))


def _keep(finished: Finished, job: Job, name: Any, outcome: Outcome) -> None:
    finished.add(Job(job.study, job.seed, (name,), job.places), [outcome])
