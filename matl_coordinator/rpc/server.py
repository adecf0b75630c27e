"""Puts the servicers behind the guard on one mutually authenticated port."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.tls import ServerIdentity, server_options
from matl_common.tensors import CHUNK_BYTES
from matl_common.version import __version__
from matl_common.wire import (
    audit_pb2,
    audit_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
    ingest_pb2,
    ingest_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from matl_common.wire.chunks import parse_push, transfer_seconds
from matl_coordinator.config import Config
from matl_coordinator.ports import Meter
from matl_coordinator.roster import Roster
from matl_coordinator.rpc.audit import AuditServicer
from matl_coordinator.rpc.federation import FederationServicer
from matl_coordinator.rpc.guard import Guard, check_roles
from matl_coordinator.rpc.ingest import IngestServicer
from matl_coordinator.rpc.messages import InTime, only_message
from matl_coordinator.rpc.operations import OperationsServicer
from matl_coordinator.rpc.relayed import relayed_certificate
from matl_coordinator.rpc.statuses import status_of
from matl_coordinator.service.assembly import UseCases
from matl_coordinator.service.attesting import Attesting
from matl_coordinator.service.watch import Watch

log = structlog.get_logger(__name__)

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]

AUDIT_SERVICE = audit_pb2.DESCRIPTOR.services_by_name["AuditService"].full_name
FEDERATION_SERVICE = federation_pb2.DESCRIPTOR.services_by_name["FederationService"].full_name
OPERATIONS_SERVICE = operations_pb2.DESCRIPTOR.services_by_name["OperationsService"].full_name
INGEST_SERVICE = ingest_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name
SERVICES = (FEDERATION_SERVICE, OPERATIONS_SERVICE, AUDIT_SERVICE, INGEST_SERVICE)
DESCRIBED = (*SERVICES, reflection.SERVICE_NAME)
ATTEST = f"/{FEDERATION_SERVICE}/Attest"
AWAIT_ROUND = f"/{FEDERATION_SERVICE}/AwaitRound"
OPEN_UPDATE = f"/{FEDERATION_SERVICE}/OpenUpdate"
PULL_MODEL = f"/{FEDERATION_SERVICE}/PullModel"
PUSH_CHUNKS = f"/{FEDERATION_SERVICE}/PushChunks"
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
OTHER = "other"
"""What is told of the method of a call for anything that is not served."""

OnEnd = Callable[[str, str, float], None]
"""Told a call's method, the name of its status, and how many seconds it took."""


@dataclass(frozen=True, slots=True)
class Servicers:
    """What the server serves."""

    federation: federation_pb2_grpc.FederationServiceServicer
    operations: operations_pb2_grpc.OperationsServiceServicer
    audit: audit_pb2_grpc.AuditServiceServicer
    ingest: ingest_pb2_grpc.IngestServiceServicer


class GuardedServer:
    """A ``grpc.aio`` server on which nothing runs unguarded."""

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        guard: Guard,
        servicers: Servicers,
        idle_seconds: float,
        on_end: OnEnd,
        end_waits: Callable[[], None],
    ) -> None:
        """Prepare the server; it listens once started. A caller may be silent ``idle_seconds``.

        ``on_end`` is told of every call that came to a handler. ``end_waits`` has those answer that
        merely wait for something to happen.

        Raises:
            ConfigurationError: a method is unguarded.
        """
        self._credentials = identity.credentials
        self._end_waits = end_waits
        self._server = grpc.aio.server(
            interceptors=(_GuardInterceptor(guard, idle_seconds=idle_seconds, on_end=on_end),),
            options=server_options(),
        )
        self._health = health.aio.HealthServicer()
        check_roles(served_methods())
        federation_pb2_grpc.add_FederationServiceServicer_to_server(
            servicers.federation, self._server
        )
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(
            servicers.operations, self._server
        )
        audit_pb2_grpc.add_AuditServiceServicer_to_server(servicers.audit, self._server)
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(servicers.ingest, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(DESCRIBED, self._server)
        self._server.add_generic_rpc_handlers((_reflection_v1(),))

    async def start(self, address: str) -> int:
        """Listen on ``host:port``; returns the port.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        port = await listening(self._server, address, self._credentials)
        for service in (*SERVICES, ""):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, *, grace_seconds: float) -> None:
        """Refuse new calls and give those under way ``grace_seconds`` to end.

        Those that wait for something to happen end at once.
        """
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(grace_seconds))
        # Once it refuses calls: whoever is answered would ask again.
        await asyncio.sleep(0)
        self._end_waits()
        await stopping


async def listening(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials
) -> int:
    """Start a server on ``host:port``; returns the port.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {address}; is another coordinator running there?"
        ) from error
    await server.start()
    return port


def build_server(
    config: Config,
    *,
    identity: ServerIdentity,
    use_cases: UseCases,
    roster: Roster,
    watch: Watch,
    meter: Meter,
    clock: Callable[[], datetime],
    attesting: Attesting | None = None,
) -> GuardedServer:
    """The server of one coordinator; it listens once started.

    Raises:
        ConfigurationError: a method is unguarded.
    """
    federation = FederationServicer(
        invitations=use_cases.invitations,
        intake=use_cases.intake,
        attesting=attesting,
        mode_name=lambda: use_cases.overview.mode_name,
        meter=meter,
        version=__version__,
        federation_id=config.federation.id,
        clock=clock,
    )
    operations = OperationsServicer(
        operations=use_cases.operations,
        overview=use_cases.overview,
        roster=roster,
        clock=clock,
    )
    audit = AuditServicer(
        audit=use_cases.audit, checkpoints=use_cases.checkpoints, readings=use_cases.readings
    )
    guard = Guard(
        roster=roster,
        clock=clock,
        on_denial=watch.access_denied,
        on_wait=meter.call_delayed,
        certifies=identity.certifies,
    )
    meter.methods_served([name for _, name in _served()])
    return GuardedServer(
        identity=identity,
        guard=guard,
        servicers=Servicers(federation, operations, audit, IngestServicer(intake=use_cases.intake)),
        idle_seconds=config.limits.idle_seconds,
        on_end=meter.call_ended,
        end_waits=use_cases.invitations.end_waits,
    )


def served_methods() -> Iterable[str]:
    """Paths of what a coordinator serves."""
    pools = (
        federation_pb2.DESCRIPTOR.services_by_name,
        operations_pb2.DESCRIPTOR.services_by_name,
        audit_pb2.DESCRIPTOR.services_by_name,
        ingest_pb2.DESCRIPTOR.services_by_name,
        health_pb2.DESCRIPTOR.services_by_name,
        reflection_pb2.DESCRIPTOR.services_by_name,
    )
    for services in pools:
        for service in services.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}"
    yield f"/{REFLECTION_V1}/ServerReflectionInfo"


def _served() -> Iterator[tuple[str, str]]:
    """Paths of what is served, with what their calls are told of as."""
    for path in served_methods():
        yield path, path.rpartition(".")[2]


def _reflection_v1() -> grpc.GenericRpcHandler:
    """Reflection under its newer name; grpcio-reflection has v1alpha, whose messages are the same.

    No descriptor goes with that name, so it is served and not listed.
    """
    method = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(DESCRIBED).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": method})


class _GuardInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handler of every method, so that none can be reached around the guard."""

    def __init__(self, guard: Guard, *, idle_seconds: float, on_end: OnEnd) -> None:
        self._guard = guard
        self._idle_seconds = idle_seconds
        self._on_end = on_end
        self._served = dict(_served())

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details) or _NOT_SERVED
        return self._guarded(handler, handler_call_details.method)

    def _guarded(self, handler: Handler, method: str) -> Handler:
        # The two methods that megabytes go through have servicers that know their messages' form.
        parser = parse_push if method == PUSH_CHUNKS else handler.request_deserializer
        serializer = None if method == PULL_MODEL else handler.response_serializer
        parse = _parser(parser)
        in_time = partial(
            InTime[Any],
            idle_seconds=self._idle_seconds,
            on_the_way_seconds=transfer_seconds(CHUNK_BYTES) if method == PUSH_CHUNKS else 0.0,
        )
        inner = _of_stream(handler, parse, in_time)
        # Every method takes a stream here: gRPC would wait, for as long as it likes, for the
        # message of a single-message method before it asked anybody who is calling. And what
        # comes is parsed after the guard, for gRPC answers a parser's error with its text.
        deserializer = parse if handler.request_streaming else None
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(inner, method), deserializer, serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._unary(inner, method), deserializer, serializer
        )

    def _unary(self, inner: Any, method: str) -> Any:
        async def behaviour(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with self._timed(context, method):
                try:
                    async with self._guard.call(context, method, relayed=_relayed(context)):
                        return await inner(request, context)
                except Exception as error:  # noqa: BLE001 - the edge: every error becomes a status
                    await _abort(context, method, error)

        return behaviour

    def _streaming(self, inner: Any, method: str) -> Any:
        # Writes rather than yields, so that a call that is ended while its answer waits for a
        # slow reader ends here, with a status of ours.
        async def behaviour(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            with self._timed(context, method):
                try:
                    async with self._guard.call(context, method, relayed=_relayed(context)):
                        async for answer in inner(request, context):
                            await context.write(answer)
                except Exception as error:  # noqa: BLE001 - the edge: every error becomes a status
                    await _abort(context, method, error)

        return behaviour

    @contextmanager
    def _timed(self, context: grpc.aio.ServicerContext[Any, Any], method: str) -> Iterator[None]:
        begun = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            yield
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = _status(context.code())
            raise
        finally:
            # Whoever is asked for what is not served must not make names for us.
            name = self._served.get(method, OTHER)
            self._on_end(name, code.name, time.monotonic() - begun)


def _relayed(context: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
    return relayed_certificate(context.invocation_metadata())


def _status(code: grpc.StatusCode | int) -> grpc.StatusCode:
    """gRPC gives a status as itself, or as its number."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next(each for each in grpc.StatusCode if each.value[0] == code)


async def _not_served(requests: Any, context: Any) -> bytes:
    raise NotImplementedError


# In place of what gRPC itself would answer, past the guard.
_NOT_SERVED: Handler = grpc.stream_unary_rpc_method_handler(_not_served)


def _parser(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        if deserializer is None:
            return data
        try:
            return deserializer(data)
        except DecodeError as error:
            raise InvalidInputError("the message is not one of this method's") from error

    return parse


def _of_stream(
    handler: Handler,
    parse: Callable[[bytes], Any],
    in_time: Callable[[Callable[[], Awaitable[Any]]], InTime[Any]],
) -> Any:
    """The handler's function over a stream of messages, of which it may take one only."""
    inner: Any = (
        handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
    )
    takes_stream = handler.request_streaming

    async def answer(_: object, context: Any) -> Any:
        messages = in_time(context.read)
        request = messages if takes_stream else parse(await only_message(messages))
        return await inner(request, context)

    async def answers(_: object, context: Any) -> AsyncIterator[Any]:
        messages = in_time(context.read)
        request = messages if takes_stream else parse(await only_message(messages))
        if inspect.isasyncgenfunction(inner):
            async for each in inner(request, context):
                yield each
        else:
            # It writes its answers to the context, as gRPC's own health service does.
            await inner(request, context)

    return answers if handler.response_streaming else answer


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception
) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    code, text = status_of(error)
    if not isinstance(error, (MatlError, NotImplementedError)):
        log.error("call_failed", method=method, exc_info=error)
    await context.abort(code, text)
