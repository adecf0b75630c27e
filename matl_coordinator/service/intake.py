"""Taking a hospital's update: declared, received chunk by chunk, judged, receipted.

Every method is given the enrolled node that the connection was authenticated as; no
identity is taken from a message. A decision is in the log before it is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NoReturn, TypeVar

import structlog

from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.identity.allowlist import AllowedNode
from matl_common.ids import Digest, NodeId, RoundId, digest_of
from matl_common.protocol import (
    PayloadType,
    Receipt,
    StudyPlan,
    UpdateManifest,
)
from matl_common.remembered import Remembered
from matl_common.signing import Envelope, Signer, sign, verify
from matl_common.wire.documents import (
    format_receipt,
    parse_update_manifest,
)
from matl_coordinator.core.admission import (
    Refusal,
    RefusalCode,
    check_chunk_hashes,
    check_contents,
    check_manifest,
    chunk_count,
)
from matl_coordinator.core.evaluations import HospitalEvaluation, take_evaluation
from matl_coordinator.core.rounds import NodeExcluded, Phase, UpdateAdmitted, advance
from matl_coordinator.ports import (
    ChunkRefusedError,
    LendingSpool,
    Meter,
    PutRound,
    PutUpdate,
    SpoolError,
    State,
    Store,
    UpdateRecord,
    UpdateStatus,
)
from matl_coordinator.service.contents import scan_update
from matl_coordinator.service.entries import entry, evaluation_entry
from matl_coordinator.service.loan import Loan
from matl_coordinator.service.presence import Presence
from matl_coordinator.service.reception import Reception, SupersededError
from matl_coordinator.service.register import Decision, Register
from matl_coordinator.service.story import envelope_facts

MAX_REFUSALS_LOGGED = 32
"""A node's refusals in one round that each get a log entry; more are only counted."""

log = structlog.get_logger(__name__)

T = TypeVar("T")


class RefusedError(MatlError):
    """The update does not count."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.code = refusal.code


class UnknownUpdateError(MatlError):
    """No update of this digest was declared by the caller for the current round."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an update has come."""

    update_digest: Digest
    durable_chunks: int
    total_chunks: int
    receipt: Envelope | None


class Intake:
    """Takes updates. Runs on the register's event loop."""

    def __init__(
        self,
        *,
        register: Register,
        store: Store,
        spool: LendingSpool,
        signer: Signer,
        plan: StudyPlan,
        presence: Presence,
        meter: Meter,
        clock: Callable[[], datetime],
        hashes: Remembered[bytes],
    ) -> None:
        """``hashes`` is told of every update that is complete on disk."""
        self._register = register
        self._store = store
        self._spool = spool
        self._signer = signer
        self._plan = plan
        self._presence = presence
        self._meter = meter
        self._clock = clock
        self._hashes = hashes
        # The one stream that may write a node's update; a newer one takes over.
        self._receptions: dict[NodeId, Reception[UpdateRecord] | Loan] = {}
        # Refusals logged so far in the newest round, by node.
        self._refusals: tuple[int, dict[NodeId, int]] = (0, {})

    async def open_update(
        self, node: AllowedNode, envelope: Envelope, chunk_hashes: bytes
    ) -> Progress:
        """Take note of a sealed update, once; one that is wholly there is judged.

        One that was decided is answered as it was, also after its round: the hospital may
        never have had the answer.

        Raises:
            RefusedError: it cannot count; the refusal is in the log.
        """
        self._presence.saw(node.node_id)
        manifest = await self._verified_manifest(node, envelope)
        digest = digest_of(envelope.payload)
        earlier = await self._decided_in_earlier_round(node.node_id, manifest.round_id)
        if earlier is not None and earlier.update_digest == digest:
            return await self._decided(earlier)

        def decide(state: State) -> Decision[UpdateRecord | Refusal]:
            known = record_of(node.node_id, manifest.round_id, state)
            if known is not None and known.update_digest == digest:
                return Decision(known)
            refusal = self._judge(node.node_id, manifest, chunk_hashes, known, state)
            if refusal is not None:
                return Decision(refusal)
            record = UpdateRecord(
                round_id=manifest.round_id,
                node_id=node.node_id,
                update_digest=digest,
                manifest=envelope,
                chunk_hashes=chunk_hashes,
                byte_count=manifest.byte_count,
                status=UpdateStatus.RECEIVING,
                code=None,
                reason="",
                norm=None,
                decided_at=None,
                log_index=None,
                log_leaf_hash=None,
            )
            declared = entry(
                "update_declared",
                at=self._clock(),
                round=manifest.round_id,
                node=node.node_id,
                update=digest,
                bytes=manifest.byte_count,
                manifest=envelope_facts(envelope),
            )
            return Decision(record, (PutUpdate(record),), (declared,))

        found, _ = await self._register.decide(decide)
        if isinstance(found, Refusal):
            await self._refuse(node.node_id, found, update=digest)
        if found.status is not UpdateStatus.RECEIVING:
            return await self._decided(await self._settled(found))
        reception = await self._take_over(found)
        # The stream, or a coordinator before this one, ended between the last chunk and
        # the judgement; the hospital has nothing left to send.
        if reception.is_complete:
            return await self.complete(node, reception)
        durable = await reception.durable_chunks()
        return Progress(digest, durable, chunk_count(found.byte_count), None)

    async def _settled(self, record: UpdateRecord) -> UpdateRecord:
        """A decided record with its place in the log, which it may have got only just now."""
        state = await self._register.state()
        return record_of(record.node_id, record.round_id, state) or record

    async def _decided_in_earlier_round(
        self, node_id: NodeId, round_id: RoundId
    ) -> UpdateRecord | None:
        state = await self._register.state()
        if state.round is None or round_id >= state.round.round_id:
            return None
        record = await asyncio.to_thread(self._store.update, round_id, node_id)
        if record is None or record.status is UpdateStatus.RECEIVING:
            return None
        return record

    async def _verified_manifest(self, node: AllowedNode, envelope: Envelope) -> UpdateManifest:
        verdict = _verified(envelope, node)
        if isinstance(verdict, Refusal):
            await self._refuse(node.node_id, verdict, update=digest_of(envelope.payload))
        return verdict

    def _judge(
        self,
        node_id: NodeId,
        manifest: UpdateManifest,
        chunk_hashes: bytes,
        known: UpdateRecord | None,
        state: State,
    ) -> Refusal | None:
        if known is not None:
            return Refusal(
                RefusalCode.EQUIVOCATION,
                f"{node_id} signed two updates for round {manifest.round_id}; "
                f"the first, {known.update_digest[:12]}, stands",
            )
        return check_manifest(
            manifest, node_id=node_id, rnd=state.round, plan=self._plan, now=self._clock()
        ) or check_chunk_hashes(chunk_hashes, manifest)

    async def _decided(self, record: UpdateRecord) -> Progress:
        if record.status is UpdateStatus.REFUSED:
            raise RefusedError(_stored_refusal(record))
        total = chunk_count(record.byte_count)
        return Progress(record.update_digest, total, total, await self._receipt(record))

    async def receive(self, node: AllowedNode, update_digest: Digest) -> Reception[UpdateRecord]:
        """The reception of a declared update's chunks; an older stream's ends.

        Raises:
            UnknownUpdateError: it was not declared, or its round is over.
            RefusedError: it was refused before.
        """
        return await self._take_over(await self._declared(node, update_digest))

    async def _declared(self, node: AllowedNode, update_digest: Digest) -> UpdateRecord:
        self._presence.saw(node.node_id)
        state = await self._register.state()
        record = None
        if state.round is not None:
            record = record_of(node.node_id, state.round.round_id, state)
        if record is None or record.update_digest != update_digest:
            raise UnknownUpdateError(
                f"update {update_digest[:12]} was not declared for this round; open it first"
            )
        if record.status is UpdateStatus.REFUSED:
            raise RefusedError(_stored_refusal(record))
        return record

    async def _take_over(self, record: UpdateRecord) -> Reception[UpdateRecord]:
        await self._end_older(record.node_id)
        reception = Reception(record, spool=self._spool)
        self._receptions[record.node_id] = reception
        await reception.begin()
        return reception

    async def _end_older(self, node_id: NodeId) -> None:
        # Until there is none: another may have begun while one ended.
        while (older := self._receptions.pop(node_id, None)) is not None:
            await older.end()

    async def lend(self, node: AllowedNode, update_digest: Digest) -> Loan | Progress:
        """Lend a declared update to a front end, which receives its chunks; an older stream ends.

        Returns:
            The loan, or how the update stands where it was admitted already.

        Raises:
            UnknownUpdateError, RefusedError: as ``receive``.
            SpoolError: there is no room for it.
        """
        record = await self._declared(node, update_digest)
        if record.status is not UpdateStatus.RECEIVING:
            return await self._decided(await self._settled(record))
        await self._end_older(record.node_id)
        # Known before the spool is asked: whoever takes over meanwhile ends it.
        loan = self._receptions[record.node_id] = Loan(record)
        try:
            loan.token = await asyncio.to_thread(
                self._spool.lend,
                record.round_id,
                record.node_id,
                byte_count=record.byte_count,
                chunk_hashes=record.chunk_hashes,
            )
        except BaseException:
            self.end_loan(loan)
            raise
        return loan

    async def lent_gathered(self, loan: Loan) -> None:
        """Delete what others had received of an update: a front end has all of it, durable.

        Raises:
            SupersededError: a newer stream took over.
            SpoolError: the disk failed.
        """
        self._check_newest(loan)
        record = loan.record
        await asyncio.to_thread(self._spool.keep_loan, record.round_id, record.node_id, loan.token)

    async def lent_refused(self, loan: Loan, reason: str) -> None:
        """Log that a front end did not take a chunk."""
        record, refusal = loan.record, Refusal(RefusalCode.WRONG_CHUNKS, reason)
        await self._note_refusal(record.node_id, refusal, update=record.update_digest)

    async def complete_lent(self, node: AllowedNode, loan: Loan) -> Progress:
        """Take an update back whose last chunk a front end has received, and judge it.

        Every chunk is compared with what was declared once more: a front end is not believed.

        Raises:
            SupersededError: a newer stream took over.
            RefusedError: as ``complete``.
        """
        self._check_newest(loan)
        del self._receptions[loan.record.node_id]
        record = loan.record
        await asyncio.to_thread(self._spool.take_back, record.round_id, record.node_id, loan.token)
        reception = await self._take_over(record)
        if not reception.is_complete:
            return await self.pause(reception)
        return await self.complete(node, reception)

    def end_loan(self, loan: Loan) -> None:
        """The front end is gone, or done; what it made durable stays."""
        if self._receptions.get(loan.record.node_id) is loan:
            del self._receptions[loan.record.node_id]

    def _check_newest(self, loan: Loan) -> None:
        if self._receptions.get(loan.record.node_id) is not loan:
            raise SupersededError("a newer stream took over this update")

    async def take(
        self, reception: Reception[UpdateRecord], index: int, data: bytes | memoryview
    ) -> asyncio.Future[None]:
        """Begin to take an update's next chunk, once the one before is taken.

        Returns:
            When it is taken, or is not.

        Raises:
            ChunkRefusedError: the one before is not the one declared. The refusal is in the log;
                the sound chunk may still come.
            SpoolError: the disk failed, or has no room.
            SupersededError: a newer stream took over.
        """
        return await self._noted(reception, reception.take(index, data))

    async def settle(self, reception: Reception[UpdateRecord]) -> None:
        """Wait until the last chunk is taken; raises as ``take`` does."""
        await self._noted(reception, reception.settle())

    async def _noted(self, reception: Reception[UpdateRecord], taking: Awaitable[T]) -> T:
        """Take, with a refusal in the log."""
        try:
            return await taking
        except ChunkRefusedError as error:
            record = reception.record
            refusal = Refusal(RefusalCode.WRONG_CHUNKS, str(error))
            await self._note_refusal(record.node_id, refusal, update=record.update_digest)
            raise

    async def let_go(self, reception: Reception[UpdateRecord]) -> None:
        """End a reception whose stream broke; what was taken is durable."""
        try:
            with suppress(SpoolError):
                await self.settle(reception)
        finally:
            if self._receptions.get(reception.record.node_id) is reception:
                del self._receptions[reception.record.node_id]
            await reception.end()

    async def pause(self, reception: Reception[UpdateRecord]) -> Progress:
        """End a reception whose stream closed before its last chunk."""
        durable = await reception.durable_chunks()
        await self.let_go(reception)
        record = reception.record
        return Progress(record.update_digest, durable, chunk_count(record.byte_count), None)

    async def complete(self, node: AllowedNode, reception: Reception[UpdateRecord]) -> Progress:
        """Judge an update whose last chunk was taken, and log the judgement.

        Raises:
            RefusedError: its contents cannot count, or its round closed meanwhile.
        """
        if reception.record.status is UpdateStatus.ADMITTED:
            return await self._decided(reception.record)
        path = await reception.finish()
        await self.let_go(reception)
        # Each chunk was compared with what was declared; as long as nobody writes to the file,
        # nobody needs to again.
        await asyncio.to_thread(self._hashes.take, path, reception.record.chunk_hashes)
        seen = reception.contents
        contents = await asyncio.to_thread(scan_update, path) if seen is None else seen
        refusal = check_contents(
            contents, plan=self._plan, enrolled_patients=node.enrolled_patients
        )
        record = reception.record
        evaluation = _evaluation(record, node)

        def decide(state: State) -> Decision[UpdateRecord]:
            rnd = state.round
            known = record_of(record.node_id, record.round_id, state)
            if known is not None and known.status is not UpdateStatus.RECEIVING:
                return Decision(known)
            now, closed = self._clock(), None
            if rnd is None or rnd.round_id != record.round_id or rnd.phase is not Phase.COLLECTING:
                closed = Refusal(RefusalCode.NO_ROUND, f"round {record.round_id} has closed")
            refused = closed or refusal
            status = UpdateStatus.ADMITTED if refused is None else UpdateStatus.REFUSED
            decided = replace(
                record,
                status=status,
                code=None if refused is None else refused.code,
                reason="" if refused is None else refused.reason,
                norm=contents.norm if refusal is None else None,
                decided_at=now,
            )
            written = entry(
                f"update_{status.value}",
                at=now,
                round=record.round_id,
                node=record.node_id,
                update=record.update_digest,
                code=None if refused is None else refused.code.value,
                reason=None if refused is None else refused.reason,
                norm=decided.norm,
            )
            put = PutUpdate(decided, decided_by=0)
            if closed is not None or rnd is None:
                return Decision(decided, (put,), (written,))
            if refused is not None:
                excluded = NodeExcluded(record.node_id, f"refused: {refused.reason}")
                return Decision(decided, (PutRound(advance(rnd, excluded)), put), (written,))
            admitted = UpdateAdmitted(record.node_id, record.update_digest, evaluation)
            entries = [written]
            if evaluation is not None:
                entries.append(
                    evaluation_entry(evaluation, node_id=record.node_id, rnd=rnd, at=now)
                )
            changes = (PutRound(advance(rnd, admitted)), put)
            return Decision(decided, changes, tuple(entries))

        _, logged = await self._register.decide(decide)
        state = await self._register.state()
        final = record_of(record.node_id, record.round_id, state)
        if final is None:
            raise UnknownUpdateError(f"round {record.round_id} has closed")
        if logged:
            self._report(final)
            if final.status is UpdateStatus.ADMITTED and evaluation is not None:
                _report_evaluation(final, evaluation)
        return await self._decided(final)

    def _report(self, record: UpdateRecord) -> None:
        self._meter.update_decided("admitted" if record.code is None else record.code.value)
        log.info(
            f"update_{record.status.value}",
            round=record.round_id,
            node=record.node_id,
            update=record.update_digest[:12],
            reason=record.reason or None,
        )

    async def _refuse(self, node_id: NodeId, refusal: Refusal, *, update: Digest) -> NoReturn:
        """Log a refusal that leaves the round as it is, and raise it."""
        await self._note_refusal(node_id, refusal, update=update)
        raise RefusedError(refusal)

    async def _note_refusal(self, node_id: NodeId, refusal: Refusal, *, update: Digest) -> None:
        self._meter.update_decided(refusal.code.value)
        state = await self._register.state()
        number = 0 if state.round is None else state.round.round_id
        if self._may_log_refusal(node_id, number):
            log.warning(
                "update_refused",
                round=number or None,
                node=node_id,
                code=refusal.code.value,
                reason=refusal.reason,
            )
            written = entry(
                "update_refused",
                at=self._clock(),
                round=number or None,
                node=node_id,
                update=update,
                code=refusal.code.value,
                reason=refusal.reason,
            )
            await self._register.decide(lambda _: Decision(None, (), (written,)))

    def _may_log_refusal(self, node_id: NodeId, round_number: int) -> bool:
        if self._refusals[0] != round_number:
            self._refusals = (round_number, {})
        counts = self._refusals[1]
        counts[node_id] = counts.get(node_id, 0) + 1
        return counts[node_id] <= MAX_REFUSALS_LOGGED

    async def last_receipt(self, node: AllowedNode) -> Envelope | None:
        """The receipt of a hospital's newest admitted update.

        It shows a hospital whose disk was restored from a backup that it has spent more than
        it remembers.
        """
        record = await asyncio.to_thread(self._store.last_admitted, node.node_id)
        return None if record is None else await self._receipt(record)

    async def _receipt(self, record: UpdateRecord) -> Envelope:
        assert record.log_index is not None
        assert record.log_leaf_hash is not None
        assert record.decided_at is not None
        receipt = Receipt(
            federation_id=self._plan.federation_id,
            study_id=self._plan.study_id,
            round_id=record.round_id,
            node_id=record.node_id,
            update_digest=record.update_digest,
            log_index=record.log_index,
            log_leaf_hash=record.log_leaf_hash,
            admitted_at=record.decided_at,
        )
        # A token may take its time.
        return await asyncio.to_thread(
            sign, PayloadType.RECEIPT, format_receipt(receipt), self._signer
        )

    def upload_fraction(self, node_id: NodeId) -> float:
        """How much of its update a node has sent, from 0 to 1."""
        reception = self._receptions.get(node_id)
        return 0.0 if reception is None else reception.fraction

    async def close(self) -> None:
        """End every reception; what was durable stays."""
        receptions, self._receptions = list(self._receptions.values()), {}
        for reception in receptions:
            await reception.end()


def _verified(envelope: Envelope, node: AllowedNode) -> UpdateManifest | Refusal:
    try:
        payload = verify(envelope, node.signing_key, PayloadType.UPDATE)
        return parse_update_manifest(payload)
    except IntegrityError as error:
        return Refusal(RefusalCode.BAD_SIGNATURE, str(error))
    except InvalidInputError as error:
        return Refusal(RefusalCode.MALFORMED, str(error))


def record_of(node_id: NodeId, round_id: RoundId, state: State) -> UpdateRecord | None:
    for record in state.updates:
        if record.node_id == node_id and record.round_id == round_id:
            return record
    return None


def _evaluation(record: UpdateRecord, node: AllowedNode) -> HospitalEvaluation | None:
    # The signature was verified when the update was declared.
    told = parse_update_manifest(record.manifest.payload).evaluation
    if told is None:
        return None
    return take_evaluation(told, enrolled_patients=node.enrolled_patients)


def _report_evaluation(record: UpdateRecord, evaluation: HospitalEvaluation) -> None:
    """Say loudly what cannot be; it changes nothing."""
    facts = {"round": record.round_id, "node": record.node_id, "patients": evaluation.patients}
    if evaluation.doubt:
        log.warning("hospital_evaluation_doubted", **facts, reason=evaluation.doubt)
    else:
        log.info(
            "hospital_evaluated", **facts, correct=evaluation.correct, stddev=evaluation.stddev
        )


def _stored_refusal(record: UpdateRecord) -> Refusal:
    assert record.code is not None, "a refused update has a code"
    return Refusal(record.code, record.reason)
