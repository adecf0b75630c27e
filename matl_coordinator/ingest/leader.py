"""The way to the coordinator that leads: connections with room, an address that follows it.

It is asked all the time whether it leads. Where it does not say so, the next address is tried on
connections of its own; calls under way have a while to end on those before. The front end's own
certificate is followed in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2

from matl_common.addresses import Addresses
from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import SpiffeId
from matl_common.identity.pkcs11.session import TokenError
from matl_common.identity.renewal import stamps_of, time_left
from matl_common.identity.tls import (
    MAX_STREAMS_PER_CONNECTION,
    TlsPlace,
    channel_options,
    load_client_identity,
)
from matl_coordinator.ingest.metrics import FrontEndMetrics
from matl_coordinator.rpc.server import FEDERATION_SERVICE

GRACE_SECONDS = 30.0
"""How long calls may go on with a leader that does not say any more that it leads."""
CHECK = "/grpc.health.v1.Health/Check"
_SERVING = health_pb2.HealthCheckResponse.SERVING

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Line:
    """One connection."""

    channel: grpc.aio.Channel
    calls: int = 0


class Leader:
    """Connections to whoever leads. Runs on one event loop."""

    def __init__(
        self,
        address: str,
        files: TlsPlace,
        coordinator: SpiffeId,
        *,
        poll_seconds: float,
        timeout_seconds: float,
        meter: FrontEndMetrics,
    ) -> None:
        """Load the files; dials when first used.

        Args:
            address: of the coordinator, or several with commas between them.
            files: this front end's key and certificate, and the authority of coordinators.
            coordinator: whose certificate it must be, at each address.
            poll_seconds: how often it is asked whether it leads.
            timeout_seconds: how long it may take to say so.
            meter: told of changes.

        Raises:
            ConfigurationError: a key or certificate file does not work.
            TokenError: the key's token cannot be reached.
        """
        self._addresses = Addresses(address)
        self._files = files
        self._stamps = stamps_of(files)
        self._identity = load_client_identity(files)
        # Connections of its own for each line: gRPC would make one of all.
        self._options = (*channel_options(coordinator), ("grpc.use_local_subchannel_pool", 1))
        self._poll_seconds = poll_seconds
        self._timeout_seconds = timeout_seconds
        self._meter = meter
        self._lines: list[_Line] = []
        self._doubted = asyncio.Event()
        # Why nobody leads, as it was logged last.
        self._told: str | None = "nobody was asked yet"
        # Tasks that close lines.
        self._closing: set[asyncio.Task[None]] = set()

    @contextmanager
    def line(self) -> Iterator[grpc.aio.Channel]:
        """A connection with room for one more call, kept for the block."""
        line = next((each for each in self._lines if each.calls < MAX_STREAMS_PER_CONNECTION), None)
        if line is None:
            line = self._open()
        line.calls += 1
        try:
            yield line.channel
        finally:
            line.calls -= 1
            if not line.calls and line in self._lines[1:]:
                self._lines.remove(line)
                self._close(line, grace_seconds=None)

    def doubt(self) -> None:
        """Ask at once whether it leads still: a call could not be made."""
        self._doubted.set()

    async def run(self) -> None:
        """Follow the leader, and the files, until cancelled."""
        while True:
            self._follow_files()
            reason = await self._refusal()
            self._meter.leader_reachable(reachable=reason is None)
            self._tell(reason)
            if reason is not None:
                self._addresses.failed(self._addresses.current)
                self._exchange()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    # Not more often than that where nobody answers.
                    await (self._doubted.wait() if reason is None else asyncio.Event().wait())
            self._doubted.clear()

    async def close(self) -> None:
        """Close every connection, whatever is under way."""
        for task in self._closing:
            task.cancel()
        lines, self._lines = self._lines, []
        for line in lines:
            await line.channel.close(None)

    async def _refusal(self) -> str | None:
        """Why whoever is at the present address is not the leader, or nothing."""
        request = health_pb2.HealthCheckRequest(service=FEDERATION_SERVICE)
        with self.line() as channel:
            check: Any = channel.unary_unary(
                CHECK,
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            try:
                answer = await check(request, timeout=self._timeout_seconds)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
        return None if answer.status == _SERVING else "it stands by"

    def _tell(self, reason: str | None) -> None:
        if reason == self._told:
            return
        self._told = reason
        if reason is None:
            log.info("leader_reached", address=self._addresses.current)
        else:
            log.warning("leader_unreachable", address=self._addresses.current, reason=reason)

    def _follow_files(self) -> None:
        stamps = stamps_of(self._files)
        if stamps != self._stamps:
            try:
                self._identity = load_client_identity(self._files)
            except (ConfigurationError, TokenError) as error:
                self._meter.file_refused("own_tls", refused=True)
                log.error("own_tls_files_refused", reason=str(error))
            else:
                self._meter.file_refused("own_tls", refused=False)
                log.info("own_tls_renewed")
                self._exchange()
            self._stamps = stamps
        left = time_left(self._identity.certificate, now=utc_now())
        self._meter.own_certificate_valid(left.total_seconds())

    def _open(self) -> _Line:
        channel = grpc.aio.secure_channel(
            self._addresses.current, self._identity.credentials(), options=self._options
        )
        line = _Line(channel)
        self._lines.append(line)
        return line

    def _exchange(self) -> None:
        """Make later calls on new connections; those under way may end on the ones before."""
        lines, self._lines = self._lines, []
        for line in lines:
            self._close(line, grace_seconds=GRACE_SECONDS)

    def _close(self, line: _Line, *, grace_seconds: float | None) -> None:
        self._do(line.channel.close(grace_seconds))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
