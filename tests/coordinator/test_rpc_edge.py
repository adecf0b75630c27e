"""The server's edge: silent callers, hostile messages, and what callers learn of its methods."""

# Before gRPC, which reads its TLS settings once.
import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import matl_common  # noqa: F401
from matl_common.clock import utc_now
from matl_common.errors import MatlError
from matl_common.identity.certificates import (
    PARTICIPANT_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    issue_certificate,
)
from matl_common.identity.keys import generate_private_key, load_private_key, private_key_pem
from matl_common.identity.tls import MAX_METADATA_BYTES, TlsFiles
from matl_common.ids import Digest, NodeId
from matl_common.wire import (
    audit_pb2,
    federation_pb2,
    federation_pb2_grpc,
    ingest_pb2,
    operations_pb2,
)
from matl_common.wire.chunks import format_push
from matl_coordinator.rpc.guard import MAX_CALLS_PER_NODE, ONLY_RELAYED, ROLES
from matl_coordinator.rpc.relayed import relaying
from matl_coordinator.rpc.server import PUSH_CHUNKS
from matl_coordinator.rpc.statuses import status_of
from tests.coordinator.harness import (
    FEDERATION,
    NODES,
    OPERATOR,
    Running,
    honest_update,
    make_site,
    next_round,
    seal,
    send,
)
from tests.coordinator.served import Served, served
from tests.front_ends import enrol_front_end
from tests.messages import extremes, messages
from tests.system.processes import until

pytestmark = pytest.mark.hostile
Code = grpc.StatusCode
HOSPITAL, FRONT_END = NODES[0], NodeId("front_1")
CALL_SECONDS = 30.0
IDLE_SECONDS = 0.3
SERVICES: list[Any] = [
    *federation_pb2.DESCRIPTOR.services_by_name.values(),
    *operations_pb2.DESCRIPTOR.services_by_name.values(),
    *audit_pb2.DESCRIPTOR.services_by_name.values(),
    *ingest_pb2.DESCRIPTOR.services_by_name.values(),
    *health_pb2.DESCRIPTOR.services_by_name.values(),
    *reflection_pb2.DESCRIPTOR.services_by_name.values(),
]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in SERVICES
    for method in service.methods
}
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
REFLECTION_V1 = REFLECTION.replace("v1alpha", "v1")
# The same service under its newer name.
METHODS[REFLECTION_V1] = METHODS[REFLECTION]
LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
# What a message that is well formed can be answered with; anything else is our fault.
EXPECTED = frozenset(Code) - {Code.UNKNOWN, Code.INTERNAL, Code.UNAVAILABLE, Code.UNIMPLEMENTED}


@pytest.fixture(scope="module")
def open_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Yield a coordinator that has little patience."""
    folder = tmp_path_factory.mktemp("edge")
    site = make_site(folder)
    front_end = enrol_front_end(folder / "keys", FRONT_END)
    site = replace(site.read_again(), nodes={**site.nodes, FRONT_END: front_end})
    limits = site.config.limits.model_copy(update={"idle_seconds": IDLE_SECONDS})
    with served(replace(site, config=site.config.model_copy(update={"limits": limits}))) as running:
        yield running


def raw_call(
    channel: grpc.Channel, path: str, payloads: Iterator[bytes], *, seconds: float = CALL_SECONDS
) -> Any:
    """Call any method as one of streams, with raw messages."""
    return channel.stream_stream(path, bytes, bytes)(payloads, timeout=seconds)


def outcome(
    channel: grpc.Channel, path: str, payloads: list[bytes], *, seconds: float = CALL_SECONDS
) -> tuple[grpc.StatusCode, str]:
    """Call any method as one of streams with raw messages, and read what comes to its end."""
    call = raw_call(channel, path, iter(payloads), seconds=seconds)
    with suppress(grpc.RpcError):
        for _ in call:
            pass
    return call.code(), str(call.details())


class _Relaying(grpc.StreamStreamClientInterceptor):
    """Makes calls as a front end does for a hospital."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(details._replace(metadata=relaying(self._certificate)), requests)


@contextmanager
def channel_for(door: Served, path: str) -> Iterator[grpc.Channel]:
    """A connection of who may call a method."""
    if path in ONLY_RELAYED:
        certificate = door.site.nodes[HOSPITAL].tls.certificate_chain.read_bytes()
        with door.channel(FRONT_END) as channel:
            yield grpc.intercept_channel(channel, _Relaying(certificate))
        return
    with door.channel(HOSPITAL if Role.PARTICIPANT in ROLES[path] else OPERATOR) as channel:
        yield channel


@pytest.mark.parametrize("path", METHODS)
def test_who_opens_a_call_and_says_nothing_is_cut(open_door: Served, path: str) -> None:
    silent = Event()

    def nothing() -> Iterator[bytes]:
        silent.wait(CALL_SECONDS)
        yield from ()

    with channel_for(open_door, path) as channel:
        call = raw_call(channel, path, nothing())
        with pytest.raises(grpc.RpcError):
            next(call)
        silent.set()
    assert call.code() is Code.DEADLINE_EXCEEDED
    assert f"nothing came for {IDLE_SECONDS:g} s" in str(call.details())


def test_a_chunk_is_given_the_time_that_the_slowest_link_takes(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    limits = site.config.limits.model_copy(update={"idle_seconds": IDLE_SECONDS})
    impatient = replace(site, config=site.config.model_copy(update={"limits": limits}))
    with served(impatient) as running, running.channel(HOSPITAL) as channel:
        digest, chunks = running.ask(an_open_update(running.coordinator))

        def slowly() -> Iterator[bytes]:
            yield federation_pb2.PushChunksRequest(update_digest=digest).SerializeToString()
            for index, chunk in enumerate(chunks):
                Event().wait(2 * IDLE_SECONDS if index == 0 else 0.0)
                yield format_push(index, chunk)

        (answer,) = raw_call(channel, PUSH_CHUNKS, slowly())
        assert federation_pb2.UpdateStatus.FromString(answer).HasField("receipt")


def test_a_hospital_that_waits_for_a_round_is_answered_when_the_coordinator_drains(
    tmp_path: Path,
) -> None:
    request = federation_pb2.AwaitRoundRequest(wait_seconds=60)
    with ExitStack() as stack:
        with served(make_site(tmp_path), grace_seconds=5.0) as running:
            channel = stack.enter_context(running.channel(HOSPITAL))
            stub = federation_pb2_grpc.FederationServiceStub(channel)
            waiting = stub.AwaitRound.future(request, timeout=CALL_SECONDS)
            last_seen = running.coordinator.use_cases.overview.last_seen
            until(lambda: last_seen(HOSPITAL), what="the call has come")
        # Neither cut when the draining was over nor left to its own limit.
        assert waiting.code() is Code.OK
        assert not waiting.result().HasField("round_start")
        again = stub.AwaitRound.future(request, timeout=CALL_SECONDS)
        assert again.code() is Code.UNAVAILABLE


async def an_open_update(coordinator: Running) -> tuple[Digest, tuple[bytes, ...]]:
    """Of an update that is declared: its digest, and its chunks, none of which was sent."""
    start, *_ = await asyncio.gather(*(next_round(coordinator, each) for each in NODES))
    assert start is not None
    update = honest_update(HOSPITAL, start)
    sealed = seal(coordinator.site, HOSPITAL, start, coordinator.plan, update)
    progress = await send(coordinator, HOSPITAL, sealed, chunks=0)
    return progress.update_digest, sealed.chunks


def watching(channel: grpc.Channel) -> Any:
    """A call that is under way until it is cancelled."""
    call = raw_call(channel, f"/{HEALTH}/Watch", iter([b""]))
    answer = health_pb2.HealthCheckResponse.FromString(next(call))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    return call


def test_all_connections_of_a_hospital_share_its_calls(open_door: Served) -> None:
    check = "/grpc.health.v1.Health/Check"
    with ExitStack() as connected:
        channels = [connected.enter_context(open_door.channel(HOSPITAL)) for _ in range(4)]
        calls = [watching(channels[at % 4]) for at in range(MAX_CALLS_PER_NODE)]
        code, details = outcome(channels[0], check, [b""])
        assert code is Code.RESOURCE_EXHAUSTED
        assert details == f"{HOSPITAL} has {MAX_CALLS_PER_NODE} calls under way"
        with open_door.channel(NODES[1]) as other:
            assert outcome(other, check, [b""]) == (Code.OK, "")
        # One that ends makes room for another, on whichever connection.
        calls.pop().cancel()
        until(lambda: outcome(channels[1], check, [b""])[0] is Code.OK, what="there is room again")
        for each in calls:
            each.cancel()


@pytest.mark.parametrize("path", METHODS)
@given(data=st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_message_is_answered_as_unknown_or_as_our_fault(
    open_door: Served, path: str, data: st.DataObject
) -> None:
    method: MethodDescriptor = METHODS[path]
    sound = messages(method.input_type).map(lambda message: message.SerializeToString())
    payloads = data.draw(st.lists(st.one_of(sound, st.binary(max_size=100)), max_size=4))
    # Those that wait for something are left before it comes.
    waits = method.name in ("AwaitRound", "Watch")
    with channel_for(open_door, path) as channel:
        code, details = outcome(channel, path, payloads, seconds=0.1 if waits else CALL_SECONDS)
    # gRPC's own health service has no List.
    assert code in EXPECTED | ({Code.UNIMPLEMENTED} if method.name == "List" else set()), details
    assert "Error" not in details


@pytest.mark.parametrize("path", METHODS)
def test_no_number_is_too_great_for_an_answer(open_door: Served, path: str) -> None:
    method: MethodDescriptor = METHODS[path]
    # Those that wait for something are left before it comes.
    seconds = 0.1 if method.name in ("AwaitRound", "Watch") else CALL_SECONDS
    with channel_for(open_door, path) as channel:
        for message in extremes(method.input_type):
            code, _ = outcome(channel, path, [message.SerializeToString()], seconds=seconds)
            assert code in EXPECTED, message


def test_what_a_handler_fails_with_is_never_told() -> None:
    for error in (RuntimeError("patient 4711"), KeyError("patient 4711"), MatlError("too much")):
        code, text = status_of(error)
        assert code is Code.INTERNAL
        assert text == "internal error"


@pytest.mark.parametrize("node", [HOSPITAL, OPERATOR])
def test_reflection_tells_an_enrolled_node_every_method(open_door: Served, node: NodeId) -> None:
    with open_door.channel(node) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        told = set(database.get_services())
        assert told == {service.full_name for service in SERVICES} - {HEALTH}
        pool = DescriptorPool(database)
        for service in told:
            described = pool.FindServiceByName(service)
            for method in described.methods:
                path = f"/{service}/{method.name}"
                assert method.input_type.full_name == METHODS[path].input_type.full_name
                assert [f.name for f in method.input_type.fields] == [
                    f.name for f in METHODS[path].input_type.fields
                ]


def test_both_versions_of_reflection_tell_the_same(open_door: Served) -> None:
    with open_door.channel(OPERATOR) as channel:
        told = [
            list(raw_call(channel, path, iter([LIST_SERVICES])))
            for path in (REFLECTION, REFLECTION_V1)
        ]
    assert told[0] == told[1]
    assert b"matl.v1.OperationsService" in told[0][0]


def test_reflection_tells_a_stranger_nothing(open_door: Served, tmp_path: Path) -> None:
    keys = open_door.site.folder / "keys"
    authority = CertificateAuthority(
        x509.load_pem_x509_certificate((keys / "participant-ca.crt").read_bytes()),
        load_private_key(keys / "participant-ca.key"),
        PARTICIPANT_ROLES,
    )
    key, now = generate_private_key(), utc_now()
    certificate = issue_certificate(
        authority,
        key.public_key(),
        SpiffeId(FEDERATION, Role.PARTICIPANT, NodeId("hospital_z")),
        not_before=now - timedelta(minutes=1),
        not_after=now + timedelta(hours=1),
    )
    files = TlsFiles(
        tmp_path / "tls.key",
        tmp_path / "tls.crt",
        open_door.site.nodes[HOSPITAL].tls.trusted_authority,
    )
    files.private_key.write_bytes(private_key_pem(key))
    files.certificate_chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    with open_door.channel(HOSPITAL, files=files) as channel:
        for path in (REFLECTION, REFLECTION_V1):
            code, details = outcome(channel, path, [LIST_SERVICES])
            assert code is Code.PERMISSION_DENIED
            assert "matl.v1" not in details


def test_a_method_that_nobody_serves_is_refused_by_the_guard_and_counted(
    open_door: Served,
) -> None:
    def counted() -> float:
        registry = open_door.coordinator.meter.registry
        labels = {"reason": "unknown_method"}
        return registry.get_sample_value("matl_refused_peers_total", labels) or 0.0

    before = counted()
    with open_door.channel(HOSPITAL) as channel:
        for path in ("/matl.v1.FederationService/Secret", "/none.Such/Thing"):
            assert outcome(channel, path, [b""]) == (
                Code.UNIMPLEMENTED,
                "there is no such method here",
            )
    assert counted() == before + 2


def test_metadata_that_is_too_long_ends_its_call_alone(open_door: Served) -> None:
    check = "/grpc.health.v1.Health/Check"
    with open_door.channel(HOSPITAL) as channel:
        call = channel.unary_unary(check, bytes, bytes)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=CALL_SECONDS, metadata=(("x-long", "a" * (3 * MAX_METADATA_BYTES)),))
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        assert call(b"", timeout=CALL_SECONDS)
