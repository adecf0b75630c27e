"""Every method of a coordinator that is collecting, over mutual TLS, in this process.

The first byte says which method; after it come messages, each behind two bytes of length.
One choice more is a manifest that its hospital has signed, whatever it says.
"""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import atexit
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

import grpc

from matl_common.errors import InvalidInputError
from matl_common.identity.certificates import Role
from matl_common.ids import NodeId
from matl_common.protocol import PayloadType
from matl_common.signing import sign
from matl_common.wire import federation_pb2 as pb
from matl_common.wire import operations_pb2
from matl_common.wire.documents import envelope_to_wire, format_update_manifest
from matl_coordinator.rpc.guard import ROLES
from tests.coordinator.harness import NODES, OPERATOR, make_site, next_round
from tests.coordinator.served import Served, served
from tests.fuzz.samples import MANIFEST
from tests.fuzz.target import Target

HOSPITAL = NODES[0]
CALL_SECONDS = 10.0
# Those that wait for something are left before it comes.
WAITING_SECONDS = 0.02
WAITING = ("AwaitRound", "Watch")
SERVED_METHODS = sorted(ROLES)
OPEN_UPDATE = "/matl.v1.FederationService/OpenUpdate"
Code = grpc.StatusCode
OUR_FAULT = frozenset({Code.UNKNOWN, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS})


@cache
def _coordinator() -> tuple[Served, dict[NodeId, grpc.Channel]]:
    """A coordinator in its first round, and a connection of each caller; until the end."""
    stack = ExitStack()
    atexit.register(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    running = stack.enter_context(served(make_site(folder, collect_seconds=86_400.0)))

    async def invite() -> None:
        await asyncio.gather(*(next_round(running.coordinator, node) for node in NODES))

    running.ask(invite())
    nodes = (HOSPITAL, OPERATOR)
    return running, {node: stack.enter_context(running.channel(node)) for node in nodes}


def _messages(data: bytes) -> Iterator[bytes]:
    while data:
        length = int.from_bytes(data[:2], "big")
        yield data[2 : 2 + length]
        data = data[2 + length :]


def _signed(payload: bytes) -> bytes:
    running, _ = _coordinator()
    envelope = sign(PayloadType.UPDATE, payload, running.site.signer(HOSPITAL))
    request = pb.OpenUpdateRequest(manifest=envelope_to_wire(envelope), chunk_hashes=bytes(96))
    return request.SerializeToString()


def _run(data: bytes) -> None:
    running, channels = _coordinator()
    choice = (data[0] if data else 0) % (len(SERVED_METHODS) + 1)
    if choice == len(SERVED_METHODS):
        path, messages = OPEN_UPDATE, [_signed(data[1:])]
    else:
        path, messages = SERVED_METHODS[choice], list(_messages(data[1:]))
    before = running.ask(running.coordinator.register.state())
    caller = HOSPITAL if Role.PARTICIPANT in ROLES[path] else OPERATOR
    seconds = WAITING_SECONDS if path.endswith(WAITING) else CALL_SECONDS
    call = channels[caller].stream_stream(path, bytes, bytes)(iter(messages), timeout=seconds)
    with suppress(grpc.RpcError):
        for _ in call:
            pass
    code, details = call.code(), str(call.details())
    assert code not in OUR_FAULT, f"{path}: {code} {details}"
    if code is not Code.OK:
        after = running.ask(running.coordinator.register.state())
        assert after.updates == before.updates, f"{path}: refused, and half of it was kept"
        raise InvalidInputError(f"{code}: {details}")


def _call(path: str, *messages: bytes) -> bytes:
    framed = b"".join(len(each).to_bytes(2, "big") + each for each in messages)
    return bytes([SERVED_METHODS.index(path)]) + framed


TARGET = Target(
    run=_run,
    seeds=[
        *(_call(path, b"") for path in SERVED_METHODS if path.endswith(("/Hello", "/GetStatus"))),
        _call(
            "/matl.v1.FederationService/PushChunks",
            pb.PushChunksRequest(update_digest="0" * 64).SerializeToString(),
            pb.PushChunksRequest(chunk=pb.Chunk(index=0, data=b"chunk")).SerializeToString(),
        ),
        *(
            _call(
                "/matl.v1.OperationsService/ListRounds",
                operations_pb2.ListRoundsRequest(after_round=after).SerializeToString(),
            )
            for after in (2**63, 2**64 - 1)
        ),
        bytes([len(SERVED_METHODS)]) + format_update_manifest(MANIFEST),
    ],
    is_live=True,
)
