"""Metrics are answered, and whoever does not ask for them is not waited for."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter

from matl_common.errors import ConfigurationError
from matl_common.scrapes import HEALTH_PATH, MAX_SCRAPES, serve_scrapes
from tests.postgres import free_port
from tests.system.processes import until

pytestmark = pytest.mark.hostile
NEVER_SECONDS = 600.0


def served(
    address: str,
    registry: CollectorRegistry,
    loop: asyncio.AbstractEventLoop,
    **more: Any,
) -> Callable[[], None]:
    return serve_scrapes(address, registry, setting="x.metrics", loop=loop, **more)


@contextmanager
def scraped(*, seconds: float) -> Iterator[int]:
    """Yield the port of a counter's metrics."""
    registry, port = CollectorRegistry(), free_port()
    Counter("knocks", "Knocks.", registry=registry).inc(3)
    loop = asyncio.new_event_loop()
    close = served(f"127.0.0.1:{port}", registry, loop, seconds=seconds)
    try:
        yield port
    finally:
        close()
        loop.close()


def answer(port: int) -> bytes:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as found:
        read: bytes = found.read()
        return read


def silent(port: int, opened: ExitStack) -> socket.socket:
    """A connection that begins a request and does not go on."""
    connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
    connection.sendall(b"GET /metr")
    return connection


def closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_whoever_asks_is_answered_and_the_port_is_free_again() -> None:
    with scraped(seconds=NEVER_SECONDS) as port:
        assert b"knocks_total 3.0" in answer(port)
    loop = asyncio.new_event_loop()
    again = served(f"127.0.0.1:{port}", CollectorRegistry(), loop)
    again()
    loop.close()


def test_an_ipv6_host_stands_in_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine's loopback")
    registry, loop = CollectorRegistry(), asyncio.new_event_loop()
    Counter("knocks", "Knocks.", registry=registry).inc(3)
    address = f"[::1]:{free_port()}"
    close = served(address, registry, loop)
    with urlopen(f"http://{address}/metrics", timeout=30) as found:
        assert b"knocks_total 3.0" in found.read()
    close()
    loop.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_what_cannot_be_listened_on_is_refused_by_the_name_of_its_setting(host: str) -> None:
    with scraped(seconds=NEVER_SECONDS) as port:
        loop = asyncio.new_event_loop()
        told = rf"cannot serve metrics on {host}:{port}: .+; set x\.metrics to another host:port"
        with pytest.raises(ConfigurationError, match=told):
            served(f"{host}:{port}", CollectorRegistry(), loop)
        loop.close()


def health(port: int) -> int:
    try:
        with urlopen(f"http://127.0.0.1:{port}{HEALTH_PATH}", timeout=30) as found:
            status: int = found.status
            return status
    except HTTPError as refused:
        return refused.code


async def test_a_daemon_is_healthy_while_its_event_loop_turns_and_not_while_it_hangs() -> None:
    port, loop = free_port(), asyncio.get_running_loop()
    close = served(f"127.0.0.1:{port}", CollectorRegistry(), loop, turn_seconds=0.1)
    with ThreadPoolExecutor(1) as elsewhere:
        assert await loop.run_in_executor(elsewhere, health, port) == 200
        # Waits without letting the event loop turn.
        assert elsewhere.submit(health, port).result() == 503
    close()


async def test_a_daemon_whose_event_loop_turns_says_what_else_ails_it() -> None:
    port, loop, ailments = free_port(), asyncio.get_running_loop(), [None, "reaches nobody"]
    close = served(f"127.0.0.1:{port}", CollectorRegistry(), loop, ailment=lambda: ailments.pop(0))
    with ThreadPoolExecutor(1) as elsewhere:
        assert await loop.run_in_executor(elsewhere, health, port) == 200
        assert await loop.run_in_executor(elsewhere, health, port) == 503
    close()


def test_a_daemon_whose_event_loop_is_closed_is_not_healthy() -> None:
    port, loop = free_port(), asyncio.new_event_loop()
    close = served(f"127.0.0.1:{port}", CollectorRegistry(), loop)
    loop.close()
    assert health(port) == 503
    close()


def test_whoever_says_nothing_is_cut_and_others_are_answered() -> None:
    with scraped(seconds=0.3) as port, ExitStack() as opened:
        quiet = [silent(port, opened) for _ in range(MAX_SCRAPES)]
        assert all(closed(each) for each in quiet)
        assert b"knocks_total 3.0" in answer(port)


def test_a_byte_now_and_then_wins_no_time() -> None:
    with scraped(seconds=0.3) as port, ExitStack() as opened:
        slow = silent(port, opened)
        slow.settimeout(0.05)

        def is_cut() -> bool:
            try:
                slow.sendall(b"i")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        until(is_cut, what="the slow one is cut")


def test_connections_beyond_the_limit_are_closed_and_cost_no_thread() -> None:
    with scraped(seconds=NEVER_SECONDS) as port, ExitStack() as opened:
        before = threading.active_count()
        quiet = [silent(port, opened) for _ in range(4 * MAX_SCRAPES)]
        assert all(closed(each) for each in quiet[MAX_SCRAPES:])
        # Each that is served has a thread, and one that will end it.
        assert threading.active_count() - before <= 2 * MAX_SCRAPES
        for each in quiet:
            each.close()

        def is_answered() -> bool:
            try:
                return b"knocks_total" in answer(port)
            except OSError:
                return False

        until(is_answered, what="there is room again")
