"""A coordinator that shows evidence: judged by itself first, logged, and not without end."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from matl.doctor.handshake import shown_certificate
from matl_common.attestation.binding import REPORT_DATA_BYTES, Binding, tls_spki
from matl_common.attestation.evidence import (
    MAX_ENDORSEMENTS_BYTES,
    MAX_REPORT_BYTES,
    Evidence,
    EvidenceRefusedError,
    Technology,
)
from matl_common.attestation.policy import Policy, SnpPolicy, Tcb
from matl_common.attestation.simulated import MEASUREMENT, simulate
from matl_common.attestation.snp import check_guest, read_verified_report
from matl_common.attestation.snp_report import SIGNED_BYTES
from matl_common.attestation.verifier import verify_evidence
from matl_common.clock import utc_now
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
from matl_coordinator.service.entries import entries
from matl_coordinator.service.evidence_record import (
    Recorded,
    endorsements_facts,
    read_recorded,
    shown_facts,
)
from matl_coordinator.service.story import together
from tests.common.attestation_vectors import (
    google_evidence,
    needs_vectors,
    tdx_evidence,
    virtee_evidence,
)
from tests.coordinator.harness import COORDINATOR, FEDERATION, Running, make_site, running

pytestmark = pytest.mark.attestation

NOW = datetime.now(UTC)
A, B = NodeId("hospital_a"), NodeId("hospital_b")
NAME = SpiffeId(FEDERATION, Role.COORDINATOR, COORDINATOR)
POLICY = Policy(
    allow_simulated=True, sev_snp=SnpPolicy(measurements=(MEASUREMENT,), minimum_tcb=Tcb())
)
STRICT = POLICY.model_copy(update={"allow_simulated": False})
ATTESTER, ATTESTER_2 = SimulatedAttester(simulate(NOW)), SimulatedAttester(simulate(NOW))


def subject_of(run: Running) -> Subject:
    config = run.site.config
    chain = config.identity.tls_certificate.read_bytes()
    return Subject(config.federation.id, config.digest, lambda: chain)


def logged(run: Running, event: str = "evidence_shown") -> list[dict[str, object]]:
    entries = run.store.log_entries(start=0, limit=500)
    facts = [dict(parse_entry(each.data)) for each in entries if each.data is not None]
    return [each for each in facts if each["event"] == event]


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


def recorded(run: Running) -> Recorded:
    """The one that was shown, from nothing but the log."""
    shown = together(logged(run))
    (named,) = {shown["endorsements"]}
    endorsed = [e for e in logged(run, "evidence_endorsements") if e.get("endorsements") == named]
    return read_recorded(shown, together(endorsed), federation_id=FEDERATION)


async def test_the_log_alone_gives_an_auditor_the_verdict_that_the_hospital_came_to(
    tmp_path: Path,
) -> None:
    async with running(make_site(tmp_path)) as run:
        subject = subject_of(run)
        attesting = Attesting(ATTESTER, subject, register=run.register, clock=utc_now)
        shown = await attesting.show(A, bytes(32))
        again = recorded(run)
    binding = subject.binding(bytes(32), chain=shown.tls_certificates)
    assert again == Recorded(shown.evidence, binding)
    theirs = verify_evidence(shown.evidence, policy=POLICY, binding=binding, now=NOW)
    ours = verify_evidence(again.evidence, policy=POLICY, binding=again.binding, now=NOW)
    assert ours == theirs
    assert ours.simulated
    for policy, about in ((STRICT, again.binding), (POLICY, replace(binding, nonce=b"x" * 32))):
        with pytest.raises(EvidenceRefusedError):
            verify_evidence(again.evidence, policy=policy, binding=about, now=NOW)


@needs_vectors
@pytest.mark.vectors
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
async def test_genuine_evidence_comes_out_of_the_log_as_it_was_and_verifies_or_not_as_before(
    tmp_path: Path,
) -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    for number, evidence in enumerate((virtee_evidence(), google_evidence(), tdx_evidence())):
        async with running(make_site(tmp_path / str(number))) as run:
            source = Given(evidence)
            attesting = Attesting(source, subject_of(run), register=run.register, clock=utc_now)
            await attesting.show(A, bytes(32))
            again = recorded(run).evidence
        assert again == evidence
        if evidence.technology is Technology.SEV_SNP:
            report, product = read_verified_report(again, now=at)
            assert product == "Milan"
            accepted = SnpPolicy(measurements=(report.measurement,), minimum_tcb=Tcb())
            if report.is_debuggable:
                with pytest.raises(EvidenceRefusedError, match="debugging on"):
                    check_guest(report, accepted)
            else:
                check_guest(report, accepted)


async def test_endorsements_are_logged_when_they_change_and_once_a_day(tmp_path: Path) -> None:
    async with running(make_site(tmp_path)) as run:
        now = [NOW]
        given = Given(ATTESTER.attest(bytes(64)))
        attesting = Attesting(given, subject_of(run), register=run.register, clock=lambda: now[0])
        for expected in (1, 1, 2, 3, 3):
            await attesting.show(A, bytes(32))
            assert len(logged(run, "evidence_endorsements")) == expected
            if expected == 1 and len(logged(run)) == 2:
                given.evidence = ATTESTER_2.attest(bytes(64))
            elif expected == 2:
                now[0] += timedelta(days=1)
        newest = logged(run)[-1]["endorsements"]
    assert newest == digest_of(given.evidence.endorsements)


def test_evidence_as_long_as_it_may_be_fits_the_log_in_parts() -> None:
    short = ATTESTER.attest(bytes(64))
    longest = replace(short, endorsements=bytes(range(256)) * (MAX_ENDORSEMENTS_BYTES // 256))
    binding = Binding(b"key", bytes(32), FEDERATION, digest_of(b"configuration"))
    shown = {**shown_facts(longest, binding), "evidence": ["A" * 4000] * (MAX_REPORT_BYTES // 3000)}
    for facts in (shown, endorsements_facts(longest)):
        parts = list(entries("any", at=NOW, round_id=None, node=A, **facts))
        assert len(parts) > 1
        whole = together(parse_entry(each.data) for each in parts)
        assert {name: whole[name] for name in facts} == facts
        assert whole["node"] == A
    endorsed = together(
        parse_entry(each.data)
        for each in entries("any", at=NOW, round_id=None, **endorsements_facts(longest))
    )
    again = read_recorded(shown_facts(longest, binding), endorsed, federation_id=FEDERATION)
    assert again == Recorded(longest, binding)


def test_entries_that_do_not_belong_together_are_not_taken_for_evidence() -> None:
    binding = Binding(b"key", bytes(32), FEDERATION, digest_of(b"configuration"))
    evidence, other = ATTESTER.attest(bytes(64)), ATTESTER_2.attest(b"x" * 64)
    shown, endorsed = shown_facts(evidence, binding), endorsements_facts(evidence)
    for wrong, why in (
        ({**shown, "evidence": shown_facts(other, binding)["evidence"]}, "names report"),
        ({**shown, "endorsements": digest_of(b"")}, "names endorsements"),
        ({**shown, "evidence": ["?"]}, "do not hold evidence"),
        ({**shown, "nonce": "x"}, "do not hold evidence"),
        ({}, "do not hold evidence"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            read_recorded(wrong, endorsed, federation_id=FEDERATION)
    with pytest.raises(InvalidInputError, match="names endorsements"):
        read_recorded(shown, endorsements_facts(other), federation_id=FEDERATION)


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


class Given:
    """In place of the hardware: answers with evidence that somebody else's has made."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def attest(self, report_data: bytes) -> Evidence:
        assert len(report_data) == REPORT_DATA_BYTES
        return self.evidence


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
