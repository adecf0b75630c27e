"""A TCP proxy in front of a database, which can lose what passes through it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto

from sqlalchemy import make_url

CHUNK_BYTES = 1 << 16


class Mode(Enum):
    """What happens to what the client sends."""

    FORWARD = auto()
    SILENT = auto()
    """Taken, acknowledged and forgotten, as by a server that hangs."""
    CUT = auto()
    """Connections end, and new ones end at once."""
    CUT_BEFORE_COMMIT = auto()
    CUT_AFTER_COMMIT = auto()
    """The server gets it; its answer is lost."""


class Proxy:
    """Forwards loopback connections; ``mode`` may be changed at any time."""

    def __init__(self, host: str, port: int) -> None:
        self.mode = Mode.FORWARD
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.mode is Mode.CUT:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                for function in (self._upstream, self._downstream):
                    threading.Thread(target=function, args=(client, server), daemon=True).start()

    def _upstream(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK_BYTES):
                is_commit = b"COMMIT" in data
                if self.mode is Mode.SILENT:
                    continue
                if self.mode is Mode.CUT_BEFORE_COMMIT and is_commit:
                    self.cut()
                elif self.mode is Mode.CUT_AFTER_COMMIT and is_commit:
                    client.shutdown(socket.SHUT_RDWR)
                    server.sendall(data)
                    # The answer shows that the commit is durable; it goes nowhere.
                    server.recv(1)
                else:
                    server.sendall(data)
        _end(server)

    def _downstream(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                if self.mode is not Mode.SILENT:
                    client.sendall(data)
        _end(client)


def _end(connection: socket.socket) -> None:
    # Closing alone tells the other side nothing while another thread waits in recv.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def proxied(url: str) -> Iterator[tuple[str, Proxy]]:
    """Yield a URL that leads through a new proxy, and the proxy."""
    parsed = make_url(url)
    assert parsed.host is not None
    assert parsed.port is not None
    proxy = Proxy(parsed.host, parsed.port)
    through = parsed.set(host="127.0.0.1", port=proxy.port)
    try:
        yield through.render_as_string(hide_password=False), proxy
    finally:
        proxy.close()


@contextmanager
def proxied_port(port: int) -> Iterator[Proxy]:
    """Yield a proxy in front of a port of this machine."""
    proxy = Proxy("127.0.0.1", port)
    try:
        yield proxy
    finally:
        proxy.close()
