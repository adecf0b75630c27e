"""What connections cost a coordinator that once received chunks over them."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import psutil

from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.tls import (
    TlsPlace,
    channel_credentials,
    channel_options,
    server_credentials,
    server_options,
)
from matl_common.memory import bound_memory
from matl_common.tensors import CHUNK_BYTES
from tests.coordinator.harness import COORDINATOR, FEDERATION, NODES, make_site

METHOD = "/matl.test.Sink/Push"
CHUNKS = 8
CONNECTIONS = 24
# TLS and what a connection may keep take half of that, and without a bound it is twice as much.
MOST_BYTES_EACH = CHUNK_BYTES // 2


async def _discard(messages: AsyncIterator[bytes], _: Any) -> bytes:
    async for _message in messages:
        pass
    return b""


async def _serve(tls: TlsPlace, told: Connection) -> None:
    server = grpc.aio.server(options=server_options())
    handler: Any = grpc.stream_unary_rpc_method_handler(_discard)
    _, service, name = METHOD.split("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {name: handler}),)
    )
    port = server.add_secure_port("127.0.0.1:0", server_credentials(tls))
    await server.start()
    told.send(port)
    await server.wait_for_termination()


def serve(tls: TlsPlace, told: Connection) -> None:
    """Throw away whatever comes, until killed; tells its port."""
    bound_memory()
    asyncio.run(_serve(tls, told))


def test_a_connection_that_received_an_update_keeps_no_room_for_another_chunk(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    heard, told = spawn.Pipe(duplex=False)
    process = spawn.Process(target=serve, args=(site.config.identity.tls, told), daemon=True)
    process.start()
    told.close()
    assert process.pid is not None
    resident = psutil.Process(process.pid).memory_info
    try:
        port = heard.recv()  # which ends at once where the process could not start
        with ExitStack() as opened:

            def push() -> None:
                options = channel_options(SpiffeId(FEDERATION, Role.COORDINATOR, COORDINATOR))
                channel = opened.enter_context(
                    grpc.secure_channel(
                        f"127.0.0.1:{port}",
                        channel_credentials(site.nodes[NODES[0]].tls),
                        options=(*options, ("grpc.use_local_subchannel_pool", 1)),
                    )
                )
                push_all: Any = channel.stream_unary(METHOD)
                push_all(_chunks(), timeout=60)

            # What the first ones leave is there once, for all.
            for _ in range(6):
                push()
            before = resident().rss
            for _ in range(CONNECTIONS):
                push()
            grown = resident().rss - before
    finally:
        process.kill()
        process.join()
    assert grown < CONNECTIONS * MOST_BYTES_EACH


def _chunks() -> Iterator[bytes]:
    for _ in range(CHUNKS):
        yield bytes(CHUNK_BYTES)
