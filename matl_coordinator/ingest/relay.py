"""A call, passed on to the leader as it came, with the caller's certificate beside it.

Messages are not read. What the leader answers goes back, its status included.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from matl_common.errors import MatlError
from matl_coordinator.ingest.leader import Leader
from matl_coordinator.rpc.relayed import relaying

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

NOBODY_LEADS = "this front end reaches no coordinator that leads; connect again and resume"
_NOBODY_THERE = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
)
"""Statuses of a call that the leader did not answer, or that was on a connection given up."""


class LeaderAnswerError(MatlError):
    """The leader's status, for whoever called."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def answer_of(error: grpc.aio.AioRpcError, leader: Leader) -> LeaderAnswerError:
    """What the caller gets to see: a leader's text, and none of how it is reached."""
    if error.code() in _NOBODY_THERE:
        leader.doubt()
        return LeaderAnswerError(grpc.StatusCode.UNAVAILABLE, NOBODY_LEADS)
    return LeaderAnswerError(error.code(), error.details() or "")


async def relay(
    leader: Leader,
    method: str,
    context: Context,
    certificate: bytes,
    *,
    first: bytes | None = None,
) -> None:
    """Make the call for the holder of ``certificate``, both ways until either side ends it.

    Args:
        leader: whom to call.
        method: the call's path.
        context: of the call that came.
        certificate: of who made it, in PEM.
        first: a message of it that was read already.

    Raises:
        LeaderAnswerError: the leader refused, or there is none.
    """
    with leader.line() as channel:
        call: Any = channel.stream_stream(method)(
            metadata=relaying(certificate), timeout=context.time_remaining()
        )
        sending = asyncio.create_task(_send(context, call, first))
        try:
            async for message in call:
                await context.write(message)
        except grpc.aio.AioRpcError as error:
            raise answer_of(error, leader) from error
        finally:
            call.cancel()
            sending.cancel()
            # Whatever it came to: the call's own status tells.
            await asyncio.gather(sending, return_exceptions=True)


async def _send(context: Context, call: Any, first: bytes | None) -> None:
    # The call may be over, which its reader learns.
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        if first is not None:
            await call.write(first)
        while (message := await context.read()) is not grpc.aio.EOF:
            await call.write(message)
        await call.done_writing()
