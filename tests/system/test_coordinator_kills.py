"""The coordinator killed in every phase, its worker killed, and another database."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from matl_participant.core.account import AttemptState
from tests.postgres import free_port
from tests.system.conftest import STUDY_ROUNDS
from tests.system.federation import Federation, Material, found_federation, logged_events
from tests.system.processes import Daemon, until
from tests.system.story import (
    Story,
    charges,
    finish,
    of,
    run_to_the_end,
    start_hospitals,
    tell,
)

pytestmark = pytest.mark.system
PHASES = ("collecting", "scoring", "aggregating", "evaluating")


def restarted(federation: Federation, running: ExitStack) -> Daemon:
    return running.enter_context(federation.start_coordinator())


@pytest.mark.crash
@pytest.mark.timeout(300)
def test_a_coordinator_killed_in_every_phase_ends_with_the_same_model_and_log(
    tmp_path: Path, material: Material, undisturbed: Story, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material, study={"rounds": STUDY_ROUNDS})
    coordinator = restarted(federation, running)
    coordinator.wait_for("founding_study", step="making the first model")
    coordinator.kill()
    coordinator = restarted(federation, running)
    coordinator.wait_for("coordinator_ready")
    hospitals = start_hospitals(federation, running)
    resumed_in = []
    for round_id, phase in enumerate(PHASES, start=1):
        coordinator.wait_for("round_phase", round=round_id, phase=phase)
        coordinator.kill()
        coordinator = restarted(federation, running)
        resumed_in.append(coordinator.wait_for("coordinator_ready"))
    finish(federation, coordinator, hospitals)

    # A kill comes a moment after the line: the phase may have ended by itself by then.
    following = (*PHASES[1:], "released")
    for round_id, ready in enumerate(resumed_in, start=1):
        assert ready["round"] == round_id
        assert ready["phase"] in (PHASES[round_id - 1], following[round_id - 1])
    story = tell(federation)
    assert story.final_model == undisturbed.final_model
    assert story.entries == undisturbed.entries
    # The founding was killed before the daemon had anything to note.
    assert len(of(logged_events(federation), "coordinator_started")) == 1 + len(PHASES)
    for node in federation.hospitals:
        expected = [(number, AttemptState.ACKNOWLEDGED) for number in range(1, STUDY_ROUNDS + 1)]
        assert charges(federation, node) == expected
        assert federation.trainings(node) == [number for number, _ in expected]


@pytest.mark.crash
@pytest.mark.timeout(300)
def test_a_coordinator_that_moves_to_another_of_its_addresses_is_followed(
    tmp_path: Path, material: Material, undisturbed: Story, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material, study={"rounds": STUDY_ROUNDS})
    moved = replace(federation, port=free_port())
    addresses = f"{federation.address}, {moved.address}"
    coordinator = restarted(federation, running)
    coordinator.wait_for("coordinator_ready")
    hospitals = {
        node: running.enter_context(federation.start_scripted(node, address=addresses))
        for node in federation.hospitals
    }
    coordinator.wait_for("round_phase", round=2, phase="collecting")
    coordinator.kill()
    coordinator = restarted(moved, running)
    coordinator.wait_for("coordinator_ready")
    # Of round 1's model, as before the kill.
    assert moved.metric("matl_model_accuracy_ratio") > 0.0
    finish(moved, coordinator, hospitals)
    for hospital in hospitals.values():
        assert hospital.events("participant.coordinator_address", address=moved.address)
    assert tell(moved) == undisturbed


@pytest.mark.crash
def test_a_killed_scoring_worker_costs_a_retry_and_a_log_line(
    tmp_path: Path, material: Material, undisturbed: Story, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material, study={"rounds": STUDY_ROUNDS})
    coordinator = restarted(federation, running)
    coordinator.wait_for("coordinator_ready")
    # Stopped, so that it cannot have answered when it is killed.
    (worker,) = coordinator.workers()
    worker.suspend()
    hospitals = start_hospitals(federation, running)
    coordinator.wait_for("round_phase", round=1, phase="scoring")
    worker.kill()
    failure = coordinator.wait_for("phase_failed", round=1, phase="scoring", attempt=1)
    assert "SIGKILL" in str(failure["reason"])
    until(
        lambda: federation.metric("matl_phase_failures_total", phase="scoring") == 1.0,
        what="the failed attempt is counted",
    )
    finish(federation, coordinator, hospitals)
    assert len(coordinator.events("phase_failed")) == 1
    assert tell(federation) == undisturbed


@pytest.mark.postgres
def test_a_study_on_postgresql_ends_with_the_same_model_and_log(
    tmp_path: Path,
    material: Material,
    undisturbed: Story,
    running: ExitStack,
    postgres_database: str,
) -> None:
    federation = found_federation(
        tmp_path, material, database=postgres_database, study={"rounds": STUDY_ROUNDS}
    )
    assert run_to_the_end(federation, running) == undisturbed
    assert not (federation.coordinator_state / "coordinator.db").exists()
