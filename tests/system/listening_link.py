"""A link to the coordinator that hears everything in the clear.

It holds the keys of both sides, which nobody has in the field: to the hospital it is the
coordinator, to the coordinator the hospital.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from matl_common.identity.tls import TlsFiles
from tests.system.federation import COORDINATOR_NAME

BLOCK_BYTES = 1 << 16


class ListeningLink:
    """Forwards connections between two TLS ends; keeps what either says."""

    def __init__(self, target_port: int, *, coordinator: TlsFiles, hospital: TlsFiles) -> None:
        self._target_port = target_port
        self._inner = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._inner.load_cert_chain(coordinator.certificate_chain, coordinator.private_key)
        self._outer = ssl.create_default_context(cafile=str(hospital.trusted_authority))
        self._outer.load_cert_chain(hospital.certificate_chain, hospital.private_key)
        for context in (self._inner, self._outer):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.set_alpn_protocols(["h2"])
        # Appended to by the loop's thread alone.
        self._heard = bytearray()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self.address = ""
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(30)

    @property
    def heard(self) -> bytes:
        """Everything that was said, decrypted, in the order it came."""
        return bytes(self._heard)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)
        self._loop.close()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._inner)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._over.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ssl.SSLError):
            there_reader, there_writer = await asyncio.open_connection(
                "127.0.0.1",
                self._target_port,
                ssl=self._outer,
                server_hostname=COORDINATOR_NAME.server_name,
            )
            await asyncio.gather(
                self._forward(reader, there_writer), self._forward(there_reader, writer)
            )

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(BLOCK_BYTES):
                self._heard += data
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@contextmanager
def listening_link(
    target_port: int, *, coordinator: TlsFiles, hospital: TlsFiles
) -> Iterator[ListeningLink]:
    """Yield a link to a coordinator on loopback."""
    link = ListeningLink(target_port, coordinator=coordinator, hospital=hospital)
    try:
        yield link
    finally:
        link.close()
