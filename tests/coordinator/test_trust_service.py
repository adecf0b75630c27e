"""Trust through the use cases: without a holdout set, refusals, alarms, appeals, metrics."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from matl_common.clock import utc_now
from matl_common.ids import NodeId
from matl_common.protocol import RoundStart
from matl_common.tlog.entry import parse_entry
from matl_coordinator.core.power import ByzantinePower
from matl_coordinator.core.rounds import Phase
from matl_coordinator.core.trust_record import TrustState
from matl_coordinator.service.alarms import alarms_of
from matl_coordinator.service.entries import alarm_entry
from matl_coordinator.service.operations import OperationError
from tests.coordinator.harness import (
    ELEMENTS,
    NODES,
    OPERATOR,
    Running,
    events_of,
    final_model,
    honest_update,
    loss,
    make_site,
    metrics_of,
    next_round,
    play,
    running,
    weights_of,
)

A, B, C = NODES
SIX = {f"hospital_{letter}": 500 for letter in "abcdef"}
FIVE = {f"hospital_{letter}": 500 for letter in "abcde"}
PEER: dict[str, Any] = {
    "has_holdout": False,
    "rule": "geometric_median",
    "pre_aggregation": ({"name": "nnm"},),
}


def harmful(node_id: NodeId, start: RoundStart) -> NDArray[np.float64]:
    return -honest_update(node_id, start)


def copied(node_id: NodeId, start: RoundStart) -> NDArray[np.float64]:
    return honest_update(A, start)


def named(coordinator: Running, event: str) -> list[dict[str, object]]:
    return [each for each in events_of(coordinator.store) if each["event"] == event]


async def test_without_a_holdout_set_a_study_learns_and_nobody_is_scored(tmp_path: Path) -> None:
    async with running(make_site(tmp_path, sizes=SIX, **PEER)) as coordinator:
        await play(coordinator)
        final = weights_of(coordinator.models.path(await final_model(coordinator)))
        assert loss(final) < 0.6 * loss(np.zeros(ELEMENTS))
        state = await coordinator.register.state()
        released = named(coordinator, "model_released")
        facts = coordinator.use_cases.overview.facts(state, utc_now())
    assert [each.get("accuracy") for each in released] == [None, None]
    assert state.round is not None
    assert (state.round.phase, state.round.evaluation) == (Phase.RELEASED, None)
    parts = [record.components for record in state.trust]
    assert [each.mode for each in parts if each is not None] == ["peers"] * 6
    assert {each.z for each in parts if each is not None} == {0.0}
    assert facts.protection.claim.startswith("MODE0: without a holdout set up to 1 of 6")
    assert facts.protection.warnings == ()


@pytest.mark.hostile
async def test_without_a_holdout_set_the_rule_withstands_what_is_claimed(tmp_path: Path) -> None:
    async with running(make_site(tmp_path, sizes=SIX, **PEER)) as coordinator:
        await play(coordinator, make={NodeId("hospital_f"): harmful})
        final = weights_of(coordinator.models.path(await final_model(coordinator)))
    assert loss(final) < 0.6 * loss(np.zeros(ELEMENTS))


async def test_a_peer_study_goes_on_from_any_phase_without_a_holdout_set(tmp_path: Path) -> None:
    site = make_site(tmp_path, sizes=SIX, **PEER)
    async with running(site) as coordinator:
        playing = asyncio.create_task(play(coordinator))
        state = await coordinator.register.state()
        while state.rounds_released < 1:
            await coordinator.register.wait_for_change(state, seconds=10.0)
            state = await coordinator.register.state()
        playing.cancel()
    async with running(site) as coordinator:
        await play(coordinator)
        assert (await coordinator.register.state()).rounds_released == 2


@pytest.mark.hostile
@pytest.mark.privacy
async def test_an_update_without_the_promised_noise_is_refused_logged_and_counted(
    tmp_path: Path,
) -> None:
    # Privacy whose noise is as long as the signal; hospital C leaves it out.
    study = {"epsilon": 8.0, "rounds": 1, "spare_rounds": 0, "max_grad_norm": 1.0}
    site = make_site(tmp_path, sizes=FIVE, study=study)
    async with running(site) as coordinator:
        sigma = coordinator.plan.privacy.noise_multiplier / 500

        def noised(node_id: NodeId, start: RoundStart) -> NDArray[np.float64]:
            draws = np.random.default_rng([ord(node_id[-1]), start.round_id])
            noise: NDArray[np.float64] = draws.normal(0.0, sigma, ELEMENTS)
            return honest_update(node_id, start) + noise

        makes = dict.fromkeys(coordinator.site.hospitals, noised)
        await play(coordinator, make={**makes, C: honest_update})
        state = await coordinator.register.state()
        (scored,) = named(coordinator, "round_scored")
        metrics = metrics_of(coordinator)
    assert state.round is not None
    assert {each.node_id for each in state.round.weights if each.weight == 0.0} == {C}
    assert isinstance(scored["refused"], dict)
    assert scored["refused"].keys() == {C}
    assert metrics['matl_updates_refused_total{reason="non_compliant"}'] == 1.0
    trust = {record.node_id: record for record in state.trust}
    assert "noise" in trust[C].reason
    assert trust[C].trust < trust[A].trust


@pytest.mark.hostile
async def test_hostile_power_above_a_third_calls_an_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = {NodeId("hospital_d"): harmful, NodeId("hospital_e"): harmful}
    site = make_site(tmp_path, sizes=FIVE, study={"rounds": 1}, byzantine=2)
    async with running(site) as coordinator:
        await play(coordinator, make=hostile)
        alarms = named(coordinator, "alarm")
        metrics = metrics_of(coordinator)
    (alarm,) = [each for each in alarms if each["kind"] == "byzantine_power"]
    assert alarm["round"] == 1
    assert float(str(alarm["figure"])) > float(str(alarm["bound"])) == pytest.approx(1 / 3)
    assert metrics["matl_byzantine_power_ratio"] == pytest.approx(float(str(alarm["figure"])))
    assert metrics['matl_alarms_total{kind="byzantine_power"}'] == 1.0
    said = capsys.readouterr().out
    assert "alarm_byzantine_power" in said
    assert "matl quarantine NODE" in said


@pytest.mark.hostile
async def test_hospitals_that_send_the_same_raise_a_cartel_alarm_and_share_one_weight(
    tmp_path: Path,
) -> None:
    clones = {NodeId(f"hospital_{letter}"): copied for letter in "bc"}
    site = make_site(
        tmp_path, sizes=FIVE, study={"rounds": 1}, byzantine=2, trust={"cartel_alarm_share": 0.5}
    )
    async with running(site) as coordinator:
        await play(coordinator, make=clones)
        alarms = [each["kind"] for each in named(coordinator, "alarm")]
        (scored,) = named(coordinator, "round_scored")
        state = await coordinator.register.state()
        metrics = metrics_of(coordinator)
    assert scored["clusters"] == [["hospital_a", "hospital_b", "hospital_c"]]
    assert alarms == ["cartel"]
    assert metrics["matl_cartel_risk"] == pytest.approx(0.6)
    assert state.round is not None
    weights = {each.node_id: each.weight for each in state.round.weights}
    assert sum(weights[each] for each in (A, B, C)) == pytest.approx(weights[NodeId("hospital_d")])


def test_power_without_anybody_honest_left_is_logged_as_unbounded() -> None:
    power = ByzantinePower(against=1.0, honest=0.0)
    (alarm,) = alarms_of(power, cartel_share=0.3)
    assert alarm.figure == math.inf
    told = parse_entry(alarm_entry(alarm, round_id=1, at=utc_now()).data)
    assert "figure" not in told
    assert told["unbounded"] is True
    (bounded,) = alarms_of(ByzantinePower(1.0, 2.0), cartel_share=0.3)
    assert "unbounded" not in parse_entry(alarm_entry(bounded, round_id=1, at=utc_now()).data)
    assert alarms_of(ByzantinePower(1.0, 3.0), cartel_share=0.3) == ()


async def test_metrics_tell_every_hospitals_trust_and_state(tmp_path: Path) -> None:
    async with running(make_site(tmp_path)) as coordinator:
        await play(coordinator, make={C: harmful})
        state = await coordinator.register.state()
        metrics = metrics_of(coordinator)
        size = coordinator.store.log_head().size
    for record in state.trust:
        assert metrics[f'matl_trust_score{{node="{record.node_id}"}}'] == record.trust
        for each in TrustState:
            key = f'matl_trust_state{{node="{record.node_id}",state="{each.value}"}}'
            assert metrics[key] == float(each is record.state)
    assert 0 < metrics["matl_log_entries"] <= size


async def test_an_appeal_is_on_record_until_it_is_answered_and_survives_a_restart(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)
    async with running(site) as coordinator:
        operations = coordinator.use_cases.operations
        await operations.quarantine(OPERATOR, C, "under inquiry")
        with pytest.raises(OperationError, match="no appeal"):
            await operations.deny(OPERATOR, C, "there is none")
        with pytest.raises(OperationError, match="not an enrolled"):
            await operations.appeal(OPERATOR, NodeId("hospital_z"), "let us in")
        with pytest.raises(OperationError, match="reason"):
            await operations.appeal(OPERATOR, C, " ")
        await operations.appeal(OPERATOR, C, "our labels are right")
        with pytest.raises(OperationError, match="is open"):
            await operations.appeal(OPERATOR, C, "again")
    async with running(site) as coordinator:
        operations = coordinator.use_cases.operations
        state = await coordinator.register.state()
        assert state.study is not None
        (appeal,) = state.study.appeals
        assert (appeal.text, appeal.is_open) == ("our labels are right", True)
        await operations.deny(OPERATOR, C, "second reading disagrees")
        await operations.appeal(OPERATOR, C, "third reading agrees")
        await operations.release(OPERATOR, C, "granted")
        state = await coordinator.register.state()
        assert state.study is not None
        (appeal,) = state.study.appeals
        told = [
            (each["event"], each.get("reason"), each.get("text"), each.get("appeal"))
            for each in events_of(coordinator.store)
            if each.get("node") == C
        ]
    assert (appeal.granted, appeal.answer, appeal.answered_by) == (True, "granted", OPERATOR)
    assert told == [
        ("node_quarantined", "under inquiry", None, None),
        ("appeal_filed", None, "our labels are right", None),
        ("appeal_denied", "second reading disagrees", None, None),
        ("appeal_filed", None, "third reading agrees", None),
        ("node_released", "granted", None, "granted"),
    ]


async def test_a_denied_appeal_changes_no_trust(tmp_path: Path) -> None:
    async with running(make_site(tmp_path)) as coordinator:
        operations = coordinator.use_cases.operations
        await operations.quarantine(OPERATOR, C, "under inquiry")
        before = (await coordinator.register.state()).trust
        await operations.appeal(OPERATOR, C, "please")
        await operations.deny(OPERATOR, C, "no")
        assert (await coordinator.register.state()).trust == before


async def test_the_composite_of_the_paper_can_be_chosen_and_follows_when_hospitals_send(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, trust={"composite": "matl-paper", "minimum_strength": 0.1})
    async with running(site) as coordinator:
        await asyncio.gather(*(next_round(coordinator, node) for node in NODES))
        await play(coordinator)
        records = (await coordinator.register.state()).trust
    for record in records:
        assert record.components is not None
        assert record.components.composite is not None
