"""A TCP link that lets so many bytes to the coordinator through and then stands still."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BLOCK_BYTES = 1 << 16


class NarrowLink:
    """Forwards loopback connections; counts what goes upstream."""

    def __init__(self, target_port: int, *, limit_bytes: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        # Guards the two counts; notified when the limit is lifted.
        self._changed = threading.Condition()
        self._limit: int | None = limit_bytes
        self._sent = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def sent_bytes(self) -> int:
        """Upstream so far, by all connections."""
        return self._sent

    def is_full(self) -> bool:
        """Whether no more goes through."""
        with self._changed:
            return self._limit is not None and self._sent >= self._limit

    def open_wide(self) -> None:
        """Let everything through from now on."""
        with self._changed:
            self._limit = None
            self._changed.notify_all()

    def close(self) -> None:
        self.open_wide()
        self._listener.close()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                for function in (self._upstream, self._downstream):
                    threading.Thread(target=function, args=(client, server), daemon=True).start()

    def _upstream(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError), client, server:
            while data := client.recv(BLOCK_BYTES):
                with self._changed:
                    self._changed.wait_for(lambda: self._limit is None or self._sent < self._limit)
                    self._sent += len(data)
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _downstream(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(BLOCK_BYTES):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def narrow_link(target_port: int, *, limit_bytes: int) -> Iterator[NarrowLink]:
    """Yield a link to a loopback port."""
    link = NarrowLink(target_port, limit_bytes=limit_bytes)
    try:
        yield link
    finally:
        link.close()
