"""A hospital that requires evidence of its coordinator's machine, over real mutual TLS."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from matl_common.attestation.evidence import Technology, Verdict
from matl_common.attestation.simulated import MEASUREMENT, simulate
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.certificates import (
    COORDINATOR_ROLES,
    PARTICIPANT_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
)
from matl_common.identity.keys import (
    generate_private_key,
    load_private_key,
    private_key_pem,
    spki_pin,
)
from matl_common.identity.node_folder import NodeFolder
from matl_common.identity.tls import channel_credentials, channel_options, peer_certificate
from matl_common.ids import NodeId, digest_of
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from matl_participant.attestation import coordinators_leaf
from matl_participant.client import UntrustedCoordinatorError
from matl_participant.connection import RenewingChannel
from matl_participant.daemon import attestation_of
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports
from tests.participant.simulator import COORDINATOR, HOSPITAL, SPIFFE, SimulatedCoordinator
from tests.participant.test_daemon import ACKNOWLEDGED, SEALED, Hospital, Running, running, until

if TYPE_CHECKING:
    from matl_common.wire.federation_pb2_grpc import FederationServiceAsyncStub

pytestmark = pytest.mark.attestation

Keys = dict[NodeId, NodeFolder]
POLICY = f"""
allow_simulated = true
[sev_snp]
measurements = ["{MEASUREMENT}"]
minimum_tcb = {{}}
"""


@pytest.fixture
def hospital(tmp_path: Path, keys: Keys, coordinator: SimulatedCoordinator) -> Hospital:
    """Return a hospital that accepts SIMULATED evidence and nothing less."""
    (tmp_path / "attestation.toml").write_text(POLICY)
    coordinator.simulation = simulate(datetime.now(UTC))
    return Hospital(tmp_path, keys, coordinator.address, extra=section())


def section(**settings: object) -> str:
    lines = (f"{key} = {value}\n" for key, value in settings.items())
    return '[attestation]\npolicy = "attestation.toml"\n' + "".join(lines)


def failures(run: Running, action: str) -> int:
    """How often an action failed."""
    metrics = generate_latest(run.participant.reports.metrics.registry).decode()
    wanted = f'matl_participant_failures_total{{action="{action}"}} '
    return next(
        (int(float(line.removeprefix(wanted))) for line in metrics.splitlines() if wanted in line),
        0,
    )


async def test_with_valid_evidence_a_round_goes_as_without(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.open_round(1)
    with capture_logs() as logs:
        async with running(hospital) as run:
            await until(lambda: hospital.states() == [ACKNOWLEDGED])
            metrics = generate_latest(run.participant.reports.metrics.registry).decode()
    assert "matl_participant_coordinator_attested_SIMULATED 1.0" in metrics
    assert "matl_participant_coordinator_attested 0.0" in metrics
    (attested,) = (e for e in logs if "coordinator_attested" in e["event"])
    assert attested["event"] == "participant.coordinator_attested_SIMULATED"
    assert attested["verdict"].startswith("SIMULATED, proves nothing")
    assert attested["config_digest"] == coordinator.config_digest
    assert len(coordinator.nonces) == 1


def test_no_metric_takes_simulated_evidence_for_genuine() -> None:
    reports = Reports(Metrics())
    for technology in Technology:
        is_simulated = technology is Technology.SIMULATED
        verdict = Verdict(technology, "ab" * 48, "a platform", "cd" * 32, "ef" * 32, is_simulated)
        reports.attested(verdict, config_digest=digest_of(b"x"), until=datetime.now(UTC))
        genuine, simulated = attested_metrics(reports)
        assert (genuine, simulated) == (not is_simulated, is_simulated)
        reports.unattested()
        assert attested_metrics(reports) == (0, 0)


def attested_metrics(reports: Reports) -> tuple[float | None, float | None]:
    """Genuine, and SIMULATED."""
    name, registry = "matl_participant_coordinator_attested", reports.metrics.registry
    return registry.get_sample_value(name), registry.get_sample_value(f"{name}_SIMULATED")


@pytest.mark.parametrize("fault", ["not attested", "refused", "unbound", "wrong configuration"])
async def test_without_valid_evidence_nothing_is_said_trained_or_charged_until_there_is(
    hospital: Hospital, coordinator: SimulatedCoordinator, fault: str
) -> None:
    policy = hospital.folder / "attestation.toml"
    match fault:
        case "not attested":
            coordinator.simulation = None
        case "refused":
            policy.write_text(POLICY.replace("allow_simulated = true", ""))
        case "unbound":
            coordinator.plan = replace(coordinator.plan, federation_id="another")
        case "wrong configuration":
            policy.write_text(f'config_digests = ["{digest_of(b"x")}"]\n{POLICY}')
    coordinator.open_round(1)
    with capture_logs() as logs:
        async with running(hospital) as run:
            await until(lambda: failures(run, "attest") >= 2)
    assert coordinator.hellos == 0
    assert hospital.jobs("prepare") == []
    assert hospital.account().attempts == ()
    assert {each["event"] for each in logs if each["log_level"] == "error"} == {
        "participant.retrying"
    }
    # The operator sees why, and mends it.
    coordinator.simulation = simulate(datetime.now(UTC))
    coordinator.plan = replace(coordinator.plan, federation_id="dr-study")
    policy.write_text(POLICY)
    coordinator.open_round(1)
    async with running(hospital):
        await until(lambda: hospital.states() == [ACKNOWLEDGED])


async def test_every_question_has_a_nonce_of_its_own_and_is_asked_again_each_period(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.extra = section(period_seconds=0.2) + "[daemon]\npoll_seconds = 1\n"
    async with running(hospital):
        await until(lambda: len(coordinator.nonces) >= 3)
    assert len(set(coordinator.nonces)) == len(coordinator.nonces)
    assert {len(nonce) for nonce in coordinator.nonces} == {32}


async def test_an_update_is_not_sent_on_evidence_that_no_longer_counts(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    hospital.extra = section(period_seconds=1.0)
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: bool(hospital.jobs("train")))
        simulation, coordinator.simulation = coordinator.simulation, None
        await asyncio.sleep(1.0)
        hospital.control()
        await until(lambda: failures(run, "attest") >= 1)
        assert hospital.states() == [SEALED]
        assert coordinator.uploads == {}
        coordinator.simulation = simulation
        await until(lambda: hospital.states() == [ACKNOWLEDGED])


async def test_after_a_call_that_failed_new_evidence_is_needed(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    async with running(hospital) as run:
        await until(lambda: coordinator.hellos == 1)
        await coordinator.stop()
        await until(lambda: failures(run, "await_round") + failures(run, "attest") >= 1)
        await coordinator.start()
        await until(lambda: coordinator.hellos == 2)
    assert len(coordinator.nonces) >= 2


async def test_a_renewed_tls_key_is_found_and_attested_without_a_restart(
    tmp_path: Path, keys: Keys, hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    async with running(hospital) as run:
        await until(lambda: coordinator.hellos == 1)
        await coordinator.stop()
        coordinator.keys = with_another_leaf(keys, tmp_path / "renewed")
        await coordinator.start()
        await until(lambda: coordinator.hellos == 2)
        assert len(coordinator.nonces) >= 2
        coordinator.open_round(1)
        await until(lambda: hospital.states() == [ACKNOWLEDGED])
    assert run.participant.attestation is not None


async def test_to_a_renewed_tls_key_nothing_is_said_before_its_evidence_is_verified(
    tmp_path: Path, keys: Keys
) -> None:
    async with (
        watched_hospital(tmp_path, keys) as (hospital, coordinator),
        running(hospital) as run,
    ):
        await until(lambda: coordinator.hellos == 1)
        await coordinator.stop()
        coordinator.keys = with_another_leaf(keys, tmp_path / "renewed")
        simulation, coordinator.simulation = coordinator.simulation, None
        coordinator.open_round(1)
        before, asked = coordinator.other_calls, failures(run, "attest")
        await coordinator.start()
        await until(lambda: failures(run, "attest") >= asked + 2)
        assert coordinator.other_calls == before
        coordinator.simulation = simulation
        await until(lambda: hospital.states() == [ACKNOWLEDGED])


async def test_the_pinned_channel_follows_the_hospitals_own_renewed_key(
    tmp_path: Path, keys: Keys
) -> None:
    async with watched_hospital(tmp_path, keys) as (hospital, coordinator):
        files = hospital.keys[HOSPITAL].tls
        hospital.extra = section(period_seconds=0.2) + "[daemon]\npoll_seconds = 1\n"
        key, certificate = another_key_of_the_hospital(keys)
        with capture_logs() as logs:
            async with running(hospital):
                await until(lambda: coordinator.hellos == 1)
                old = coordinator.pins[-1]
                # Between the two files nothing fits, and evidence is asked for all the same.
                files.private_key.write_bytes(private_key_pem(key))
                asked = len(coordinator.nonces)
                await until(lambda: len(coordinator.nonces) >= asked + 2)
                assert set(coordinator.pins) == {old}
                files.certificate_chain.write_bytes(certificate)
                coordinator.open_round(1)
                await until(lambda: hospital.states() == [ACKNOWLEDGED])
        assert set(coordinator.pins[-3:]) == {spki_pin(key)} != {old}
        assert coordinator.hellos == 1
    events = [each["event"] for each in logs]
    assert events.count("participant.tls_renewed") == 1
    assert "participant.tls_files_refused" in events


async def test_with_its_renewed_key_too_the_hospital_speaks_to_nobody_but_who_was_attested(
    tmp_path: Path, keys: Keys
) -> None:
    async with watched_hospital(tmp_path, keys) as (hospital, coordinator):
        files = hospital.keys[HOSPITAL].tls
        channel = RenewingChannel(coordinator.address, files, SPIFFE, reports=Reports(Metrics()))
        attestation = attestation_of(hospital.config, channel)
        assert attestation is not None
        async with channel:
            await attestation.attest(datetime.now(UTC))
            hello = FederationServiceStub(channel).Hello
            await hello(pb.HelloRequest(version="1"))
            # The same name and authority at the same address, and another key than was attested.
            await coordinator.stop()
            coordinator.keys = with_another_leaf(keys, tmp_path / "another")
            await coordinator.start()
            key, certificate = another_key_of_the_hospital(keys)
            files.private_key.write_bytes(private_key_pem(key))
            files.certificate_chain.write_bytes(certificate)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await hello(pb.HelloRequest(version="1"))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert coordinator.hellos == 1
            await attestation.attest(datetime.now(UTC))
            await hello(pb.HelloRequest(version="1"))
        assert coordinator.pins[-1] == spki_pin(key)


async def test_a_standby_that_takes_over_is_attested_before_anything_else_is_said_to_it(
    tmp_path: Path, keys: Keys, hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    # Another machine, with a TLS key of its own.
    async with SimulatedCoordinator(with_another_leaf(keys, tmp_path / "standby")) as standby:
        standby.faults.abort = [grpc.StatusCode.UNAVAILABLE] * 1000
        hospital.address = f"{standby.address},{coordinator.address}"
        async with running(hospital):
            await until(lambda: coordinator.hellos == 1)
            assert standby.hellos == 0
            await coordinator.stop()
            standby.faults.abort.clear()
            # It leads, and shows nothing yet.
            standby.open_round(1)
            await until(lambda: len(standby.nonces) >= 2)
            assert standby.hellos == 0
            standby.simulation = simulate(datetime.now(UTC))
            await until(lambda: hospital.states() == [ACKNOWLEDGED])
            assert coordinator.hellos == 1


# A hospital that asks for no evidence.


@pytest.mark.parametrize("mode", ["mode2-SIMULATED", "mode2", "mode1", ""])
async def test_a_hospital_without_a_policy_is_told_once_that_it_verified_nothing(
    hospital: Hospital, coordinator: SimulatedCoordinator, mode: str
) -> None:
    hospital.extra = ""
    coordinator.mode = mode
    told = await warnings_of_two_greetings(hospital, coordinator)
    if not mode.startswith("mode2"):
        assert told == []
        return
    (warning,) = told
    assert warning["log_level"] == "warning"
    assert warning["mode"] == mode
    assert "offers MODE2 by its own word" in warning["why"]
    assert "nothing is verified, [attestation] names no policy" in warning["why"]
    assert ("SIMULATED" in warning["why"]) == mode.endswith("SIMULATED")


async def test_a_hospital_that_verified_is_not_told_that_it_did_not(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.mode = "mode2-SIMULATED"
    assert await warnings_of_two_greetings(hospital, coordinator) == []


async def warnings_of_two_greetings(
    hospital: Hospital, coordinator: SimulatedCoordinator
) -> list[MutableMapping[str, Any]]:
    """What is said of what was not verified, while the hospital connects twice."""
    with capture_logs() as logs:
        async with running(hospital) as run:
            await until(lambda: coordinator.hellos == 1)
            await coordinator.stop()
            await until(lambda: failures(run, "await_round") + failures(run, "attest") >= 1)
            await coordinator.start()
            await until(lambda: coordinator.hellos == 2)
            await until(lambda: sum(e["event"] == "participant.connected" for e in logs) == 2)
    return [each for each in logs if each["event"] == "participant.coordinator_unverified"]


# Somebody between, with a certificate of the same authority for the same name.


async def test_evidence_that_was_passed_on_gives_nobody_between_a_word(
    tmp_path: Path, keys: Keys, hospital: Hospital, coordinator: SimulatedCoordinator
) -> None:
    async with (
        genuine_stub(coordinator, keys) as genuine,
        Relay(with_another_leaf(keys, tmp_path / "between"), genuine) as between,
    ):
        hospital.address = between.address
        between.open_round(1)
        with capture_logs() as logs:
            async with running(hospital) as run:
                await until(lambda: len(between.nonces) >= 2)
                assert failures(run, "attest") == 0
                assert failures(run, "hello") >= 1
    assert any("coordinator_attested" in each["event"] for each in logs)
    assert between.hellos == 0
    assert hospital.account().attempts == ()


async def test_somebody_between_who_attests_for_itself_shows_another_machine(
    tmp_path: Path, keys: Keys, hospital: Hospital
) -> None:
    # With a policy for genuine machines its SIMULATED evidence is worth nothing.
    (hospital.folder / "attestation.toml").write_text(POLICY.replace("allow_simulated = true", ""))
    async with SimulatedCoordinator(with_another_leaf(keys, tmp_path / "between")) as between:
        between.simulation = simulate(datetime.now(UTC))
        hospital.address = between.address
        async with running(hospital) as run:
            await until(lambda: failures(run, "attest") >= 2)
    assert between.hellos == 0


def test_only_the_coordinators_own_certificate_can_be_pinned(keys: Keys) -> None:
    now = datetime.now(UTC)
    files = keys[COORDINATOR].tls
    authority = keys[HOSPITAL].tls.trusted_authority.read_bytes()
    chain = files.certificate_chain.read_bytes()

    def leaf(pem: bytes = chain, name: str = SPIFFE.server_name, at: datetime = now) -> object:
        return coordinators_leaf(pem, authority=authority, server_name=name, now=at)

    assert leaf() == x509.load_pem_x509_certificates(chain)[0]
    stranger = create_authority(
        "x", roles=COORDINATOR_ROLES, not_before=now - DAY, not_after=now + DAY
    )
    key = generate_private_key().public_key()
    minted = issue_certificate(stranger, key, SPIFFE, not_before=now - DAY, not_after=now + DAY)
    for arguments in (
        {"pem": minted.public_bytes(Encoding.PEM)},
        {"pem": keys[HOSPITAL].tls.certificate_chain.read_bytes()},
        {"name": "another.dr-study.matl.internal"},
        {"at": now + 4000 * DAY},
    ):
        with pytest.raises(UntrustedCoordinatorError):
            leaf(**arguments)
    for pem in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(InvalidInputError):
            leaf(pem)
    with pytest.raises(ConfigurationError):
        coordinators_leaf(chain, authority=b"", server_name=SPIFFE.server_name, now=now)


DAY = timedelta(days=1)


class Watched(SimulatedCoordinator):
    """Writes down by which key it was called, each time."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(keys)
        self.simulation = simulate(datetime.now(UTC))
        self.pins: list[str] = []
        self._attests = 0

    @property
    def other_calls(self) -> int:
        """How often anything but evidence was asked for."""
        return len(self.pins) - self._attests

    async def Attest(  # noqa: N802 - gRPC names
        self, request: pb.AttestRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AttestResponse:
        self._attests += 1
        return await super().Attest(request, context)

    async def _admit_caller(self, context: grpc.aio.ServicerContext[Any, Any]) -> NodeId:
        self.pins.append(peer_certificate(context).pin)
        return await super()._admit_caller(context)


@asynccontextmanager
async def watched_hospital(folder: Path, keys: Keys) -> AsyncIterator[tuple[Hospital, Watched]]:
    """A hospital with files of its own, which a test may change."""
    shutil.copytree(keys[HOSPITAL].folder, folder / "mine")
    mine = {**keys, HOSPITAL: NodeFolder(folder / "mine")}
    (folder / "attestation.toml").write_text(POLICY)
    async with Watched(keys) as coordinator:
        yield Hospital(folder, mine, coordinator.address, extra=section()), coordinator


def another_key_of_the_hospital(keys: Keys) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A new key, and its certificate in PEM."""
    folder, key, now = keys[HOSPITAL].folder.parent, generate_private_key(), datetime.now(UTC)
    authority = CertificateAuthority(
        x509.load_pem_x509_certificate((folder / "participant-ca.crt").read_bytes()),
        load_private_key(folder / "participant-ca.key"),
        PARTICIPANT_ROLES,
    )
    certificate = issue_certificate(
        authority,
        key.public_key(),
        SpiffeId(SPIFFE.federation, Role.PARTICIPANT, HOSPITAL),
        not_before=now - timedelta(minutes=5),
        not_after=now + DAY,
    )
    return key, certificate.public_bytes(Encoding.PEM)


class Relay(SimulatedCoordinator):
    """Somebody between, who passes questions for evidence on to the machine that has it."""

    def __init__(self, keys: Keys, genuine: FederationServiceAsyncStub) -> None:
        super().__init__(keys)
        self._genuine = genuine

    async def Attest(  # noqa: N802 - gRPC names
        self, request: pb.AttestRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AttestResponse:
        self.nonces.append(request.nonce)
        return await self._genuine.Attest(request)


def with_another_leaf(keys: Keys, folder: Path) -> Keys:
    """The same coordinator's name on another key, from the same authority."""
    mine = keys[COORDINATOR].folder
    shutil.copytree(mine, folder)
    authority = CertificateAuthority(
        x509.load_pem_x509_certificate((mine.parent / "coordinator-ca.crt").read_bytes()),
        load_private_key(mine.parent / "coordinator-ca.key"),
        COORDINATOR_ROLES,
    )
    key, now = generate_private_key(), datetime.now(UTC)
    certificate = issue_certificate(
        authority,
        key.public_key(),
        SPIFFE,
        not_before=now - timedelta(minutes=5),
        not_after=now + DAY,
        server_names=("localhost",),
    )
    (folder / "tls.key").write_bytes(private_key_pem(key))
    (folder / "tls.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    return {**keys, COORDINATOR: NodeFolder(folder)}


@asynccontextmanager
async def genuine_stub(
    coordinator: SimulatedCoordinator, keys: Keys
) -> AsyncIterator[FederationServiceAsyncStub]:
    async with grpc.aio.secure_channel(
        coordinator.address,
        channel_credentials(keys[HOSPITAL].tls),
        options=channel_options(SPIFFE),
    ) as channel:
        yield FederationServiceStub(channel)
