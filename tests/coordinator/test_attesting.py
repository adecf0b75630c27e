"""A coordinator that shows evidence: judged by itself first, logged, and not without end."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import Evidence
from matl_common.attestation.policy import Policy, SnpPolicy, Tcb
from matl_common.attestation.simulated import MEASUREMENT, simulate
from matl_common.attestation.verifier import verify_evidence
from matl_common.errors import ConfigurationError, InvalidInputError
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
from tests.coordinator.harness import Running, make_site, running, utc_now

pytestmark = pytest.mark.attestation

NOW = datetime.now(UTC)
A, B = NodeId("hospital_a"), NodeId("hospital_b")
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
        binding = subject.binding(nonce)
        assert shown.config_digest == run.site.config.digest
        verify_evidence(shown.evidence, policy=POLICY, binding=binding, now=utc_now())
        (entry,) = logged(run)
    assert entry["node"] == A
    assert (entry["technology"], entry["simulated"]) == ("SIMULATED", True)
    assert entry["report"] == digest_of(shown.evidence.report)
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


class About:
    """Attests to the wrong thing."""

    def __init__(self, what: bytes) -> None:
        self._what = what

    def attest(self, report_data: bytes) -> Evidence:
        other = Binding(self._what, bytes(32), "x", digest_of(report_data))
        return ATTESTER.attest(other.report_data)
