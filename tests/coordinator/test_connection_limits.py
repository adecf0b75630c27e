"""The limits of connections, at work with smaller figures than a coordinator has."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from matl_common.identity.tls import (
    HANDSHAKE_TIMEOUT_MS,
    MAX_CONNECTION_AGE_GRACE_MS,
    MAX_CONNECTION_AGE_MS,
    MAX_CONNECTION_IDLE_MS,
    MAX_CONNECTIONS,
    MAX_STREAMS_PER_CONNECTION,
    server_credentials,
    server_options,
)
from tests.coordinator.harness import NODES, Site, make_site
from tests.system.frames import raw_connection

pytestmark = pytest.mark.hostile
LIMITS = {
    "grpc.max_allowed_incoming_connections": MAX_CONNECTIONS,
    "grpc.max_concurrent_streams": MAX_STREAMS_PER_CONNECTION,
    "grpc.server_handshake_timeout_ms": HANDSHAKE_TIMEOUT_MS,
    "grpc.max_connection_idle_ms": MAX_CONNECTION_IDLE_MS,
    "grpc.max_connection_age_ms": MAX_CONNECTION_AGE_MS,
    "grpc.max_connection_age_grace_ms": MAX_CONNECTION_AGE_GRACE_MS,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("limits"))


@contextmanager
def serving(site: Site, **changed: int) -> Iterator[int]:
    """Yield the port of a server with a coordinator's options, but for these."""
    named = {f"grpc.{name}": value for name, value in changed.items()}
    options = dict(server_options())
    assert named.keys() <= options.keys()
    server = grpc.server(ThreadPoolExecutor(1), options=tuple({**options, **named}.items()))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(site.config.identity.tls))
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def was_closed(connection: socket.socket) -> bool:
    """Whether the server closes a connection that said nothing."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_coordinator_has_every_limit() -> None:
    options = dict(server_options())
    assert {name: options[name] for name in LIMITS} == LIMITS


def test_connections_beyond_the_limit_are_closed_and_there_is_room_once_handshakes_time_out(
    site: Site,
) -> None:
    limit, timeout_ms = 5, 1_000
    with (
        ExitStack() as opened,
        serving(
            site,
            max_allowed_incoming_connections=limit,
            server_handshake_timeout_ms=timeout_ms,
        ) as port,
    ):
        silent = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(2 * limit)
        ]
        # Those beyond the limit at once, the others when they have said nothing for too long.
        assert all(was_closed(each) for each in silent)
        with raw_connection(port, site.nodes[NODES[0]].tls) as enrolled:
            enrolled.open_call("/matl.test/Nothing", stream=1, ends=True)
            assert enrolled.grpc_status(stream=1) == grpc.StatusCode.UNIMPLEMENTED.value[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"max_connection_idle_ms": 300},
        {"max_connection_age_ms": 300, "max_connection_age_grace_ms": 300},
    ],
    ids=["idle", "old"],
)
def test_a_connection_that_is_idle_or_old_is_sent_away(site: Site, changed: dict[str, int]) -> None:
    with (
        serving(site, **changed) as port,
        raw_connection(port, site.nodes[NODES[0]].tls) as connection,
    ):
        connection.wait_to_be_sent_away()
