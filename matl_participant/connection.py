"""The connection to the coordinator, which outlives the certificate it was opened with.

The files are looked at before every call. Once they have changed and fit each other, the call
and those after it use a new channel; those under way end on the old one. Which server may answer,
once that is narrowed to one certificate, outlives them too. The address changes in the same way,
where the coordinator has several and nobody leads at the one in use.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import grpc

from matl_common.addresses import Addresses
from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import SpiffeId
from matl_common.identity.pkcs11.session import TokenError
from matl_common.identity.renewal import expiry_warning, stamps_of, time_left
from matl_common.identity.tls import TlsPlace, channel_options, load_client_identity
from matl_participant.reports import Reports

_NOBODY_THERE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
GRACE_SECONDS = 3600.0
"""How long calls under way may go on with the credentials before."""


class RenewingChannel(grpc.aio.Channel):
    """A channel whose credentials follow their files, and whose address follows who leads.

    Runs on one event loop.
    """

    def __init__(
        self, address: str, files: TlsPlace, coordinator: SpiffeId, *, reports: Reports
    ) -> None:
        """Load the files; dials when first used.

        Args:
            address: of the coordinator, or several with commas between them.
            files: our key and certificate, and the authority of coordinators.
            coordinator: whose certificate it must be, at each address.
            reports: told of changes.

        Raises:
            ConfigurationError: a key or certificate file does not work.
        """
        self._addresses = Addresses(address)
        # Of the channel in use.
        self._address = self._addresses.current
        self._files = files
        self._options = channel_options(coordinator)
        self._reports = reports
        self._stamps = stamps_of(files)
        self._identity = load_client_identity(files)
        # The one server's certificate that passes, once it is known.
        self._only: bytes | None = None
        self._channel = self._open(self._only)
        # Tasks that close channels, or look how a call ended.
        self._closing: set[asyncio.Task[None]] = set()
        self._report_expiry()

    @property
    def authority(self) -> bytes:
        """Of coordinators, in PEM, as it was at the last call."""
        return self._identity.authority

    @property
    def address(self) -> str:
        """What the next call goes to."""
        return self._addresses.current

    def failed(self, address: str) -> None:
        """Go on from an address where nobody answered, or nobody who leads."""
        self._addresses.failed(address)

    def pin(self, certificate: bytes, *, address: str) -> None:
        """Let nobody answer a later call but the server with this certificate.

        Args:
            certificate: PEM. Nothing else is asked of it: not its issuer, not its dates.
            address: where it was shown.
        """
        self._addresses.use(address)
        if (certificate, address) != (self._only, self._address):
            self._only = certificate
            self._exchange()

    @asynccontextmanager
    async def unpinned(self) -> AsyncIterator[grpc.aio.Channel]:
        """A connection apart, to whoever the authority certified as this coordinator."""
        self._follow()
        channel = self._open(None)
        try:
            yield channel
        finally:
            await channel.close(grace=None)

    def _open(self, only: bytes | None) -> grpc.aio.Channel:
        credentials = self._identity.credentials(only=only)
        return grpc.aio.secure_channel(self.address, credentials, options=self._options)

    def _exchange(self) -> None:
        """Make later calls on a new channel; those under way end on the one before."""
        before, self._channel = self._channel, self._open(self._only)
        self._do(before.close(GRACE_SECONDS))
        if self._address != self.address:
            self._address = self.address
            self._reports.coordinator_address(self._address)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _see(self, call: Any, address: str) -> None:
        if await call.code() in _NOBODY_THERE:
            self.failed(address)

    def _current(self) -> grpc.aio.Channel:
        """The channel of the files as they are, or were when they last fitted each other."""
        self._follow()
        return self._channel

    def _follow(self) -> None:
        stamps = stamps_of(self._files)
        if stamps != self._stamps:
            try:
                self._identity = load_client_identity(self._files)
            except TokenError as error:
                # Nothing is wrong with the files: the next call tries again.
                self._reports.certificate_refused(error)
            except ConfigurationError as error:
                self._stamps = stamps
                self._reports.certificate_refused(error)
            else:
                self._stamps = stamps
                self._exchange()
                self._reports.certificate_renewed(self._identity.certificate.not_valid_after_utc)
        if self._address != self.address:
            self._exchange()
        self._report_expiry()

    def _report_expiry(self) -> None:
        now = utc_now()
        certificate = self._identity.certificate
        left = time_left(certificate, now=now)
        self._reports.certificate_valid(left, expiry_warning(certificate, now=now))

    async def __aenter__(self) -> Self:
        """Nothing is opened that was not before."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close, whatever is under way."""
        await self.close(None)

    async def close(self, grace: float | None = None) -> None:
        """Close this channel and those before it."""
        for task in self._closing:
            task.cancel()
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 - gRPC's signature
        """Of the channel in use."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the channel in use."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Of the channel in use."""
        await self._channel.channel_ready()

    def unary_unary(self, *method: Any, **details: Any) -> Any:
        """A callable that picks its channel when it is called."""
        return self._later("unary_unary", method, details)

    def unary_stream(self, *method: Any, **details: Any) -> Any:
        """A callable that picks its channel when it is called."""
        return self._later("unary_stream", method, details)

    def stream_unary(self, *method: Any, **details: Any) -> Any:
        """A callable that picks its channel when it is called."""
        return self._later("stream_unary", method, details)

    def stream_stream(self, *method: Any, **details: Any) -> Any:
        """A callable that picks its channel when it is called."""
        return self._later("stream_stream", method, details)

    def _later(
        self, kind: str, method: tuple[Any, ...], details: Mapping[str, Any]
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            channel = self._current()
            made = getattr(channel, kind)(*method, **details)(*arguments, **options)
            if self._addresses.are_several:
                self._do(self._see(made, self._address))
            return made

        return call
