"""Carries out what ``core.session`` decides, one action at a time.

The order of writes is the point: the ledger's RESERVE is durable before the worker
sees data, and its SEAL is durable before a byte is sent. Any error of the ledger ends
the process; start-up reads the file and goes on. Nothing here decides what to do next,
and what the operator is told is in ``reports.py``.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from matl_common.attestation.evidence import EvidenceRefusedError
from matl_common.clock import utc_now
from matl_common.errors import InvalidInputError
from matl_common.identity.pkcs11.session import TokenError
from matl_common.ids import Digest, RoundId, parse_digest
from matl_common.modes import says_attested
from matl_common.protocol import Receipt, RoundStart
from matl_common.signing import Signer
from matl_common.worker import Message, WorkerError, WorkerFailedError, WorkerProcess
from matl_participant.attestation import Attestation
from matl_participant.client import (
    CallError,
    FederationClient,
    RefusedError,
    SealedUpdate,
    SignedPlan,
    UnavailableError,
    UntrustedCoordinatorError,
    UpdateDamagedError,
)
from matl_participant.config import Config
from matl_participant.core.account import Account, AttemptState, Planned
from matl_participant.core.evidence import Evidence, why_behind
from matl_participant.core.limits import why_changed, why_images_refused, why_refused
from matl_participant.core.sending import Look, is_late, may_speak_from
from matl_participant.core.session import (
    MAX_BACKOFF_SECONDS,
    Abandon,
    Action,
    Attest,
    AwaitRound,
    Drain,
    Finish,
    Halt,
    Hello,
    Prepare,
    PullModel,
    Seal,
    Train,
    Upload,
    View,
    Wait,
    backoff,
    next_action,
)
from matl_participant.core.spending import ALONE
from matl_participant.files import StateFolder, StudyFolder
from matl_participant.ledger import BudgetExhaustedError, Ledger, open_ledger
from matl_participant.log_files import EvidenceFolder
from matl_participant.reports import Reports, text_of
from matl_participant.requests import LOST, prepare_request, train_request
from matl_participant.sealing import ResultUnusableError, load_sealed, seal_result
from matl_participant.witness import Witness, why_distrusted

ADMISSION_POLL_SECONDS = 2.0

_TRIAL = b"matl: can updates be signed?"


_SHORTEST_POLL = timedelta(seconds=1)
_Value = TypeVar("_Value")
# What the world may do to an action that can be repeated. The ledger's errors are not here.
_TRANSIENT = (
    CallError,
    EvidenceRefusedError,
    UntrustedCoordinatorError,
    InvalidInputError,
    WorkerError,
    OSError,
)


class Outcome(Enum):
    """Why the participant stopped."""

    FINISHED = "finished"
    DRAINED = "drained"
    HALTED = "halted"


@dataclass(slots=True)
class _Run:
    """What this run knows beside the durable state. Owned by the engine's one task."""

    signed_plan: SignedPlan | None = None
    ledger: Ledger | None = None
    study: StudyFolder | None = None
    attested_until: datetime | None = None
    connected: bool = False
    refusal: str | None = None
    distrust: str | None = None
    prepared: bool = False
    prepares_since: datetime | None = None
    looked: Look | None = None
    dataset_digest: Digest | None = None
    study_complete: bool = False
    round_start: RoundStart | None = None
    has_result: bool = False
    correct: float | None = None
    """Noised, of the result that is not sealed yet."""
    sealed: SealedUpdate | None = None
    failures: dict[str, int] = field(default_factory=dict)
    """In a row, by action: greeting the coordinator does not excuse what fails after it."""
    retry_at: datetime | None = None
    retry_reason: str = ""


@dataclass(slots=True)
class Participant:
    """One hospital's part in one study."""

    config: Config
    client: FederationClient
    worker: WorkerProcess
    signer: Signer
    reports: Reports
    version: str
    chance: Callable[[], float]
    """A random number in [0, 1) for the jitter of waiting; never for privacy."""
    witness: Witness | None = None
    attestation: Attestation | None = None
    """Where evidence is required of the coordinator."""
    clock: Callable[[], datetime] = utc_now
    _run: _Run = field(default_factory=_Run, init=False)
    _draining: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    def folder(self) -> StateFolder:
        return StateFolder(self.config.state_dir)

    def drain(self) -> None:
        """Ask for an orderly stop: the durable step at hand ends, and no other begins."""
        if not self._draining.is_set():
            self.reports.draining()
            self._draining.set()

    async def run(self) -> Outcome:
        """Take part until the study ends, is halted, or ``drain`` is called.

        Raises:
            FolderInUseError: another participant has the state directory.
            LedgerBusyError, LedgerCorruptError, LedgerUnusableError: the ledger cannot be
                relied upon.
            WitnessStateError: what the witness keeps cannot be relied upon.
        """
        with self.folder.owned():
            self._run.distrust = why_distrusted(EvidenceFolder(self.folder))
            if self._run.distrust is not None:
                self.reports.distrusted()
            watching = asyncio.create_task(self._watch_the_log())
            try:
                outcome = await self._run_to_the_end()
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                self.reports.disconnected()
                if self._run.ledger:
                    self._run.ledger.close()
            if not watching.cancelled():
                watching.result()
            return outcome

    async def _watch_the_log(self) -> None:
        """Witness beside everything else; what ends that ends the participant, in order."""
        if self.witness is None or self._run.distrust is not None:
            return
        try:
            self._run.distrust = await self.witness.run(may_speak=lambda: not self._is_unattested())
        finally:
            self._draining.set()

    async def _run_to_the_end(self) -> Outcome:
        while True:
            action, why = next_action(self._view(), self.clock())
            outcome = await self._perform(action, why)
            if outcome is not None:
                self.reports.stopped(outcome.value, why)
                return outcome

    def _view(self) -> View:
        run = self._run
        start = run.round_start
        return View(
            account=run.ledger.account if run.ledger else Account(),
            shared=run.ledger.shared if run.ledger else ALONE,
            sealed_until=run.sealed.manifest.expires_at if run.sealed else None,
            has_model=start is not None and self.folder.has_model(start.base_model),
            draining=self._draining.is_set(),
            distrust=run.distrust,
            unattested=self._is_unattested(),
            connected=run.connected,
            refusal=run.refusal,
            prepared=run.prepared,
            study_complete=run.study_complete,
            round_start=start,
            has_result=run.has_result,
            retry_at=run.retry_at,
            retry_reason=run.retry_reason,
            looked=run.looked,
            send_after=self._send_after,
            attempts_per_round=self.config.privacy.attempts_per_round,
            may_evaluate=self.config.privacy.allow_evaluation,
        )

    def _is_unattested(self) -> bool:
        until = self._run.attested_until
        return self.attestation is not None and (until is None or self.clock() >= until)

    @property
    def _send_after(self) -> timedelta:
        signed = self._run.signed_plan
        return timedelta(seconds=signed.plan.send_after_seconds if signed else 0.0)

    async def _perform(self, action: Action, why: str) -> Outcome | None:
        self.reports.action(type(action).__name__, why)
        match action:
            case Attest() | Hello():
                await self._meet(action)
            case Prepare():
                await self._interruptible("prepare", self._prepare())
            case AwaitRound(have_round):
                await self._interruptible("await_round", self._await_round(have_round))
            case PullModel(digest, total_bytes):
                await self._interruptible("pull_model", self._pull_model(digest, total_bytes))
            case Upload():
                await self._interruptible("upload", self._upload())
            case Train():
                await self._train(action)
            case Seal(round_id):
                await self._seal(round_id)
            case Abandon(round_id):
                self._abandon(round_id, why)
            case Wait(until):
                await self._wait(until)
            case Halt(is_final):
                return self._halt(why, is_final=is_final)
            case Finish():
                await self._interruptible("take_leave", self._take_leave())
                # The last thing the log says may be what shows that it lies.
                return None if self._run.distrust else Outcome.FINISHED
            case Drain():
                return Outcome.DRAINED
        return None

    # Actions that may be cut off at any point and repeated.

    async def _interruptible(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do the work unless a drain cuts it off; turn its errors into a wait."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                self._run.failures.pop(name, None)
        except _TRANSIENT as error:
            self._failed(name, error)
        finally:
            for each in (task, stop):
                each.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    def _failed(self, name: str, error: Exception) -> None:
        run = self._run
        failures = run.failures[name] = run.failures.get(name, 0) + 1
        is_elsewhere = isinstance(error, UnavailableError)
        addresses = len(self.config.coordinator.addresses) if is_elsewhere else 1
        wait = backoff(failures, chance=self.chance(), addresses=addresses)
        run.retry_at = self.clock() + wait
        run.retry_reason = f"{name} failed: {text_of(error)}"
        if not isinstance(error, WorkerError | TokenError):
            # Whoever answers next may be another machine.
            run.connected, run.attested_until = False, None
            self.reports.disconnected()
        self.reports.retrying(name, error, failures=failures, wait=wait)

    async def _meet(self, action: Attest | Hello) -> None:
        match action:
            case Attest():
                await self._interruptible("attest", self._attest())
            case Hello():
                await self._interruptible("hello", self._hello())

    async def _attest(self) -> None:
        """Require evidence; what fails here leaves the participant unattested, and idle."""
        run, attestation = self._run, _known(self.attestation)
        settings = _known(self.config.attestation)
        asked_at = self.clock()
        run.attested_until = None
        self.reports.unattested()
        attested = await attestation.attest(asked_at)
        run.attested_until = asked_at + timedelta(seconds=settings.period_seconds)
        self.reports.attested(
            attested.verdict, config_digest=attested.config_digest, until=run.attested_until
        )
        if self.witness is not None:
            self.witness.wake()

    async def _hello(self) -> None:
        run, config = self._run, self.config
        welcome = await self.client.hello(version=self.version, device=config.training.device)
        signed = welcome.signed_plan
        self.reports.clock(welcome.clock_ahead)
        if run.ledger is not None and run.signed_plan is not None:
            self._check_same_study(run.signed_plan, signed)
        else:
            self._open_study(signed, welcome.last_receipt)
        if run.refusal is None:
            run.connected = True
            self.reports.connected(welcome)
            if self.witness is not None:
                # It may wait for minutes yet since nobody answered, and a quorum for it.
                self.witness.wake()
            if self.attestation is None and says_attested(welcome.mode):
                self.reports.unverified(welcome.mode)

    def _check_same_study(self, known: SignedPlan, signed: SignedPlan) -> None:
        if signed.digest == known.digest:
            return
        self._run.refusal = (
            f"the coordinator's plan changed while this participant ran, from {known.digest[:12]}… "
            f"(study {known.plan.study_id!r}) to {signed.digest[:12]}… (study "
            f"{signed.plan.study_id!r}); a plan never changes. For a new study, restart the "
            "participant"
        )

    def _open_study(self, signed: SignedPlan, last_receipt: Receipt | None) -> None:
        """Check the plan, and open the ledger that decides about it."""
        run, plan = self._run, signed.plan
        limits = self.config.privacy.limits
        federation = self.config.coordinator.name.federation
        run.refusal = why_refused(plan, limits, federation_id=federation) or why_images_refused(
            plan, self.config.data.images_per_patient
        )
        if run.refusal is not None:
            return
        dataset = self.config.data.dataset
        run.signed_plan = signed
        self.reports.sending(plan.send_after_seconds)
        self.reports.evaluations(
            plan.privacy.evaluation, allowed=self.config.privacy.allow_evaluation
        )
        run.study = self.folder.study(plan.study_id)
        ledger = open_ledger(
            self.folder.ledger,
            dataset=dataset,
            study_id=plan.study_id,
            limit=self.config.privacy.dataset_limit,
        )
        account = ledger.account
        # The coordinator's copy of the newest receipt too: ours may lie in the same old backup.
        theirs = [Evidence(each.round_id, each.update_digest) for each in (last_receipt,) if each]
        run.refusal = why_behind(account, [*run.study.evidence(), *theirs])
        if run.refusal is not None:
            # Nothing is written into a copy that has to be replaced, and no evidence removed.
            ledger.close()
            return
        run.ledger = ledger
        if account.plan is not None:
            run.refusal = why_changed(account.plan, plan, signed.digest)
            self._show_budget()
        attempt = account.open_attempt
        sealed = attempt if attempt and attempt.state is AttemptState.SEALED else None
        run.study.discard_others(sealed.round_id if sealed else None)
        if sealed:
            run.sealed = load_sealed(run.study, sealed, self.signer.public_key)
            self._looked(self._training_since(sealed.round_id))

    async def _prepare(self) -> None:
        run = self._run
        signed, ledger, study = _known(run.signed_plan), _known(run.ledger), _known(run.study)
        request = prepare_request(
            self.config, signed.plan, cache=self.folder.cache, phi=self.folder.phi
        )
        timeout = self.config.training.timeout_seconds
        # Of the first attempt: how long one took that failed tells of the data, too.
        run.prepares_since = run.prepares_since or self.clock()
        try:
            answer = await self.worker.run(
                request, timeout_seconds=timeout, on_progress=self._progress("prepare")
            )
        except WorkerFailedError as error:
            if error.remote_type == LOST:
                raise
            run.refusal = f"the data cannot be prepared: {error.remote_message}"
            return
        finally:
            self._looked(run.prepares_since)
        self._warn_if_late()
        digest = parse_digest(str(answer["dataset_digest"]))
        self.reports.data_checked(answer)
        planned = ledger.account.plan
        if planned is None:
            study.write_plan(signed.envelope)
            ledger.plan(self._planned(signed, digest))
        elif planned.dataset_digest != digest:
            run.refusal = (
                "the images or labels changed since the study began, and its privacy budget "
                "belongs to the data as it was; restore them, or leave the study"
            )
            return
        run.dataset_digest, run.prepared = digest, True
        self._show_budget()

    def _planned(self, signed: SignedPlan, dataset_digest: Digest) -> Planned:
        plan = signed.plan
        return Planned(
            at=self.clock(),
            federation_id=plan.federation_id,
            study_id=plan.study_id,
            dataset=self.config.data.dataset,
            plan_digest=signed.digest,
            dataset_digest=dataset_digest,
            privacy=plan.privacy,
            steps_per_round=plan.training.steps_per_round,
            software=self.version,
        )

    async def _await_round(self, have_round: int) -> None:
        run, asked_at = self._run, self.clock()
        offer = await self.client.await_round(
            _known(run.signed_plan),
            have_round=have_round,
            wait_seconds=self.config.daemon.poll_seconds,
        )
        run.study_complete = offer.study_complete
        if offer.standing is not None:
            self.reports.standing(offer.standing)
        if offer.round_start is not None:
            run.round_start = offer.round_start
            self.reports.round_offered(offer.round_start)
        elif self.clock() - asked_at < _SHORTEST_POLL:
            # A coordinator that answers at once, say while it is paused, is not hammered.
            run.retry_at, run.retry_reason = asked_at + _SHORTEST_POLL, "no round is open"

    async def _pull_model(self, digest: Digest, total_bytes: int) -> None:
        folder = self.folder
        folder.keep_only_model(digest)
        await self.client.pull_model(digest, total_bytes=total_bytes, folder=folder.models)
        self.reports.model_pulled(digest, total_bytes)

    async def _upload(self) -> None:
        run = self._run
        sealed, ledger, study = _known(run.sealed), _known(run.ledger), _known(run.study)
        round_id = sealed.manifest.round_id
        try:
            result = await self.client.upload(sealed)
        except RefusedError as error:
            self._abandon(round_id, f"{error} ({error.code})", outcome="refused")
            return
        except UpdateDamagedError:
            run.sealed = None
            return
        self.reports.sent(result.sent_bytes)
        if result.receipt is None or result.envelope is None:
            run.retry_at = self.clock() + timedelta(seconds=ADMISSION_POLL_SECONDS)
            run.retry_reason = "the coordinator has the update and has not admitted it yet"
            return
        study.write_receipt(round_id, result.envelope)
        ledger.acknowledge(
            at=self.clock(),
            round_id=round_id,
            update_digest=sealed.digest,
            log_index=result.receipt.log_index,
        )
        run.sealed = None
        self.reports.admitted(result.receipt)
        self._discard_sealed()

    def _discard_sealed(self) -> None:
        """Delete what nobody will send; where the disk fails, with the next, or as we leave."""
        try:
            _known(self._run.study).discard_others(None)
        except OSError as error:
            self.reports.sealed_left(error)

    async def _take_leave(self) -> None:
        """Let the witness cosign the study's last entries and prove our last update."""
        self._discard_sealed()
        if self.witness is None:
            return
        try:
            async with asyncio.timeout(self.config.daemon.drain_seconds):
                await self.witness.settle()
        except TimeoutError:
            self.reports.left_unwitnessed()

    # Actions that change the ledger, and end what they began.

    async def _train(self, train: Train) -> None:
        """Reserve, then train; whatever happens next, the reservation stays."""
        run, ledger, start = self._run, _known(self._run.ledger), train.round_start
        model = self.folder.model(start.base_model)
        try:
            await asyncio.to_thread(self.signer.sign, _TRIAL)
            self.folder.require_room(_known(run.signed_plan).plan.schema.update_bytes)
        except (TokenError, OSError) as error:
            # Before the reservation: what cannot be signed or kept should cost the budget nothing.
            self._failed("train", error)
            return
        if await asyncio.to_thread(self.client.hashes.of_model, model) != start.base_model:
            # Before the reservation: a damaged disk should not cost the budget anything.
            model.unlink()
            self.reports.model_damaged(start.base_model)
            return
        try:
            ledger.reserve(
                at=self.clock(),
                round_id=start.round_id,
                steps=train.steps,
                base_model=start.base_model,
                evaluations=train.evaluations,
            )
        except BudgetExhaustedError as error:
            self.reports.budget_exhausted(error)
            return
        self._show_budget()
        self.reports.training(start.round_id, train.steps, evaluations=train.evaluations)
        request = train_request(
            self.config,
            _known(run.signed_plan).plan,
            cache=self.folder.cache,
            model=model,
            model_digest=start.base_model,
            out=self.folder.result(start.round_id),
            steps=train.steps,
            evaluations=train.evaluations,
            dataset_digest=_known(run.dataset_digest),
        )
        try:
            answer = await self._trained(request)
        except WorkerError as error:
            self.reports.training_failed(start.round_id, error)
            if self.config.nodes is not None:
                # Looks for all nodes again before it charges again: one may be away for a day.
                run.prepared, run.prepares_since = False, None
            return
        run.has_result = answer is not None
        run.correct = None if answer is None else answer.get("correct")

    async def _trained(self, request: Message) -> Message | None:
        """Run the job; a drain lets it go on for a while, because it is paid for."""
        job = asyncio.create_task(
            self.worker.run(
                request,
                timeout_seconds=self.config.training.timeout_seconds,
                on_progress=self._progress("train"),
            )
        )
        stop = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({job, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                await asyncio.wait({job}, timeout=self.config.daemon.drain_seconds)
            if not job.done():
                return None
            self.reports.trained(job.result())
            return job.result()
        finally:
            for each in (job, stop):
                each.cancel()
            await asyncio.gather(job, stop, return_exceptions=True)

    async def _seal(self, round_id: RoundId) -> None:
        """Make the result durable, sign it, and write SEAL; only then may it be sent."""
        run, ledger = self._run, _known(self._run.ledger)
        correct, run.correct, run.has_result = run.correct, None, False
        try:
            seal = await asyncio.to_thread(
                seal_result,
                self.folder.result(round_id),
                _known(run.study),
                start=_known(run.round_start),
                signed_plan=_known(run.signed_plan),
                attempt=_known(ledger.account.open_attempt),
                correct=correct,
                signer=self.signer,
                hashes_of=self.client.hashes.of_update,
            )
        except (TokenError, OSError) as error:
            # It is paid for and on disk, and is sealed when the token is back or the disk has room.
            run.correct, run.has_result = correct, True
            self._failed("seal", error)
            return
        except ResultUnusableError as error:
            self.reports.training_failed(round_id, error)
            return
        run.failures.pop("seal", None)
        ledger.seal(
            at=self.clock(),
            round_id=round_id,
            update_digest=seal.update.digest,
            content_digest=seal.content_digest,
        )
        run.sealed = seal.update
        self.reports.sealed(round_id, seal.update.digest)
        self._looked(self._training_since(round_id))
        self._warn_if_late()

    def _abandon(self, round_id: RoundId, why: str, *, outcome: str = "lost") -> None:
        run, ledger = self._run, _known(self._run.ledger)
        was_sealed = _known(ledger.account.open_attempt).state is AttemptState.SEALED
        ledger.abandon(at=self.clock(), round_id=round_id, reason=why)
        run.sealed, run.has_result, run.correct = None, False, None
        self._discard_sealed()
        self.folder.result(round_id).unlink(missing_ok=True)
        self.reports.abandoned(round_id, why, was_sealed=was_sealed, outcome=outcome)
        if not was_sealed:
            self._looked(self._training_since(round_id))

    def _training_since(self, round_id: RoundId) -> datetime:
        """When the round was first charged, which is before its data was first read."""
        first = _known(self._run.ledger).account.attempts_at(round_id)[0]
        return _known(first.reserved_at)

    def _looked(self, since: datetime) -> None:
        self._run.looked = Look(since=since, until=self.clock())

    def _warn_if_late(self) -> None:
        look = _known(self._run.looked)
        if is_late(look, self._send_after):
            self.reports.late(may_speak_from(look, self._send_after))

    def _halt(self, why: str, *, is_final: bool) -> Outcome:
        ledger = self._run.ledger
        if is_final and ledger and ledger.account.halted is None:
            ledger.halt(at=self.clock(), reason=why)
            self._show_budget()
        self.reports.halted(why, is_final=is_final)
        return Outcome.HALTED

    async def _wait(self, until: datetime) -> None:
        """Wait for a moment, once: the clock may be put back before it comes."""
        run = self._run
        longest = self._send_after
        if until == run.retry_at:
            longest = timedelta(seconds=MAX_BACKOFF_SECONDS)
        seconds = max(0.0, min(until - self.clock(), longest).total_seconds())
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            if run.retry_at is not None and run.retry_at <= until:
                run.retry_at = None
            if run.looked is not None and may_speak_from(run.looked, self._send_after) <= until:
                run.looked = None

    def _show_budget(self) -> None:
        self.reports.budget(_known(self._run.ledger).summary())

    def _progress(self, job: str) -> Callable[[Message], None]:
        return lambda told: self.reports.progress(job, told)


def _known(value: _Value | None) -> _Value:
    """Narrow what ``next_action`` guarantees to be there at this point."""
    if value is None:
        raise AssertionError("an action ran before the ones it follows")
    return value
