"""What a coordinator that stands by answers: that it does.

On the leader's own port with the leader's own name, so that whoever dials it knows at once, and
asks another address. Nothing that comes is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from matl_common.identity.tls import ServerIdentity, server_options
from matl_coordinator.ports import Meter
from matl_coordinator.rpc.renewal import CertificateFiles
from matl_coordinator.rpc.server import SERVICES, listening

STANDS_BY = "this coordinator stands by while another one leads the study; ask that one"


class WaitingServer:
    """Answers health NOT_SERVING, and everything else UNAVAILABLE."""

    def __init__(
        self, identity: ServerIdentity, *, meter: Meter, clock: Callable[[], datetime]
    ) -> None:
        """Prepare the server; it listens once started, and its certificate follows its files."""
        self._credentials = identity.credentials
        self._certificates = CertificateFiles(
            identity=identity, meter=meter, note=_unlogged, clock=clock
        )
        self._following: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(options=server_options())
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers((_Refusal(),))

    async def start(self, address: str) -> int:
        """Listen on ``host:port``; returns the port.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        port = await listening(self._server, address, self._credentials)
        for service in (*SERVICES, ""):
            await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._following = asyncio.create_task(self._certificates.run())
        return port

    async def stop(self) -> None:
        """End at once: there is nothing to finish."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._server.stop(None)


class _Refusal(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        # Streams both ways fit every method.
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _unlogged(event: str, facts: Mapping[str, object]) -> None:
    """The log is the leader's."""


async def _refuse(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, STANDS_BY)
