"""``IngestService``: the leader's side of uploads that front ends receive.

``guard`` has authenticated the hospital, and the front end that relays it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from matl_common.errors import InvalidInputError
from matl_common.ids import parse_digest
from matl_common.wire import ingest_pb2 as pb
from matl_common.wire import ingest_pb2_grpc as pb_grpc
from matl_coordinator.rpc.federation import status_to_wire
from matl_coordinator.rpc.guard import caller
from matl_coordinator.service.intake import Intake, Progress
from matl_coordinator.service.loan import Loan
from matl_coordinator.service.reception import SupersededError

MAX_REASON = 500

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")


class IngestServicer(pb_grpc.IngestServiceServicer):
    """What front ends call."""

    def __init__(self, *, intake: Intake) -> None:
        self._intake = intake

    async def Receive(
        self, requests: AsyncIterator[pb.ReceiveRequest], context: Context
    ) -> AsyncIterator[pb.ReceiveResponse]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "update_digest":
            raise InvalidInputError("the first message must name the update")
        lent = await self._intake.lend(caller(), parse_digest(first.update_digest))
        if isinstance(lent, Progress):
            yield pb.ReceiveResponse(status=status_to_wire(lent))
            return
        try:
            yield pb.ReceiveResponse(loan=_to_wire(lent))
            while (message := await _unless_ended(lent, anext(requests, None))) is not None:
                match message.WhichOneof("part"):
                    case "received_chunks":
                        lent.received_chunks = message.received_chunks
                    case "gathered":
                        await self._intake.lent_gathered(lent)
                    case "refused":
                        await self._intake.lent_refused(lent, message.refused[:MAX_REASON])
                    case "complete":
                        progress = await self._intake.complete_lent(caller(), lent)
                        yield pb.ReceiveResponse(status=status_to_wire(progress))
                        return
                    case _:
                        raise InvalidInputError("only what became of the chunks may follow")
        finally:
            self._intake.end_loan(lent)


async def _unless_ended(loan: Loan, reading: Awaitable[T]) -> T:
    """Wait for a message; raises SupersededError once the loan has ended."""
    read, ended = asyncio.ensure_future(reading), asyncio.ensure_future(loan.ended())
    try:
        await asyncio.wait({read, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise SupersededError("a newer stream took over this update")
        return read.result()
    finally:
        read.cancel()
        ended.cancel()


def _to_wire(loan: Loan) -> pb.Loan:
    record = loan.record
    return pb.Loan(
        round_id=record.round_id,
        node_id=record.node_id,
        byte_count=record.byte_count,
        chunk_hashes=record.chunk_hashes,
        token=loan.token,
    )
