"""A participant killed while it trains and while it sends: what it costs, and what it does not."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from matl_common.ids import NodeId
from matl_participant.core.account import AttemptState
from tests.system.federation import (
    HOSPITALS,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.narrow_link import narrow_link
from tests.system.processes import Daemon, until
from tests.system.story import charges, finish, of

pytestmark = [pytest.mark.system, pytest.mark.crash]
VICTIM, *OTHERS = HOSPITALS
ABANDONED, ACKNOWLEDGED, SEALED = (
    AttemptState.ABANDONED,
    AttemptState.ACKNOWLEDGED,
    AttemptState.SEALED,
)
MIB = 1 << 20


def start_until_the_victim_trains(
    federation: Federation, running: ExitStack, *, attempts_per_round: int = 1
) -> tuple[Daemon, dict[NodeId, Daemon]]:
    """Everybody runs; the victim's first training does not end."""
    federation.control(VICTIM).write_text("wait")
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    hospitals = {node: running.enter_context(federation.start_scripted(node)) for node in OTHERS}
    hospitals[VICTIM] = running.enter_context(
        federation.start_scripted(VICTIM, attempts_per_round=attempts_per_round)
    )
    until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
    return coordinator, hospitals


def test_a_participant_killed_while_training_pays_again_to_train_again_where_it_may(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material)
    coordinator, hospitals = start_until_the_victim_trains(
        federation, running, attempts_per_round=2
    )
    (worker,) = hospitals[VICTIM].workers()
    hospitals[VICTIM].kill()
    until(lambda: not worker.is_running(), what="the worker is gone with its daemon")
    federation.control(VICTIM).unlink()
    hospitals[VICTIM] = running.enter_context(
        federation.start_scripted(VICTIM, attempts_per_round=2)
    )
    finish(federation, coordinator, hospitals)

    # One training for each charge, and one charge for each training.
    assert charges(federation, VICTIM) == [(1, ABANDONED), (1, ACKNOWLEDGED), (2, ACKNOWLEDGED)]
    assert federation.trainings(VICTIM) == [1, 1, 2]
    for node in OTHERS:
        assert charges(federation, node) == [(1, ACKNOWLEDGED), (2, ACKNOWLEDGED)]
    events = logged_events(federation)
    assert [each["round"] for each in of(events, "update_admitted", node=VICTIM)] == [1, 2]
    assert of(events, "round_aborted") == []


def test_a_participant_killed_while_training_sits_the_round_out_where_it_may_not(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material, rounds={"quorum": 2, "collect_seconds": 12.0})
    coordinator, hospitals = start_until_the_victim_trains(federation, running)
    hospitals[VICTIM].kill()
    federation.control(VICTIM).unlink()
    hospitals[VICTIM] = running.enter_context(federation.start_scripted(VICTIM))
    finish(federation, coordinator, hospitals)

    assert charges(federation, VICTIM) == [(1, ABANDONED), (2, ACKNOWLEDGED)]
    assert federation.trainings(VICTIM) == [1, 2]
    events = logged_events(federation)
    (closed,) = of(events, "collection_closed", round=1)
    assert closed["excluded"] == {VICTIM: "late: no update before the deadline"}
    assert len(of(events, "model_released")) == 2


def test_a_participant_killed_while_sending_goes_on_from_the_last_durable_chunk(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    # 94 MB: an update of 94 chunks. How it would be scored is not this test's business.
    federation = found_federation(
        tmp_path,
        replace(material, direction=tmp_path / "none"),
        hospitals=(VICTIM,),
        study={"backbone": "resnet50_gn", "learning_rate": 1.0},
        rounds={"byzantine": 0},
    )
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    link = running.enter_context(narrow_link(federation.port, limit_bytes=40 * MIB))
    victim = running.enter_context(federation.start_scripted(VICTIM, address=link.address))
    until(link.is_full, what="a part of the update is on its way")
    victim.kill()
    (charged,) = federation.account(VICTIM).attempts
    assert charged.state is SEALED
    with federation.operator() as operator:
        status = operator.status().current_round
        assert status is not None
        assert status.phase == "collecting"

    link.open_wide()
    sent_before = link.sent_bytes
    victim = running.enter_context(federation.start_scripted(VICTIM, address=link.address))
    victim.wait_for("participant.update_admitted", round=1)
    coordinator.wait_for("update_admitted", round=1)
    victim.kill()
    coordinator.kill()
    # The rest alone was sent, give or take what TLS and gRPC had under way.
    assert link.sent_bytes - sent_before < 94_000_000 - 30 * MIB
    (attempt,) = federation.account(VICTIM).attempts
    assert (attempt.state, attempt.update_digest) == (ACKNOWLEDGED, charged.update_digest)
    assert federation.trainings(VICTIM) == [1]
    events = logged_events(federation)
    assert len(of(events, "update_declared", node=VICTIM)) == 1
    (admitted,) = of(events, "update_admitted", node=VICTIM)
    assert admitted["update"] == charged.update_digest


def test_an_update_sealed_before_a_kill_is_sent_once_the_coordinator_is_back(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material)
    coordinator, hospitals = start_until_the_victim_trains(federation, running)
    coordinator.kill()
    federation.control(VICTIM).unlink()
    hospitals[VICTIM].wait_for("participant.update_sealed", round=1)
    hospitals[VICTIM].kill()
    (sealed,) = federation.account(VICTIM).attempts
    assert sealed.state is SEALED

    coordinator = running.enter_context(federation.start_coordinator())
    hospitals[VICTIM] = running.enter_context(federation.start_scripted(VICTIM))
    finish(federation, coordinator, hospitals)
    assert charges(federation, VICTIM) == [(1, ACKNOWLEDGED), (2, ACKNOWLEDGED)]
    assert federation.trainings(VICTIM) == [1, 2]
    (admitted,) = of(logged_events(federation), "update_admitted", node=VICTIM, round=1)
    assert admitted["update"] == sealed.update_digest
