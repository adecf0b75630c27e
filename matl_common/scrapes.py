"""Answers Prometheus's scrapes, and whether a daemon is alive, for few at once and none for long.

prometheus_client's own server has a thread for every connection, however many there are, and waits
for a request for as long as it does not come.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector, make_wsgi_app

from matl_common.errors import ConfigurationError
from matl_common.host_port import split_address
from matl_common.logs import failed_writes
from matl_common.version import __version__

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

MAX_SCRAPES = 16
"""Connections served at once; those beyond are closed unanswered."""

SCRAPE_SECONDS = 5.0
"""How long a connection may take in all, for its request and for our answer."""

HEALTH_PATH = "/healthy"
"""200 while the daemon's event loop turns and nothing ails it, else 503; others are metrics."""

TURN_SECONDS = 3.0
"""How long an event loop may be busy with one thing and still count as turning."""

Address = socket.socket | tuple[bytes, socket.socket]


def _nothing() -> str | None:
    return None


class _Handler(WSGIRequestHandler):
    """Silent: a line for every scrape would tell nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, *, seconds: float) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        self._seconds = seconds
        self._room = threading.BoundedSemaphore(MAX_SCRAPES)
        super().__init__((str(address[0]), port), _Handler)

    def process_request(self, request: Address, client_address: object) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Address, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        # Of the whole connection: a time-out of the socket begins anew with every byte.
        end = threading.Timer(self._seconds, _cut, (request,))
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._room.release()

    def handle_error(self, request: Address, client_address: object) -> None:
        """A caller that went away, or was cut, is nobody's concern."""


def serve_scrapes(
    address: str,
    registry: CollectorRegistry,
    *,
    setting: str,
    loop: asyncio.AbstractEventLoop,
    seconds: float = SCRAPE_SECONDS,
    turn_seconds: float = TURN_SECONDS,
    ailment: Callable[[], str | None] = _nothing,
) -> Callable[[], None]:
    """Answer from daemon threads; returns what ends that, and leaves the port to others.

    A process whose ``loop`` hangs still answers scrapes; ``HEALTH_PATH`` is what tells.

    Args:
        address: ``host:port`` to listen on.
        registry: what is shown.
        setting: the key of the configuration that has the address.
        loop: the daemon's.
        seconds: how long a connection may take in all.
        turn_seconds: how long ``loop`` may be busy with one thing.
        ailment: why a daemon whose loop turns is not healthy; asked in threads.

    Raises:
        ConfigurationError: the port is taken, or is no port of this machine.
    """
    try:
        server = _Server(*split_address(address), seconds=seconds)
    except OSError as error:
        raise ConfigurationError(
            f"cannot serve metrics on {address}: {error.strerror}; set {setting} to another "
            'host:port, or to "" for none'
        ) from error

    def state() -> str | None:
        return ailment() if _turns(loop, turn_seconds) else "hangs"

    server.set_app(_application(make_wsgi_app(registry), state))
    thread = threading.Thread(target=server.serve_forever, name="scrapes", daemon=True)
    thread.start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


def describe_process(registry: CollectorRegistry, *, namespace: str) -> None:
    """Show which version runs, since when, what it takes of the machine, and whether its log is
    written.
    """
    build = Info("build", "The software that runs.", namespace=namespace, registry=registry)
    build.info({"version": __version__})
    ProcessCollector(registry=registry)
    unwritten = Gauge(
        "log_lines_unwritten",
        "Lines of the log that could not be written, since the start.",
        namespace=namespace,
        registry=registry,
    )
    unwritten.set_function(failed_writes)


def show_disk(registry: CollectorRegistry, folder: Path, *, namespace: str) -> None:
    """Show what room the folder's disk has, asked at every scrape; NaN where it cannot be."""

    def asked(question: Callable[[shutil._ntuple_diskusage], int]) -> Callable[[], float]:
        def answer() -> float:
            try:
                return question(shutil.disk_usage(folder))
            except OSError:
                return math.nan

        return answer

    for name, text, question in (
        ("disk_free_bytes", "What this account may still write.", lambda disk: disk.free),
        ("disk_size_bytes", "What the disk holds in all.", lambda disk: disk.total),
    ):
        gauge = Gauge(name, f"{text} Of state_dir's disk.", namespace=namespace, registry=registry)
        gauge.set_function(asked(question))


def _application(metrics: WSGIApplication, ailment: Callable[[], str | None]) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != HEALTH_PATH:
            return metrics(environ, start_response)
        reason = ailment()
        status = "200 OK" if reason is None else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [f"{reason or 'ok'}\n".encode()]

    return answer


def _turns(loop: asyncio.AbstractEventLoop, seconds: float) -> bool:
    turned = threading.Event()
    try:
        loop.call_soon_threadsafe(turned.set)
    except RuntimeError:  # it is closed
        return False
    return turned.wait(seconds)


def _cut(connection: socket.socket) -> None:
    # It may have gone by itself.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
