"""Daemons and the simulation, given the same updates: the same trust, weights and models."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from matl.simulation.coordinator import Closed, Coordinator
from matl_common.identity.wrapping import load_key_file
from matl_common.ids import Digest, NodeId
from matl_common.protocol import StudyPlan
from matl_common.tensors import read_model, read_update
from matl_common.tlog.names import log_origin
from matl_common.wire.documents import parse_study_plan
from matl_common.worker import WorkerLimits, WorkerProcess
from matl_coordinator.config import Config, load_config
from matl_coordinator.core.judgement import Enrolment
from matl_coordinator.ports import HoldoutReport, RootGradient
from matl_coordinator.scoring.client import WorkerScorer
from matl_coordinator.service.entries import trust_facts
from matl_coordinator.store.sql import SqlStore
from tests.system.federation import (
    FEDERATION,
    HOSPITALS,
    PATIENTS,
    Event,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.story import finish, of

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
ROUNDS = 3
HOSTILE = HOSPITALS[-1]


@dataclass(frozen=True)
class Ended:
    """A study that daemons ran, and all that the simulation is given of it."""

    federation: Federation
    events: list[Event]
    config: Config
    plan: StudyPlan

    def first_model(self) -> bytes:
        (first, *_) = of(self.events, "round_scheduled")
        path = self.config.state_dir / "models" / f"{first['base_model']}.safetensors"
        schema, tensors = read_model(path)
        return b"".join(tensors[spec.name].tobytes() for spec in schema.tensors)

    def updates(self, number: int) -> dict[NodeId, np.ndarray]:
        folder = self.config.state_dir / "spool" / str(number)
        return {
            node: read_update(folder / f"{node}.update", self.plan.schema) for node in HOSPITALS
        }


class DaemonsScorer:
    """The daemon's scoring worker, a new one for every question."""

    def __init__(self, config: Config, models: Path) -> None:
        self._config = config
        self._models = models

    async def root(self, base_model: Digest, *, folder: Path) -> tuple[RootGradient, ...]:
        raise AssertionError("the rule asks for none")

    async def report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        async with self._worker() as scorer:
            return await scorer.report(base_model, updates, weights=weights, folder=folder)

    async def reach(self, base_model: Digest, candidate: Path) -> float:
        async with self._worker() as scorer:
            return await scorer.reach(base_model, candidate)

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[WorkerScorer]:
        command = (sys.executable, "-m", "matl_coordinator.scoring.worker")
        limits = WorkerLimits(idle_seconds=1.0, memory_bytes=self._config.worker.memory_bytes)
        scorer = WorkerScorer(
            WorkerProcess(command, limits=limits),
            config=self._config,
            model_path=lambda digest: self._models / f"{digest}.safetensors",
        )
        try:
            yield scorer
        finally:
            await scorer.close()


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Ended:
    """Three scripted hospitals, of which one goes the other way."""
    federation = found_federation(
        tmp_path_factory.mktemp("study"),
        material,
        study={
            "rounds": ROUNDS,
            "learning_rate": 0.02,
            "max_grad_norm": 10.0,
            "averaging": "second-half",
        },
        rounds={"keep_spooled": ROUNDS + 1},
    )
    backwards = federation.folder / "backwards.f32"
    (-np.fromfile(federation.direction, dtype="<f4")).tofile(backwards)
    with ExitStack() as running:
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        hospitals = {
            node: running.enter_context(
                replace(
                    federation, direction=backwards if node == HOSTILE else federation.direction
                ).start_scripted(node)
            )
            for node in HOSPITALS
        }
        finish(federation, coordinator, hospitals)
    config = load_config(federation.coordinator_config)
    store = SqlStore.connect(
        federation.database_url,
        log_origin=log_origin(FEDERATION),
        log_key=load_key_file(federation.coordinator_state / "log-encryption.key"),
    )
    try:
        study = store.load().study
    finally:
        store.close()
    assert study is not None
    return Ended(
        federation, logged_events(federation), config, parse_study_plan(study.plan.payload)
    )


def simulated(ended: Ended, folder: Path) -> list[Closed]:
    """Every round again, from the updates that the daemon spooled."""
    coordinator = Coordinator(
        ended.plan,
        enrolled=dict.fromkeys(HOSPITALS, Enrolment(PATIENTS)),
        aggregator=ended.config.rounds.aggregator,
        byzantine=ended.config.rounds.byzantine,
        first_model=[ended.first_model()],
        folder=folder,
        quorum=len(HOSPITALS),
        scorer=DaemonsScorer(ended.config, folder / "models"),
        policy=ended.config.trust.policy,
    )
    return [coordinator.close_round(ended.updates(number)) for number in range(1, ROUNDS + 1)]


def test_the_same_updates_give_the_models_trust_and_weights_of_the_daemons(
    ended: Ended, tmp_path: Path
) -> None:
    rounds = simulated(ended, tmp_path)
    released = of(ended.events, "model_released")
    assert [each.round.to_release for each in rounds] == [each["model"] for each in released]
    assert len({each.round.candidate for each in rounds}) == ROUNDS
    aggregated = of(ended.events, "model_aggregated")
    assert [each.round.reach for each in rounds] == [each["reach"] for each in aggregated]
    scored = of(ended.events, "round_scored")
    for mine, theirs in zip(rounds, scored, strict=True):
        assert mine.judgement is not None
        trust = {each.node_id: trust_facts(each) for each in mine.judgement.records}
        assert _plain(trust) == _plain(theirs["trust"])
    weights = [each["weights"] for each in of(ended.events, "round_weighted")]
    assert [
        {each.node_id: each.weight for each in mine.round.weights} for mine in rounds
    ] == weights
    last = {each.node_id: each.trust for each in rounds[-1].judgement.records}  # type: ignore[union-attr]
    assert last[HOSTILE] < min(last[node] for node in HOSPITALS[:-1])


def _plain(value: object) -> object:
    """As JSON gives it back."""
    match value:
        case Mapping():
            return {key: _plain(each) for key, each in value.items() if each is not None}
        case list() | tuple():
            return [_plain(each) for each in value]
    return value
