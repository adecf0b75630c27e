"""The witness beside the engine: it stops the hospital, delays nothing, and leaves last."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from prometheus_client import generate_latest

from matl_common.attestation.simulated import simulate
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import NodeId
from matl_participant.engine import Outcome
from matl_participant.log_files import WitnessStateError
from tests.participant.log_simulator import SimulatedLog
from tests.participant.simulator import HOSPITAL, SimulatedCoordinator
from tests.participant.test_attestation import POLICY, failures, section
from tests.participant.test_daemon import (
    ABANDONED,
    ACKNOWLEDGED,
    SEALED,
    Hospital,
    ended,
    running,
    started,
    until,
)

Keys = dict[NodeId, NodeFolder]
FAST = "[daemon]\nwitness_seconds = 0.02\ndrain_seconds = 5"


@pytest.fixture
async def coordinator(keys: Keys, log: SimulatedLog) -> AsyncIterator[SimulatedCoordinator]:
    async with SimulatedCoordinator(keys, log=log) as running_coordinator:
        yield running_coordinator


def real_daemon(hospital: Hospital) -> tuple[str, ...]:
    return ("-m", "matl_participant", "-c", str(hospital.config_file))


@pytest.fixture
def hospital(tmp_path: Path, keys: Keys, coordinator: SimulatedCoordinator) -> Hospital:
    witness_key = keys[HOSPITAL].witness_key
    return Hospital(tmp_path, keys, coordinator.address, extra=FAST, witness_key=witness_key)


async def test_a_hospital_leaves_a_complete_study_with_its_last_proof_and_cosignature(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
        log.note("model_released")
        coordinator.complete()
        assert await run.outcome() is Outcome.FINISHED
    assert len(hospital.files("studies/*/proofs/round-000001.tlog-proof")) == 1
    assert len(log.lines[log.size]) == 1
    metrics = generate_latest(run.participant.reports.metrics.registry).decode()
    assert f"matl_participant_log_cosigned_size {log.size}.0" in metrics
    assert "matl_participant_log_proofs_owed 0.0" in metrics
    assert "matl_participant_log_distrusted 0.0" in metrics


async def test_a_log_that_does_not_answer_delays_no_training_and_the_leave_for_a_while_only(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    hospital.extra = "[daemon]\nwitness_seconds = 0.02\ndrain_seconds = 0.3"
    log.faults.abort_checkpoint = [grpc.StatusCode.UNAVAILABLE] * 10_000
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
        coordinator.complete()
        assert await run.outcome() is Outcome.FINISHED
    assert log.lines == {}


async def test_a_coordinator_that_is_back_is_witnessed_as_soon_as_it_was_greeted(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    hospital.extra = "[daemon]\nwitness_seconds = 3600"
    coordinator.faults.abort = [grpc.StatusCode.UNAVAILABLE]
    log.faults.abort_checkpoint = [grpc.StatusCode.UNAVAILABLE]
    async with running(hospital) as run:
        await until(lambda: log.size in log.lines)
        assert failures(run, "hello") == failures(run, "witness") == 1


@pytest.mark.hostile
@pytest.mark.parametrize("training", ["wait", "done"])
async def test_a_forked_log_halts_the_hospital_which_stays_halted_until_it_is_settled(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog, training: str
) -> None:
    hospital.extra = "[daemon]\nwitness_seconds = 0.02\ndrain_seconds = 0.1"
    hospital.control(train=training)
    coordinator.faults.delay_admission = 1_000
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: 5 in log.lines and bool(hospital.jobs("train")))
        if training == "done":
            await until(lambda: hospital.states() == [SEALED])
        log.rewrite(keep=4, size=5)
        assert await run.outcome() is Outcome.HALTED
    # What was charged is in the ledger as it is, and the study is not over for good.
    assert hospital.states() == [ABANDONED if training == "wait" else SEALED]
    assert hospital.account().halted is None
    metrics = generate_latest(run.participant.reports.metrics.registry).decode()
    assert "matl_participant_log_distrusted 1.0" in metrics
    assert "matl_participant_halted 1.0" in metrics
    # Another life says so before it says a word to the coordinator.
    hellos, asked = coordinator.hellos, len(log.asked)
    async with started(hospital, *real_daemon(hospital)) as process:
        status, _, err = await ended(process)
    assert status == 3
    assert "fork-5-5.json" in err
    assert "log-evidence/settled" in err
    assert (coordinator.hellos, len(log.asked)) == (hellos, asked)
    # Settled, but still the other history: halted again. With the other one agreed on: it goes on.
    (hospital.folder / "state/log-evidence/settled").mkdir()
    for agreed in (False, True):
        (evidence,) = hospital.files("log-evidence/*.json")
        settled = evidence.parent / "settled" / evidence.name
        settled.unlink(missing_ok=True)
        shutil.move(evidence, settled)
        if agreed:
            (hospital.folder / "state/log-checkpoint.txt").unlink()
        async with running(hospital) as run:
            if not agreed:
                assert await run.outcome() is Outcome.HALTED
                continue
            await until(lambda: 5 in log.lines)
            run.participant.drain()
            assert await run.outcome() is Outcome.DRAINED


async def test_a_fork_that_shows_at_the_very_end_still_halts(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    hospital.extra = "[daemon]\nwitness_seconds = 5\ndrain_seconds = 30"
    async with running(hospital) as run:
        await until(lambda: 5 in log.lines and coordinator.hellos == 1)
        log.rewrite(keep=4, size=5)
        coordinator.complete()
        assert await run.outcome() is Outcome.HALTED


async def test_a_witness_that_cannot_go_on_ends_the_participant_in_order(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    state = hospital.folder / "state"
    state.mkdir()
    (state / "log-checkpoint.txt").write_text("damaged")
    coordinator.open_round(1)
    async with running(hospital) as run:
        with pytest.raises(WitnessStateError):
            await run.outcome()
    async with started(hospital, *real_daemon(hospital)) as process:
        status, _, err = await ended(process)
    assert status == 1
    assert "Restore it from a backup" in err


async def test_a_hospital_without_a_witness_key_says_so_and_asks_the_log_nothing(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    hospital.witness_key = None
    coordinator.complete()
    async with started(hospital) as process:
        status, _, err = await ended(process)
    assert status == 0
    assert '"event": "participant.does_not_witness"' in err
    assert log.asked == []


@pytest.mark.crash
async def test_a_drain_ends_a_witness_that_waits_for_an_answer(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    async with running(hospital) as run:
        await until(lambda: 5 in log.lines)
        run.participant.drain()
        assert await asyncio.wait_for(run.task, 5) is Outcome.DRAINED


@pytest.mark.privacy
async def test_the_witness_goes_on_while_the_hospital_trains(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital):
        await until(lambda: bool(hospital.jobs("train")))
        log.note("later")
        await until(lambda: log.size in log.lines)


@pytest.mark.attestation
async def test_a_log_is_neither_asked_nor_cosigned_before_its_machine_was_attested(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    (hospital.folder / "attestation.toml").write_text(POLICY)
    # It is woken by the evidence, not by its own clock.
    hospital.extra = f"[daemon]\nwitness_seconds = 3600\n{section()}"
    async with running(hospital) as run:
        await until(lambda: failures(run, "attest") >= 2)
        assert (log.asked, log.lines) == ([], {})
        coordinator.simulation = simulate(datetime.now(UTC))
        await until(lambda: log.size in log.lines)


@pytest.mark.attestation
async def test_the_witness_is_silent_again_once_evidence_is_refused(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    (hospital.folder / "attestation.toml").write_text(POLICY)
    hospital.extra = f"{FAST}\npoll_seconds = 1\n{section(period_seconds=0.5)}"
    simulation = coordinator.simulation = simulate(datetime.now(UTC))
    async with running(hospital) as run:
        await until(lambda: 5 in log.lines)
        coordinator.simulation = None
        await until(lambda: failures(run, "attest") >= 1)
        asked = len(log.asked)
        log.note("later")
        await until(lambda: failures(run, "attest") >= 3)
        assert len(log.asked) == asked
        assert failures(run, "witness") == 0
        coordinator.simulation = simulation
        await until(lambda: 6 in log.lines)


@pytest.mark.attestation
async def test_the_witness_is_silent_once_evidence_is_outdated_while_the_hospital_trains(
    hospital: Hospital, coordinator: SimulatedCoordinator, log: SimulatedLog
) -> None:
    (hospital.folder / "attestation.toml").write_text(POLICY)
    hospital.extra = f"{FAST}\n{section(period_seconds=1.0)}"
    hospital.control(train="wait")
    coordinator.simulation = simulate(datetime.now(UTC))
    coordinator.open_round(1)
    async with running(hospital):
        await until(lambda: bool(hospital.jobs("train")) and 5 in log.lines)
        await asyncio.sleep(1.0)
        asked = len(log.asked)
        log.note("later")
        # Some ten passes.
        await asyncio.sleep(0.2)
        assert len(log.asked) == asked
        hospital.control()
        await until(lambda: hospital.states() == [ACKNOWLEDGED] and log.size in log.lines)
