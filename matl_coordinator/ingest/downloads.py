"""A model, sent by a front end from the coordinator's folder, to whom the leader lets have it.

The leader is asked for the model from its end on, which is nothing to send and says whether the
caller may have it. Meanwhile a call of the caller's is kept open at the leader, which ends it where
the caller may call no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from matl_common.errors import InvalidInputError
from matl_common.ids import parse_digest
from matl_common.tensors import MODEL_SUFFIX
from matl_common.wire import federation_pb2 as pb
from matl_coordinator.ingest.leader import Leader
from matl_coordinator.ingest.metrics import FrontEndMetrics
from matl_coordinator.ingest.relay import NOBODY_LEADS, LeaderAnswerError, answer_of, relay
from matl_coordinator.rpc.blocks import ModelBlocks, block_end, check_offset
from matl_coordinator.rpc.messages import InTime, only_message
from matl_coordinator.rpc.relayed import relaying
from matl_coordinator.rpc.server import PULL_MODEL

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

WATCH = "/grpc.health.v1.Health/Watch"
LAST_BLOCK_SECONDS = 5.0
"""How long the block under way may take when a download is cut short."""


class Downloads:
    """Sends models. Runs on one event loop."""

    def __init__(
        self, leader: Leader, models: Path, *, idle_seconds: float, meter: FrontEndMetrics
    ) -> None:
        """Send from the folder ``models``; a caller may be silent for ``idle_seconds``."""
        self._leader = leader
        self._models = models
        self._idle_seconds = idle_seconds
        self._meter = meter
        self._blocks = ModelBlocks()

    async def pull(self, context: Context, certificate: bytes) -> None:
        """Send a model from an offset on; one that is not here yet comes from the leader.

        Raises:
            LeaderAnswerError: the caller may not have it, there is none, or nobody leads.
            InvalidInputError: the request is none, or the offset is beyond the model's end.
            IdleError: the caller said nothing.
        """
        message: bytes = await only_message(InTime(context.read, idle_seconds=self._idle_seconds))
        request = _parsed(message)
        path = self._models / f"{parse_digest(request.digest)}{MODEL_SUFFIX}"
        try:
            size = await asyncio.to_thread(check_offset, path, request.offset)
        except OSError:
            await relay(self._leader, PULL_MODEL, context, certificate, first=message)
            return
        await self._ask(
            context, certificate, pb.PullModelRequest(digest=request.digest, offset=size)
        )
        async with self._allowed(certificate) as forbidden:
            sending = asyncio.create_task(
                self._send(context, path, request.offset, size, until=forbidden)
            )
            try:
                await asyncio.wait({sending, forbidden}, return_when=asyncio.FIRST_COMPLETED)
                if not sending.done():
                    # gRPC takes no status while a block is on its way to it.
                    await asyncio.wait({sending}, timeout=LAST_BLOCK_SECONDS)
                if not sending.done() or not sending.result():
                    forbidden.result()
                    raise LeaderAnswerError(grpc.StatusCode.UNAVAILABLE, NOBODY_LEADS)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def _ask(
        self, context: Context, certificate: bytes, nothing: pb.PullModelRequest
    ) -> None:
        """Ask the leader for no bytes of a model."""
        with self._leader.line() as channel:
            method: Any = channel.unary_stream(PULL_MODEL)
            call = method(
                nothing.SerializeToString(),
                metadata=relaying(certificate),
                timeout=context.time_remaining(),
            )
            try:
                async for _ in call:
                    raise InvalidInputError("the model is another one here than at the leader")
            except grpc.aio.AioRpcError as error:
                raise answer_of(error, self._leader) from error
            finally:
                call.cancel()

    @asynccontextmanager
    async def _allowed(self, certificate: bytes) -> AsyncIterator[asyncio.Task[None]]:
        """What ends, or fails, once the caller may call no more, or nobody leads."""
        with self._leader.line() as channel:
            method: Any = channel.unary_stream(WATCH)
            call = method(b"", metadata=relaying(certificate))
            watching = asyncio.create_task(self._watch(call))
            try:
                yield watching
            finally:
                call.cancel()
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, call: Any) -> None:
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            raise answer_of(error, self._leader) from error

    async def _send(
        self,
        context: Context,
        path: Path,
        offset: int,
        size: int,
        *,
        until: asyncio.Task[None],
    ) -> bool:
        """Send block by block; whether all of them were sent before ``until`` was over."""
        with self._blocks.in_use() as stream:
            while offset < size and not until.done():
                await stream.reach(path, offset)
                await context.write(await self._blocks.at(path, offset))
                end = min(size, block_end(offset))
                self._meter.bytes_sent(end - offset)
                offset = end
        return offset >= size


def _parsed(message: bytes) -> pb.PullModelRequest:
    try:
        return pb.PullModelRequest.FromString(message)
    except DecodeError as error:
        raise InvalidInputError("the message is not one of this method's") from error
