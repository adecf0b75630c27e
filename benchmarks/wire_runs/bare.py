"""A gRPC stream over mutual TLS and nothing else: what the wire itself takes.

    python -m benchmarks.wire_runs.bare <coordinator's folder of keys> <port>

Messages are bytes that nobody looks at. As grpcio comes, but for certificates and names.
"""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc

from matl_common.identity.certificates import SpiffeId
from matl_common.identity.node_folder import NodeFolder
from matl_common.identity.tls import (
    MAX_MESSAGE_BYTES,
    TlsPlace,
    channel_credentials,
    server_credentials,
)
from matl_common.memory import bound_memory
from matl_common.tensors import CHUNK_BYTES

SERVICE: Final = "bare.Stream"
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
_CHUNK: Final = bytes(CHUNK_BYTES)


async def _discard(requests: AsyncIterator[bytes], _: Any) -> bytes:
    received = 0
    async for message in requests:
        received += len(message)
    return b"%d" % received


async def _send(request: bytes, _: Any) -> AsyncIterator[bytes]:
    for _number in range(int(request)):
        yield _CHUNK


async def serve(files: TlsPlace, port: int) -> None:
    """Listen until killed."""
    server = grpc.aio.server(options=_OPTIONS)
    handlers: dict[str, Any] = {
        "Push": grpc.stream_unary_rpc_method_handler(_discard),
        "Pull": grpc.unary_stream_rpc_method_handler(_send),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_secure_port(f"127.0.0.1:{port}", server_credentials(files))
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.wait_for_termination()


def connect(files: TlsPlace, name: SpiffeId, port: int) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.secure_channel(
        f"127.0.0.1:{port}",
        channel_credentials(files),
        options=(
            *_OPTIONS,
            ("grpc.ssl_target_name_override", name.server_name),
            ("grpc.use_local_subchannel_pool", 1),
        ),
    )


async def push(channel: grpc.aio.Channel, chunks: int) -> None:
    """Send so many chunks."""

    async def messages() -> AsyncIterator[bytes]:
        for _ in range(chunks):
            yield _CHUNK

    call: Any = channel.stream_unary(f"/{SERVICE}/Push")
    received = await call(messages())
    assert int(received) == chunks * CHUNK_BYTES


async def pull(channel: grpc.aio.Channel, chunks: int) -> None:
    """Receive so many chunks."""
    received = 0
    call: Any = channel.unary_stream(f"/{SERVICE}/Pull")
    async for message in call(b"%d" % chunks):
        received += len(message)
    assert received == chunks * CHUNK_BYTES


if __name__ == "__main__":
    # As the daemons do.
    bound_memory()
    asyncio.run(serve(NodeFolder(Path(sys.argv[1])).tls, int(sys.argv[2])))
