"""Whom the coordinator counts, and how much, in the step along which it scores a round."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from matl_common.ids import NodeId, digest_of
from matl_common.worker import WorkerCrashedError, WorkerProcess
from matl_coordinator.core.judgement import Enrolment, Judgement, judge_round, standing_weights
from matl_coordinator.core.robust.gram import Gram
from matl_coordinator.core.robust.root import RootRow
from matl_coordinator.core.trust import quarantine, release
from matl_coordinator.core.trust_record import initial_record
from matl_coordinator.ports import HoldoutReport
from matl_coordinator.scoring.client import WorkerScorer
from matl_coordinator.service import judging
from tests.coordinator.harness import (
    NODES,
    OPERATOR,
    Running,
    after_scoring,
    events_of,
    make_site,
    play,
    running,
)

A, B, C = NODES
Message = dict[str, Any]
TRAINED_BY = {
    "steps": "steps_per_round",
    "learning_rate": "learning_rate",
    "max_grad_norm": "max_grad_norm",
}


def watched(coordinator: Running) -> list[Mapping[NodeId, float]]:
    """The weights of every step that the scorer is asked about, as it is."""
    asked: list[Mapping[NodeId, float]] = []

    async def watching(found: HoldoutReport, weights: Mapping[NodeId, float]) -> HoldoutReport:
        asked.append(weights)
        return found

    after_scoring(coordinator, watching)
    return asked


def rows_on_record(coordinator: Running) -> set[str]:
    (scored,) = (each for each in events_of(coordinator.store) if each["event"] == "round_scored")
    return {name.partition("-")[0] for name in cast("dict[str, str]", scored["root"])}


async def test_who_is_in_quarantine_has_no_part_in_the_step(tmp_path: Path) -> None:
    async with running(make_site(tmp_path, study={"rounds": 1})) as coordinator:
        asked = watched(coordinator)
        await coordinator.use_cases.operations.quarantine(OPERATOR, C, "stolen laptop")
        await play(coordinator)
    (weights,) = asked
    assert weights[C] == 0.0
    assert min(weights[A], weights[B]) > 0.0


async def test_updates_are_scored_by_rows_along_the_step(tmp_path: Path) -> None:
    async with running(make_site(tmp_path, study={"rounds": 1})) as coordinator:
        await play(coordinator)
        assert rows_on_record(coordinator) == {"path"}


async def test_what_the_rule_asks_for_is_on_record_beside_it(tmp_path: Path) -> None:
    site = make_site(tmp_path, rule="fltrust", study={"rounds": 1})
    async with running(site) as coordinator:
        await play(coordinator)
        assert rows_on_record(coordinator) == {"path", "root"}


async def test_updates_are_judged_along_the_step_whatever_the_rule_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []

    def watching(gram: Gram, *, root: Sequence[RootRow], **more: Any) -> Judgement:
        judged.extend(row.name for row in root)
        return judge_round(gram, root=root, **more)

    monkeypatch.setattr(judging, "judge_round", watching)
    site = make_site(tmp_path, rule="fltrust", study={"rounds": 1})
    async with running(site) as coordinator:
        await play(coordinator)
    assert {name.partition("-")[0] for name in judged} == {"path"}


async def test_the_worker_is_told_what_each_update_counts_for_and_says_how_far(
    tmp_path: Path,
) -> None:
    told: list[Message] = []

    class Worker:
        reach = 0.25

        async def run(self, request: Message, *, timeout_seconds: float) -> Message:
            told.append(request)
            nodes = {name: {"loss_improvement": 0.0} for name in request.get("updates", ())}
            return {"nodes": nodes, "rows": [], "reach": self.reach, "beyond": None}

    study = {"steps_per_round": 7, "learning_rate": 0.25, "max_grad_norm": 0.5}
    site, worker = make_site(tmp_path, study=study), Worker()
    scorer = WorkerScorer(
        cast("WorkerProcess", worker), config=site.config, model_path=lambda _: tmp_path
    )
    asked = {A: tmp_path / "a", B: tmp_path / "b"}
    weights = {A: 0.25, B: 3.0, C: 1.0}
    model = digest_of(b"model")
    report = await scorer.report(model, asked, weights=weights, folder=tmp_path)
    (request,) = told
    assert request["weights"] == {A: 0.25, B: 3.0}
    study = site.config.study.model_dump()
    for name, of_study in TRAINED_BY.items():
        assert request[name] == study[of_study]
    assert report.reach == 0.25
    for worker.reach in (0.0, 1.5, float("nan")):
        with pytest.raises(WorkerCrashedError, match="reach"):
            await scorer.report(model, asked, weights=weights, folder=tmp_path)
        with pytest.raises(WorkerCrashedError, match="reach"):
            await scorer.reach(model, tmp_path / "candidate")
    worker.reach = 0.125
    assert await scorer.reach(model, tmp_path / "candidate") == 0.125
    assert told[-1]["job"] == "reach"
    assert told[-1]["candidate"] == str(tmp_path / "candidate")


def test_a_hospital_counts_by_its_trust_and_its_capped_size() -> None:
    enrolled = {A: Enrolment(9000), B: Enrolment(100), C: Enrolment(100)}
    trust = [quarantine(initial_record(C), why="stolen laptop")]
    weights = standing_weights(trust, enrolled, byzantine=1)
    assert weights[C] == 0.0
    # What lies beyond the gradients is asked about along this very step, and decides after it.
    aside = [*trust, replace(initial_record(A), beyond=-1.0)]
    assert standing_weights(aside, enrolled, byzantine=1) == weights
    assert 0.0 < weights[B] < 100.0
    assert weights[B] < weights[A] < weights[B] + 200.0
    back = standing_weights([release(trust[0], why="found")], enrolled, byzantine=1)
    assert back[C] == pytest.approx(back[B] * (0.55 - 0.3) / (0.6 - 0.3))
