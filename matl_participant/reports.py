"""What the participant tells its operator: log events and metrics, in one place.

Every event the daemon logs is a method here, so that this page is what to read to see
what a log can hold: no loss, no tensor, no path, no row of data.
"""

from datetime import datetime, timedelta
from typing import Any

import structlog

from matl_common.attestation.evidence import EvidenceRefusedError, Verdict
from matl_common.errors import InvalidInputError
from matl_common.identity.held_keys import Ed25519Key, P256Key
from matl_common.ids import Digest, RoundId
from matl_common.log_evidence import Kind, LogEvidence
from matl_common.modes import SIMULATED
from matl_common.protocol import EvaluationTerms, Receipt, RoundStart, Standing
from matl_common.worker import Message
from matl_participant.client import (
    CallError,
    NotAllowedError,
    RefusedError,
    UntrustedCoordinatorError,
    Welcome,
)
from matl_participant.core.spending import Summary, dataset_statement, record
from matl_participant.metrics import Metrics

LARGEST_HARMLESS_CLOCK_ERROR = timedelta(minutes=2)
MAX_SKIPPED_ROWS = 20
_TRIES_TO_MENTION = 10
_MISBEHAVIOUR = {
    Kind.FORK: "participant.log_forked",
    Kind.ROLLBACK: "participant.log_rolled_back",
    Kind.INCONSISTENT: "participant.log_inconsistent",
    Kind.CONTRADICTED: "participant.log_contradicts_receipt",
    Kind.UNPROVED: "participant.log_lacks_update",
}
_NEEDS_OPERATOR = (
    EvidenceRefusedError,
    NotAllowedError,
    RefusedError,
    UntrustedCoordinatorError,
    InvalidInputError,
)


class Reports:
    """Logs and counts; decides nothing."""

    def __init__(self, metrics: Metrics, *, log: Any = None) -> None:
        self.metrics = metrics
        self._log: Any = log or structlog.get_logger("matl.participant")
        self._standing: Standing | None = None
        self._warned_of_budget = False
        self._warned_of_certificate = False
        self._cosigned_size = -1
        self._refused_size = -1
        self._unverified_mode = ""

    def action(self, name: str, why: str) -> None:
        self._log.debug("participant.action", action=name, why=why)

    def progress(self, job: str, told: Message) -> None:
        if memory := told.get("memory"):
            self._memory(job, memory)
            return
        self._log.debug("participant.progress", job=job, told=told)

    def _memory(self, job: str, told: Message) -> None:
        """Say what one of a job's processes took, for who sets ``training.memory_bytes``."""
        process = str(told["process"])
        resident, on_device = int(told["resident_bytes"]), int(told["device_bytes"])
        self.metrics.show_memory(process, resident_bytes=resident, device_bytes=on_device)
        self._log.info(
            "participant.process_memory",
            job=job,
            process=process,
            resident_peak_mib=resident >> 20,
            device_peak_mib=on_device >> 20,
        )

    def connected(self, welcome: Welcome) -> None:
        self.metrics.connected.set(1)
        self.metrics.seen.set_to_current_time()
        self._log.info(
            "participant.connected",
            study=welcome.signed_plan.plan.study_id,
            plan=welcome.signed_plan.digest,
            coordinator_version=welcome.version,
        )

    def attested(self, verdict: Verdict, *, config_digest: Digest, until: datetime) -> None:
        """Say what the coordinator's machine showed; loudly where that is SIMULATED."""
        self.metrics.attested.set(not verdict.simulated)
        self.metrics.attested_simulated.set(verdict.simulated)
        event = "participant.coordinator_attested"
        tell = self._log.warning if verdict.simulated else self._log.info
        tell(
            f"{event}_SIMULATED" if verdict.simulated else event,
            verdict=str(verdict),
            technology=verdict.technology.value,
            measurement=verdict.measurement,
            report=verdict.report_digest,
            policy=verdict.policy_digest,
            config_digest=config_digest,
            until=until.isoformat(timespec="seconds"),
        )

    def unverified(self, mode: str) -> None:
        """Say once that evidence is there for the asking, and that nobody here asks."""
        if mode != self._unverified_mode:
            self._unverified_mode = mode
            self._log.warning("participant.coordinator_unverified", mode=mode, why=unverified(mode))

    def unattested(self) -> None:
        self.metrics.attested.set(0)
        self.metrics.attested_simulated.set(0)

    def clock(self, ahead: timedelta) -> None:
        """Complain of a clock so wrong that deadlines mean something else here."""
        if abs(ahead) > LARGEST_HARMLESS_CLOCK_ERROR:
            self._log.warning(
                "participant.clock_differs",
                coordinator_ahead_seconds=round(ahead.total_seconds()),
            )

    def sending(self, send_after_seconds: float) -> None:
        """Say when updates leave; loudly where that tells of the data."""
        if send_after_seconds > 0.0:
            self._log.info("participant.sends_on_schedule", after_seconds=send_after_seconds)
            return
        self._log.warning(
            "participant.sends_at_once",
            why="the study's plan has send_after_seconds = 0: an update leaves as soon as training "
            "ends, so the coordinator learns how long it took, and from that about how many "
            "images there are",
        )

    def evaluations(self, terms: EvaluationTerms | None, *, allowed: bool) -> None:
        """Say whether the study asks how often its models are right, and what we do about it."""
        if terms is None:
            return
        self._log.info(
            "participant.evaluates" if allowed else "participant.refuses_evaluations",
            noise_patients=round(terms.noise_multiplier, 1),
            max_evaluations=terms.max_evaluations,
        )

    def late(self, until: datetime) -> None:
        self._log.warning(
            "participant.send_time_missed",
            until=until.isoformat(),
            why="a look at the data took longer than the plan's send_after_seconds; the "
            "coordinator will see how many times as long. Ask its operator for a longer time",
        )

    def certificate_valid(self, left: timedelta, warning: str | None) -> None:
        """For how long the TLS certificate still is; the warning once until it is renewed."""
        self.metrics.certificate_valid.set(left.total_seconds())
        if warning and not self._warned_of_certificate:
            self._log.warning("participant.certificate_expires", why=warning)
        self._warned_of_certificate = warning is not None

    def certificate_renewed(self, not_after: datetime) -> None:
        self._warned_of_certificate = False
        self._log.info("participant.tls_renewed", not_after=not_after.isoformat())

    def coordinator_address(self, address: str) -> None:
        self._log.info("participant.coordinator_address", address=address)

    def certificate_refused(self, error: Exception) -> None:
        """Changed files do not fit; they may be in the middle of being exchanged."""
        self._log.warning("participant.tls_files_refused", error=text_of(error), in_use="as before")

    def disconnected(self) -> None:
        self.metrics.connected.set(0)

    def retrying(self, action: str, error: Exception, *, failures: int, wait: timedelta) -> None:
        """Say that something failed and will be tried again; loudly where waiting cannot help."""
        self.metrics.failures.labels(action).inc()
        log = self._log.error if isinstance(error, _NEEDS_OPERATOR) else self._log.warning
        log(
            "participant.retrying",
            action=action,
            error=text_of(error),
            code=getattr(error, "code", type(error).__name__),
            failures=failures,
            wait_seconds=round(wait.total_seconds(), 1),
        )

    def data_checked(self, answer: Message) -> None:
        """Name skipped rows by number, on site; nothing of their content."""
        skipped = answer.get("skipped")
        self._log.info("participant.data_checked", images=answer.get("images"), skipped=skipped)
        for row in answer.get("skipped_rows", [])[:MAX_SKIPPED_ROWS]:
            self._log.warning("participant.row_skipped", row=row["row"], reason=row["reason"])
        if phi := answer.get("phi"):
            self._phi_scanned(phi)

    def _phi_scanned(self, phi: Message) -> None:
        """Say what the scan for identifiers found and could not see: places, and no value."""
        self._log.info(
            "participant.phi_scanned",
            findings=phi["findings"],
            not_understood=phi["not_understood"],
            not_tested=phi["not_tested"],
        )
        for place in phi["places"]:
            self._log.warning("participant.phi_found", **place)

    def budget(self, summary: Summary) -> None:
        self.metrics.show_budget(summary)
        self._log.info("participant.budget", **record(summary))
        if summary.is_half_spent and not self._warned_of_budget:
            self._warned_of_budget = True
            self._log.warning(
                "participant.budget_half_spent",
                budget_fraction=round(summary.budget_fraction, 6),
                rounds_left=summary.rounds_left,
                together=dataset_statement(summary),
            )

    def budget_exhausted(self, error: Exception) -> None:
        self._log.error("participant.budget_exhausted", error=str(error))

    def standing(self, standing: Standing) -> None:
        """Show how the coordinator sees us; log it only when it changed."""
        self.metrics.seen.set_to_current_time()
        self.metrics.show_standing(standing)
        if standing != self._standing:
            self._standing = standing
            self._log.info(
                "participant.standing",
                trust=round(standing.trust, 4),
                state=standing.state,
                as_of_round=standing.as_of_round,
                reason=standing.reason,
            )

    def round_offered(self, start: RoundStart) -> None:
        self._log.info(
            "participant.round_offered",
            round=start.round_id,
            base_model=start.base_model,
            deadline=start.deadline.isoformat(),
        )

    def model_pulled(self, digest: Digest, byte_count: int) -> None:
        self.metrics.received.inc(byte_count)
        self._log.info("participant.model_pulled", model=digest, bytes=byte_count)

    def model_damaged(self, digest: Digest) -> None:
        self._log.warning("participant.model_damaged", model=digest)

    def training(self, round_id: RoundId, steps: int, *, evaluations: int) -> None:
        self.metrics.rounds_joined.inc()
        self.metrics.round.set(round_id)
        self._log.info("participant.training", round=round_id, steps=steps, evaluations=evaluations)

    def trained(self, answer: Message) -> None:
        """Count on site what a damaged image or model made unusable."""
        if left_out := answer.get("gradients_left_out"):
            self._log.warning("participant.gradients_left_out", count=left_out)

    def training_failed(self, round_id: RoundId, error: Exception) -> None:
        self.metrics.failures.labels("train").inc()
        self._log.error("participant.training_failed", round=round_id, error=str(error))

    def sealed(self, round_id: RoundId, update: Digest) -> None:
        self._log.info("participant.update_sealed", round=round_id, update=update)

    def sent(self, byte_count: int) -> None:
        self.metrics.sent.inc(byte_count)

    def admitted(self, receipt: Receipt) -> None:
        self.metrics.uploads.labels("admitted").inc()
        self.metrics.admitted_at.set_to_current_time()
        self._log.info(
            "participant.update_admitted",
            round=receipt.round_id,
            update=receipt.update_digest,
            log_index=receipt.log_index,
        )

    def key(self, use: str, key: P256Key | Ed25519Key) -> None:
        """Say who holds one of our keys, and what one could expect of that and does not have."""
        self._log.info("participant.key", use=use, key=key.keyid, holder=key.holder)
        for weakness in key.weaknesses:
            self._log.warning("participant.key_weaker", use=use, why=weakness)

    def witnessing(self, name: str | None) -> None:
        if name is not None:
            self._log.info("participant.witnesses", key=name)
            return
        self._log.warning(
            "participant.does_not_witness",
            why="there is no identity.witness_key: this hospital neither cosigns the coordinator's "
            "log nor would notice if it were rewritten",
        )

    def cosigned(self, size: int) -> None:
        """Note a cosignature that the log holds; log it when it is a new one."""
        self.metrics.cosigned_size.set(size)
        self.metrics.cosigned_at.set_to_current_time()
        if size != self._cosigned_size:
            self._cosigned_size = size
            self._log.info("participant.log_cosigned", size=size)

    def cosignature_refused(self, error: CallError, *, size: int) -> None:
        """Say so once for each checkpoint: the next one may have come in between."""
        if size != self._refused_size:
            self._refused_size = size
            self._log.warning("participant.cosignature_refused", size=size, error=str(error))

    def witnessing_failed(self, error: Exception, *, failures: int) -> None:
        self.metrics.failures.labels("witness").inc()
        log = self._log.error if isinstance(error, _NEEDS_OPERATOR) else self._log.warning
        log("participant.witnessing_failed", error=text_of(error), failures=failures)

    def proofs_owed(self, count: int) -> None:
        self.metrics.proofs_owed.set(count)

    def proof_stored(self, receipt: Receipt, *, size: int) -> None:
        self._log.info(
            "participant.update_proven",
            round=receipt.round_id,
            log_index=receipt.log_index,
            size=size,
        )

    def proof_awaited(self, receipt: Receipt, *, why: str, tries: int) -> None:
        """Complain now and then; the first few times are in the nature of a log."""
        log = self._log.debug if tries % _TRIES_TO_MENTION else self._log.warning
        log("participant.update_not_proven_yet", round=receipt.round_id, why=why, tries=tries)

    def log_misbehaved(self, evidence: LogEvidence, file: str) -> None:
        self.distrusted()
        self._log.critical(
            _MISBEHAVIOUR[evidence.kind], why=evidence.why, evidence=f"log-evidence/{file}"
        )

    def distrusted(self) -> None:
        self.metrics.log_distrusted.set(1)

    def left_unwitnessed(self) -> None:
        self._log.warning(
            "participant.left_unwitnessed",
            why="the study is complete, and within drain_seconds its last entries were not offered "
            "for a cosignature, or the last update was not proven; start again to catch up",
        )

    def sealed_left(self, error: OSError) -> None:
        self._log.warning(
            "participant.sealed_left",
            error=text_of(error),
            why="an update that nobody waits for any more could not be deleted; tried again after "
            "the next one, at the study's end and at every start",
        )

    def abandoned(self, round_id: RoundId, why: str, *, was_sealed: bool, outcome: str) -> None:
        if was_sealed:
            self.metrics.uploads.labels(outcome).inc()
        else:
            self.metrics.attempts_lost.inc()
        self._log.warning("participant.attempt_abandoned", round=round_id, why=why)

    def halted(self, why: str, *, is_final: bool) -> None:
        self.metrics.halted.set(1)
        self._log.error("participant.halted", why=why, is_final=is_final)

    def draining(self) -> None:
        self._log.info("participant.draining")

    def stopped(self, outcome: str, why: str) -> None:
        self.metrics.connected.set(0)
        self._log.info("participant.stopped", outcome=outcome, why=why)


def unverified(mode: str) -> str:
    """What a hospital without a policy is told of an attested coordinator."""
    simulated = ", which is SIMULATED and proves nothing" if mode.endswith(SIMULATED) else ""
    return (
        f"the coordinator offers {mode.removesuffix(SIMULATED).upper()} by its own "
        f"word{simulated}; nothing is verified, [attestation] names no policy"
    )


def text_of(error: Exception) -> str:
    """The error's message; an ``OSError``'s without the path it names."""
    return (
        (error.strerror or "input or output failed") if isinstance(error, OSError) else str(error)
    )
