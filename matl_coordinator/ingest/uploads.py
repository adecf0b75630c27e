"""A hospital's update, received by a front end: the leader decides, the chunks stay here.

The leader verifies the declaration and lends the update; chunks are checked against the declared
hashes and written to a file that this front end alone has. With the last one the leader takes the
file back, checks it again and judges. Whatever ends in between, the next upload goes on where the
files end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from matl_common.errors import InvalidInputError
from matl_common.ids import NodeId, RoundId, parse_digest
from matl_common.tensors import CHUNK_BYTES
from matl_common.wire import federation_pb2, ingest_pb2
from matl_common.wire.chunks import Numbered, parse_push, transfer_seconds
from matl_common.wire.documents import parse_update_manifest
from matl_coordinator.ingest.leader import Leader
from matl_coordinator.ingest.loan_call import LoanCall, lent
from matl_coordinator.ingest.metrics import FrontEndMetrics
from matl_coordinator.ingest.relay import answer_of
from matl_coordinator.ports import ChunkRefusedError
from matl_coordinator.rpc.messages import InTime, only_message
from matl_coordinator.rpc.pushing import take_all
from matl_coordinator.rpc.relayed import relaying
from matl_coordinator.rpc.server import OPEN_UPDATE
from matl_coordinator.rpc.turns import Turns
from matl_coordinator.service.reception import Reception
from matl_coordinator.store.loans import Declared, Loans
from matl_coordinator.store.sink import DiskSink

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

LAST_WORD_SECONDS = 5.0
"""How long a refusal may be on its way to the leader's log."""

Pushed = AsyncIterator[Numbered | str | None]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _LentFile:
    """Where a ``Reception`` receives a lent update: a file that begins with others' chunks."""

    loans: Loans
    update: Declared
    token: str
    kept_chunks: int

    def open(
        self, round_id: RoundId, node_id: NodeId, *, byte_count: int, chunk_hashes: bytes
    ) -> DiskSink:
        """Make the file; there is only one update."""
        return self.loans.open(self.update, self.token, chunks=self.kept_chunks)


class Uploads:
    """Takes updates for the leader. Runs on one event loop."""

    def __init__(
        self, leader: Leader, loans: Loans, *, idle_seconds: float, meter: FrontEndMetrics
    ) -> None:
        """``idle_seconds`` is how long a hospital may be silent."""
        self._leader = leader
        self._loans = loans
        self._idle_seconds = idle_seconds
        self._meter = meter
        self._turns = Turns()

    async def open_update(self, context: Context, certificate: bytes, node_id: NodeId) -> None:
        """Have the leader take note of an update; answer how much of it is in the spool.

        Raises:
            LeaderAnswerError: the leader refuses it, or there is none.
            SpoolError: the spool cannot be read.
            IdleError: the hospital said nothing.
        """
        message: bytes = await only_message(InTime(context.read, idle_seconds=self._idle_seconds))
        status = await self._declare(context, certificate, message)
        if not status.HasField("receipt"):
            # What the leader took no offence at; it knows only of what it received itself.
            update = _declared(federation_pb2.OpenUpdateRequest.FromString(message), node_id)
            status.durable_chunks = await asyncio.to_thread(self._loans.durable_chunks, update)
            if status.durable_chunks == update.chunks:
                # Its last stream ended between the last chunk and the judgement.
                status = await self._receive(
                    context, certificate, status.update_digest, _no_chunks()
                )
        await context.write(status.SerializeToString())

    async def _declare(
        self, context: Context, certificate: bytes, message: bytes
    ) -> federation_pb2.UpdateStatus:
        with self._leader.line() as channel:
            call: Any = channel.unary_unary(
                OPEN_UPDATE, response_deserializer=federation_pb2.UpdateStatus.FromString
            )
            try:
                answer = await call(
                    message, metadata=relaying(certificate), timeout=context.time_remaining()
                )
            except grpc.aio.AioRpcError as error:
                raise answer_of(error, self._leader) from error
        assert isinstance(answer, federation_pb2.UpdateStatus)
        return answer

    async def push(self, context: Context, certificate: bytes) -> None:
        """Take an update's chunks, and have it judged once all are there.

        Raises:
            LeaderAnswerError: the leader does not want them, refuses the update, or is gone.
            ChunkRefusedError: a chunk is not the one declared.
            SpoolError: the spool's disk failed, or others' chunks are gone.
            InvalidInputError: the stream is not one of chunks.
            IdleError: the hospital said nothing.
        """
        pushed = InTime[Numbered | str | None](
            partial(_read, context),
            idle_seconds=self._idle_seconds,
            on_the_way_seconds=transfer_seconds(CHUNK_BYTES),
        )
        first = await anext(pushed, None)
        if not isinstance(first, str):
            raise InvalidInputError("the first message of a push must name the update")
        status = await self._receive(context, certificate, parse_digest(first), pushed)
        await context.write(status.SerializeToString())

    async def _receive(
        self, context: Context, certificate: bytes, digest: str, pushed: Pushed
    ) -> federation_pb2.UpdateStatus:
        async with lent(
            self._leader, certificate, digest, seconds=context.time_remaining()
        ) as call:
            begun = await call.answer()
            if not begun.HasField("loan"):
                return begun.status
            update = _lent(begun.loan)
            # The update's status, or why the leader ended the loan.
            answer = asyncio.create_task(call.answer())
            taking = asyncio.create_task(self._take(call, update, begun.loan.token, pushed))
            try:
                await asyncio.wait({answer, taking}, return_when=asyncio.FIRST_COMPLETED)
                if taking.done():
                    durable = await _told(taking, call, answer)
                    if durable < update.chunks:
                        return _unfinished(digest, durable, update)
                    call.say(complete=True)
                return (await answer).status
            finally:
                for task in (taking, answer):
                    task.cancel()
                await asyncio.gather(taking, answer, return_exceptions=True)

    async def _take(self, call: LoanCall, update: Declared, token: str, pushed: Pushed) -> int:
        """Take chunks to the stream's end; returns how many are durable in the closed file."""
        reception: Reception[Declared] | None = None

        async def take(index: int, data: bytes | memoryview) -> asyncio.Future[None]:
            nonlocal reception
            if reception is None:
                # Ended below even if this is cut while the file is being made.
                reception = self._reception(update, token, chunks=index)
                await self._begin(call, reception, chunks=index)
            taking = await reception.take(index, data)
            call.received_chunks = index
            return taking

        try:
            await take_all(
                pushed, take=take, turns=self._turns, on_bytes=self._meter.bytes_received
            )
            if reception is None:
                there = await asyncio.to_thread(self._loans.durable_chunks, update)
                reception = self._reception(update, token, chunks=there)
                await self._begin(call, reception, chunks=there)
            return await reception.durable_chunks()
        finally:
            if reception is not None:
                await reception.end()

    def _reception(self, update: Declared, token: str, *, chunks: int) -> Reception[Declared]:
        """Of an update whose file will begin with so many chunks that others had received."""
        return Reception(update, spool=_LentFile(self._loans, update, token, chunks), looks=False)

    async def _begin(self, call: LoanCall, reception: Reception[Declared], *, chunks: int) -> None:
        """Make the file, and say so."""
        update = reception.record
        await asyncio.to_thread(self._loans.check_round, update.round_id)
        await reception.begin()
        call.say(gathered=True)
        self._meter.bytes_kept(min(chunks * CHUNK_BYTES, update.byte_count))
        log.info(
            "upload_continued" if chunks else "upload_begun",
            round=update.round_id,
            node=update.node_id,
            chunks_kept=chunks,
            chunks=update.chunks,
        )


async def _told(
    taking: asyncio.Task[int], call: LoanCall, answer: asyncio.Task[ingest_pb2.ReceiveResponse]
) -> int:
    """What taking came to; a refused chunk is told to the leader, for the log."""
    try:
        return taking.result()
    except ChunkRefusedError as error:
        call.say(refused=str(error))
        call.say_no_more()
        await asyncio.wait({answer}, timeout=LAST_WORD_SECONDS)
        raise


async def _no_chunks() -> Pushed:
    nothing: tuple[Numbered, ...] = ()
    for each in nothing:
        yield each


async def _read(context: Context) -> object:
    """The next message of a push, or gRPC's word for its end."""
    message = await context.read()
    if message is grpc.aio.EOF:
        return message
    try:
        return parse_push(message)
    except DecodeError as error:
        raise InvalidInputError("the message is not one of this method's") from error


def _declared(request: federation_pb2.OpenUpdateRequest, node_id: NodeId) -> Declared:
    manifest = parse_update_manifest(request.manifest.payload)
    return Declared(
        round_id=manifest.round_id,
        node_id=node_id,
        byte_count=manifest.byte_count,
        chunk_hashes=request.chunk_hashes,
    )


def _lent(loan: ingest_pb2.Loan) -> Declared:
    return Declared(
        round_id=RoundId(loan.round_id),
        node_id=NodeId(loan.node_id),
        byte_count=loan.byte_count,
        chunk_hashes=loan.chunk_hashes,
    )


def _unfinished(digest: str, durable: int, update: Declared) -> federation_pb2.UpdateStatus:
    return federation_pb2.UpdateStatus(
        update_digest=digest, durable_chunks=durable, total_chunks=update.chunks
    )
