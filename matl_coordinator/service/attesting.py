"""Shows hospitals evidence of the machine this coordinator runs on, and puts on record that it did.

The coordinator judges its own evidence at start, by a policy of its own, so that a machine that
no hospital will accept is noticed here first. What hospitals demand is their own policy.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import final

from cryptography import x509

from matl_common.attestation.binding import NONCE_BYTES, Binding, tls_spki
from matl_common.attestation.evidence import Evidence, EvidenceRefusedError, Verdict
from matl_common.attestation.policy import Policy
from matl_common.attestation.verifier import verify_evidence
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.ids import Digest, NodeId, digest_of
from matl_common.tlog.entry import Entry
from matl_coordinator.ports import Attester, AttesterError
from matl_coordinator.service.entries import Fact, entries
from matl_coordinator.service.evidence_record import endorsements_facts, shown_facts
from matl_coordinator.service.register import Decision, Register

MAX_SHOWN_PER_HOUR = 60
"""To one hospital. A report costs the firmware time, and the log an entry."""


class NotAttestedError(MatlError):
    """This coordinator has no evidence to show: it is not MODE2."""


class AskedTooOftenError(MatlError):
    """The caller has had as much evidence as it may have for now."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What this coordinator's evidence is about."""

    federation_id: str
    config_digest: Digest
    tls_certificates: Callable[[], bytes]
    """The chain that the server presents now, in PEM, its own certificate first."""

    def binding(self, nonce: bytes, *, chain: bytes) -> Binding:
        """What a report for this nonce is bound to, ``chain`` being what the server presents."""
        leaf = x509.load_pem_x509_certificates(chain)[0]
        return Binding(tls_spki(leaf), nonce, self.federation_id, self.config_digest)


@dataclass(frozen=True, slots=True)
class Shown:
    """Evidence with what a hospital needs to check what it is about."""

    evidence: Evidence
    tls_certificates: bytes
    config_digest: Digest


@final
@dataclass(frozen=True, slots=True)
class Machine:
    """What this coordinator runs on, as its own policy judged it at start."""

    attester: Attester
    subject: Subject
    verdict: Verdict

    def attesting(self, register: Register, *, clock: Callable[[], datetime]) -> Attesting:
        """What answers hospitals."""
        return Attesting(self.attester, self.subject, register=register, clock=clock)


async def attest_itself(
    attester: Attester, subject: Subject, policy: Policy, *, now: datetime
) -> Verdict:
    """Make evidence and judge it, before anything is served.

    Raises:
        ConfigurationError: there is none, or it does not satisfy the coordinator's own policy.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    binding = subject.binding(nonce, chain=subject.tls_certificates())
    try:
        evidence = await asyncio.to_thread(attester.attest, binding.report_data)
        return verify_evidence(evidence, policy=policy, binding=binding, now=now)
    except (AttesterError, EvidenceRefusedError, InvalidInputError) as error:
        raise ConfigurationError(
            f"this coordinator is configured as attested (MODE2), and is not: {error}"
        ) from error


def verdict_facts(verdict: Verdict) -> dict[str, Fact]:
    """What the log says of the coordinator's own evidence."""
    return {
        "technology": verdict.technology.value,
        "measurement": verdict.measurement,
        "platform": verdict.platform,
        "report": verdict.report_digest,
        "policy": verdict.policy_digest,
        "simulated": verdict.simulated,
    }


class Attesting:
    """Answers hospitals, one at a time."""

    def __init__(
        self,
        attester: Attester,
        subject: Subject,
        *,
        register: Register,
        clock: Callable[[], datetime],
    ) -> None:
        self._attester = attester
        self._subject = subject
        self._register = register
        self._clock = clock
        self._lock = asyncio.Lock()
        self._hour: datetime | None = None
        self._shown: Counter[NodeId] = Counter()
        # The endorsements on record, and of which day: entries are erased by the month.
        self._endorsed: tuple[Digest, date] | None = None

    async def show(self, node_id: NodeId, nonce: bytes) -> Shown:
        """Make evidence for this nonce, log that it was made, and only then hand it out.

        Raises:
            InvalidInputError: the nonce has another length than it must have.
            AskedTooOftenError: this hospital has asked too often.
            AttesterError: the hardware refused.
            StoreError: the log did not confirm.
        """
        # Once: it may be renewed while the hardware signs.
        chain = self._subject.tls_certificates()
        binding = self._subject.binding(nonce, chain=chain)
        report_data = binding.report_data
        self._count(node_id)
        # The firmware takes one question at a time, too.
        async with self._lock:
            evidence = await asyncio.to_thread(self._attester.attest, report_data)
        now = self._clock()
        written = tuple(self._entries(node_id, evidence, binding, now=now))
        await self._register.decide(lambda _: Decision(None, (), written))
        self._endorsed = digest_of(evidence.endorsements), now.date()
        return Shown(evidence, chain, binding.config_digest)

    def _entries(
        self, node_id: NodeId, evidence: Evidence, binding: Binding, *, now: datetime
    ) -> Iterator[Entry]:
        endorsed = digest_of(evidence.endorsements), now.date()
        try:
            if endorsed != self._endorsed:
                facts = endorsements_facts(evidence)
                yield from entries("evidence_endorsements", at=now, round_id=None, **facts)
            shown = shown_facts(evidence, binding)
            yield from entries("evidence_shown", at=now, round_id=None, node=node_id, **shown)
        except InvalidInputError as error:
            raise AttesterError(f"what the hardware answered is no report: {error}") from error

    def _count(self, node_id: NodeId) -> None:
        hour = self._clock().replace(minute=0, second=0, microsecond=0)
        if hour != self._hour:
            self._hour = hour
            self._shown.clear()
        self._shown[node_id] += 1
        if self._shown[node_id] > MAX_SHOWN_PER_HOUR:
            raise AskedTooOftenError(
                f"{node_id} has had evidence {MAX_SHOWN_PER_HOUR} times in this hour"
            )
