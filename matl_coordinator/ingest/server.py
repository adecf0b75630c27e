"""A front end's port: who connects is certified, uploads are taken, all else is relayed.

Who may call what is the leader's to say, for every call; so nothing here has a list of anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog

from matl_common.errors import MatlError
from matl_common.identity.tls import (
    PeerRefusedError,
    ServerIdentity,
    peer_certificate,
    server_options,
)
from matl_coordinator.ingest.downloads import Downloads
from matl_coordinator.ingest.leader import Leader
from matl_coordinator.ingest.metrics import FrontEndMetrics
from matl_coordinator.ingest.relay import LeaderAnswerError, relay
from matl_coordinator.ingest.uploads import Uploads
from matl_coordinator.ports import SpoolError
from matl_coordinator.rpc.guard import ONLY_RELAYED
from matl_coordinator.rpc.server import (
    ATTEST,
    AWAIT_ROUND,
    OPEN_UPDATE,
    PULL_MODEL,
    PUSH_CHUNKS,
    listening,
)
from matl_coordinator.rpc.statuses import status_of

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

NOT_ATTESTED = (
    "a front end shows no evidence of the coordinator's machine (MODE2): dial that itself"
)
STOPS = "this front end stops; connect again, to another one"

log = structlog.get_logger(__name__)


class FrontEndServer:
    """A ``grpc.aio`` server in the coordinator's name."""

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        leader: Leader,
        uploads: Uploads,
        downloads: Downloads | None,
        meter: FrontEndMetrics,
    ) -> None:
        """Prepare the server; it listens once started. Without ``downloads`` they are relayed."""
        self._credentials = identity.credentials
        self._leader = leader
        self._uploads = uploads
        self._downloads = downloads
        self._meter = meter
        self._stops = asyncio.Event()
        self._server = grpc.aio.server(options=server_options())
        self._server.add_generic_rpc_handlers((_Everything(self._handle),))

    async def start(self, address: str) -> int:
        """Listen on ``host:port``; returns the port.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        return await listening(self._server, address, self._credentials)

    async def stop(self, *, grace_seconds: float) -> None:
        """Refuse new calls and give those under way ``grace_seconds`` to end.

        Those that wait for something to happen end at once.
        """
        stopping = asyncio.create_task(self._server.stop(grace_seconds))
        # Once it refuses calls: whoever is answered would ask again.
        await asyncio.sleep(0)
        self._stops.set()
        await stopping

    async def _handle(self, method: str, context: Context) -> None:
        self._meter.call_began()
        code = grpc.StatusCode.OK
        try:
            await self._answer(method, context)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            code, text = _status_of(error)
            if isinstance(error, SpoolError):
                self._meter.spool_failed()
                log.error("spool_failed", method=method, reason=str(error))
            elif not isinstance(error, MatlError):
                log.error("call_failed", method=method, exc_info=error)
            await context.abort(code, text)
        finally:
            self._meter.call_ended(method.rpartition(".")[2], code.name)

    async def _answer(self, method: str, context: Context) -> None:
        peer = peer_certificate(context)
        (certificate,) = context.auth_context()["x509_pem_cert"]
        if method in ONLY_RELAYED:
            raise LeaderAnswerError(
                grpc.StatusCode.PERMISSION_DENIED, f"only front ends may call {method}"
            )
        if method == ATTEST:
            # What the leader would show is its own channel's, which the caller is not on.
            raise LeaderAnswerError(grpc.StatusCode.FAILED_PRECONDITION, NOT_ATTESTED)
        if method == OPEN_UPDATE:
            await self._uploads.open_update(context, certificate, peer.node_id)
        elif method == PUSH_CHUNKS:
            await self._uploads.push(context, certificate)
        elif method == PULL_MODEL and self._downloads is not None:
            await self._downloads.pull(context, certificate)
        elif method == AWAIT_ROUND:
            await self._unless_stopped(relay(self._leader, method, context, certificate))
        else:
            await relay(self._leader, method, context, certificate)

    async def _unless_stopped(self, answering: Awaitable[None]) -> None:
        answer = asyncio.ensure_future(answering)
        stops = asyncio.create_task(self._stops.wait())
        try:
            await asyncio.wait({answer, stops}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise LeaderAnswerError(grpc.StatusCode.UNAVAILABLE, STOPS)
            answer.result()
        finally:
            for task in (answer, stops):
                task.cancel()
            await asyncio.gather(answer, stops, return_exceptions=True)


class _Everything(grpc.GenericRpcHandler):
    """Every method, as streams of bytes both ways, which fits all."""

    def __init__(self, handle: Callable[[str, Context], Awaitable[None]]) -> None:
        self._handle = handle

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method

        async def behaviour(_: object, context: Context) -> None:
            await self._handle(method, context)

        return grpc.stream_stream_rpc_method_handler(behaviour)


def _status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    match error:
        case LeaderAnswerError():
            return error.code, str(error)
        case PeerRefusedError():
            return grpc.StatusCode.PERMISSION_DENIED, str(error)
        case _:
            return status_of(error)
