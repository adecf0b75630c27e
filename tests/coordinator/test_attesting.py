"""A coordinator that shows evidence: judged by itself first, logged, and not without end."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from matl.doctor_handshake import shown_certificate
from matl_common.attestation.binding import Binding, tls_spki
from matl_common.attestation.evidence import Evidence
from matl_common.attestation.policy import Policy, SnpPolicy, Tcb
from matl_common.attestation.simulated import MEASUREMENT, simulate
from matl_common.attestation.snp_report import SIGNED_BYTES
from matl_common.attestation.verifier import verify_evidence
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.ephemeral import create_node_authority
from matl_common.identity.held_keys import KeyKind, generate_key
from matl_common.identity.tls import ServerIdentity, TlsFiles, TlsPlace
from matl_common.ids import NodeId, digest_of
from matl_common.tlog.entry import parse_entry
from matl_coordinator.attesters.choice import SimulatedAttester
from matl_coordinator.attesters.sev_guest import SevGuestAttester
from matl_coordinator.ports import AttesterError
from matl_coordinator.service.attesting import (
    MAX_SHOWN_PER_HOUR,
    AskedTooOftenError,
    Attesting,
    Subject,
    attest_itself,
)
from tests.coordinator.harness import COORDINATOR, FEDERATION, Running, make_site, running, utc_now

pytestmark = pytest.mark.attestation

NOW = datetime.now(UTC)
A, B = NodeId("hospital_a"), NodeId("hospital_b")
NAME = SpiffeId(FEDERATION, Role.COORDINATOR, COORDINATOR)
POLICY = Policy(
    allow_simulated=True, sev_snp=SnpPolicy(measurements=(MEASUREMENT,), minimum_tcb=Tcb())
)
STRICT = POLICY.model_copy(update={"allow_simulated": False})
ATTESTER = SimulatedAttester(simulate(NOW))


def subject_of(run: Running) -> Subject:
    config = run.site.config
    chain = config.identity.tls_certificate.read_bytes()
    return Subject(config.federation.id, config.digest, lambda: chain)


def logged(run: Running) -> list[dict[str, object]]:
    entries = run.store.log_entries(start=0, limit=500)
    facts = [dict(parse_entry(each.data)) for each in entries if each.data is not None]
    return [each for each in facts if each["event"] == "evidence_shown"]


async def test_what_is_shown_verifies_for_who_asked_and_is_in_the_log(tmp_path: Path) -> None:
    async with running(make_site(tmp_path)) as run:
        subject = subject_of(run)
        attesting = Attesting(ATTESTER, subject, register=run.register, clock=utc_now)
        nonce = bytes(range(32))
        shown = await attesting.show(A, nonce)
        binding = subject.binding(nonce, chain=shown.tls_certificates)
        assert shown.config_digest == run.site.config.digest
        verify_evidence(shown.evidence, policy=POLICY, binding=binding, now=utc_now())
        (entry,) = logged(run)
    assert entry["node"] == A
    assert (entry["technology"], entry["simulated"]) == ("SIMULATED", True)
    assert entry["report"] == digest_of(shown.evidence.report[:SIGNED_BYTES])
    assert entry["nonce"] == nonce.hex()
    assert entry["config_digest"] == shown.config_digest


async def test_nobody_gets_evidence_without_end_or_for_a_nonce_of_another_length(
    tmp_path: Path,
) -> None:
    async with running(make_site(tmp_path)) as run:
        hour = utc_now()
        attesting = Attesting(ATTESTER, subject_of(run), register=run.register, clock=lambda: hour)
        for length in (0, 31, 33):
            with pytest.raises(InvalidInputError, match="the nonce has"):
                await attesting.show(A, bytes(length))
        for _ in range(MAX_SHOWN_PER_HOUR):
            await attesting.show(A, bytes(32))
        with pytest.raises(AskedTooOftenError):
            await attesting.show(A, bytes(32))
        await attesting.show(B, bytes(32))
        assert len(logged(run)) == MAX_SHOWN_PER_HOUR + 1


async def test_evidence_that_the_hardware_refuses_is_not_logged_as_shown(tmp_path: Path) -> None:
    async with running(make_site(tmp_path)) as run:
        missing = SevGuestAttester(device=tmp_path / "no-device")
        attesting = Attesting(missing, subject_of(run), register=run.register, clock=utc_now)
        with pytest.raises(AttesterError):
            await attesting.show(A, bytes(32))
        assert logged(run) == []


async def test_a_coordinator_starts_only_on_evidence_that_satisfies_its_own_policy(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)
    chain = site.config.identity.tls_certificate.read_bytes()
    subject = Subject("dr-study", site.config.digest, lambda: chain)
    verdict = await attest_itself(ATTESTER, subject, POLICY, now=NOW)
    assert verdict.simulated
    for attester, policy, why in (
        (ATTESTER, STRICT, "is SIMULATED"),
        (SevGuestAttester(device=tmp_path / "no-device"), STRICT, "cannot open"),
        (About(b"something else"), POLICY, "about another TLS key"),
    ):
        with pytest.raises(ConfigurationError, match=f"configured as attested.*{why}"):
            await attest_itself(attester, subject, policy, now=NOW)


class Source:
    """In place of the hardware: writes down what it was to sign, and takes its time about it."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self._meanwhile = meanwhile
        self.asked: list[bytes] = []

    def attest(self, report_data: bytes) -> Evidence:
        self.asked.append(report_data)
        self._meanwhile()
        return ATTESTER.attest(report_data)


async def test_what_the_hardware_signs_is_the_key_in_memory_that_the_handshake_shows(
    tmp_path: Path,
) -> None:
    async with running(make_site(tmp_path)) as run:
        hours = [0]
        identity = ServerIdentity(
            authority_in(tmp_path, run.site.config.identity.tls),
            clock=lambda: NOW + timedelta(hours=hours[0]),
            only_in_memory=True,
        )
        server = grpc.aio.server()
        port = server.add_secure_port("127.0.0.1:0", identity.credentials)
        await server.start()

        async def key_shown() -> bytes:
            shown = await asyncio.to_thread(
                shown_certificate, f"127.0.0.1:{port}", name=NAME, trusted=None
            )
            return tls_spki(shown)

        def renew() -> None:
            # While the hardware signs, the next key's time has come.
            hours[0] += 12
            assert identity.renew()

        source = Source(renew)
        subject = Subject(NAME.federation, run.site.config.digest, lambda: identity.chain)
        attesting = Attesting(source, subject, register=run.register, clock=utc_now)
        keys = []
        for number in range(2):
            keys.append(await key_shown())
            nonce = bytes([number]) * 32
            answer = await attesting.show(A, nonce)
            bound = Binding(keys[-1], nonce, NAME.federation, run.site.config.digest)
            assert source.asked[-1] == bound.report_data
            # What is said of the certificate is what the report is about, not what came since.
            leaf = x509.load_pem_x509_certificates(answer.tls_certificates)[0]
            assert tls_spki(leaf) == keys[-1]
        await server.stop(None)
    assert len(set(keys)) == 2


def authority_in(folder: Path, tls: TlsPlace) -> TlsFiles:
    """The coordinator's own authority, its key in a file."""
    files = TlsFiles(folder / "node.key", folder / "node.crt", tls.trusted_authority)
    generate_key(files.private_key, KeyKind.P256)
    certificate = create_node_authority(
        files.private_key,
        NAME,
        not_before=NOW - timedelta(days=1),
        not_after=NOW + timedelta(days=90),
    )
    files.certificate_chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    return files


class About:
    """Attests to the wrong thing."""

    def __init__(self, what: bytes) -> None:
        self._what = what

    def attest(self, report_data: bytes) -> Evidence:
        other = Binding(self._what, bytes(32), "x", digest_of(report_data))
        return ATTESTER.attest(other.report_data)
