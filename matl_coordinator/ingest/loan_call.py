"""The leader's ear while an update is lent: one call, which lasts as long as the loan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio

from matl_common.wire import ingest_pb2 as pb
from matl_coordinator.ingest.leader import Leader
from matl_coordinator.ingest.relay import NOBODY_LEADS, LeaderAnswerError, answer_of
from matl_coordinator.rpc.relayed import relaying
from matl_coordinator.rpc.server import INGEST_SERVICE

RECEIVE = f"/{INGEST_SERVICE}/Receive"
BEAT_SECONDS = 5.0
"""How often the leader hears of an upload that goes on, however slowly."""


class LoanCall:
    """What is said to the leader, and what it answers. Runs on one event loop."""

    def __init__(self, call: Any) -> None:
        """Speak over ``call``, once ``speak`` runs."""
        self.received_chunks = 0
        """Told every few seconds."""
        self._said: asyncio.Queue[pb.ReceiveRequest | None] = asyncio.Queue()
        self._call = call

    def say(self, **part: object) -> None:
        """Have a message sent, such as ``complete=True``."""
        self._said.put_nowait(pb.ReceiveRequest(**part))  # type: ignore[arg-type]

    def say_no_more(self) -> None:
        """Let the leader end the call."""
        self._said.put_nowait(None)

    async def answer(self) -> pb.ReceiveResponse:
        """The leader's next message.

        Raises:
            grpc.aio.AioRpcError: it ended the loan, or is gone.
            LeaderAnswerError: it ended the call without a word.
        """
        answer = await self._call.read()
        if answer is grpc.aio.EOF:
            raise LeaderAnswerError(grpc.StatusCode.UNAVAILABLE, NOBODY_LEADS)
        assert isinstance(answer, pb.ReceiveResponse)
        return answer

    async def speak(self) -> None:
        """Send what is said, until no more is, or the call is over."""
        # Its status tells why, to whoever reads.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while (word := await self._word()) is not None:
                await self._call.write(word)
            await self._call.done_writing()

    async def _word(self) -> pb.ReceiveRequest | None:
        try:
            async with asyncio.timeout(BEAT_SECONDS):
                return await self._said.get()
        except TimeoutError:
            return pb.ReceiveRequest(received_chunks=self.received_chunks)


@asynccontextmanager
async def lent(
    leader: Leader, certificate: bytes, digest: str, *, seconds: float | None
) -> AsyncIterator[LoanCall]:
    """Have an update lent for the block.

    Args:
        leader: who lends it.
        certificate: of the hospital whose update it is.
        digest: of the update, which it has declared.
        seconds: how long the call may last.

    Raises:
        LeaderAnswerError: the leader does not lend it, or ended the loan; or there is none.
    """
    with leader.line() as channel:
        receive = channel.stream_stream(
            RECEIVE,
            request_serializer=pb.ReceiveRequest.SerializeToString,
            response_deserializer=pb.ReceiveResponse.FromString,
        )
        call: Any = receive(metadata=relaying(certificate), timeout=seconds)
        found = LoanCall(call)
        found.say(update_digest=digest)
        speaking = asyncio.create_task(found.speak())
        try:
            yield found
        except grpc.aio.AioRpcError as error:
            raise answer_of(error, leader) from error
        finally:
            call.cancel()
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
