"""Calls that are under way when their certificate expires."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.certificates import parse_peer_certificate
from matl_common.ids import NodeId
from matl_coordinator.roster import Roster
from matl_coordinator.rpc.guard import AccessDeniedError, Guard
from tests.coordinator.harness import NODES, make_site
from tests.coordinator.served import served

HOSPITAL = NODES[0]
WATCH = "/grpc.health.v1.Health/Watch"


@dataclass
class Clock:
    """Shows what a test wants."""

    ahead: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass(frozen=True)
class Connection:
    """What gRPC knows of a peer."""

    certificate: bytes

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [self.certificate]}


async def test_a_call_ends_with_the_certificate_it_was_made_with(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    pem = site.nodes[HOSPITAL].tls.certificate_chain.read_bytes()
    loop, refused = asyncio.get_running_loop(), list[tuple[str, NodeId | None, str]]()
    until = parse_peer_certificate(pem).not_after
    began: list[float] = []

    def clock() -> datetime:
        began.append(loop.time())
        return until - timedelta(seconds=0.2) + timedelta(seconds=loop.time() - began[0])

    async def on_denial(reason: str, node: NodeId | None, method: str) -> None:
        refused.append((reason, node, method))

    roster = Roster(load_allowlist(site.config.federation.allowlist))
    guard = Guard(
        roster=roster,
        clock=clock,
        on_denial=on_denial,
        on_wait=lambda: None,
        certifies=lambda _: False,
    )
    with pytest.raises(AccessDeniedError, match="expired"):
        async with guard.call(Connection(pem), WATCH):
            await asyncio.Event().wait()
    assert refused == [("expired", HOSPITAL, WATCH)]


@pytest.mark.certificates
def test_a_connection_outlives_its_certificate_with_no_call_under_way(tmp_path: Path) -> None:
    clock = Clock()
    with (
        served(make_site(tmp_path), clock=clock) as coordinator,
        coordinator.channel(HOSPITAL) as channel,
    ):
        watch = channel.unary_stream(
            WATCH,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        call = watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(call).status == health_pb2.HealthCheckResponse.SERVING
        # As an operator who sets the clock right, or a year that goes by.
        clock.ahead = timedelta(days=20 * 365)
        with suppress(grpc.RpcError):
            next(call)
        assert (call.code(), call.details()) == (
            grpc.StatusCode.PERMISSION_DENIED,
            f"{HOSPITAL} may not take part here: expired",
        )
        again = watch(health_pb2.HealthCheckRequest(), timeout=60)
        with pytest.raises(grpc.RpcError):
            next(again)
        assert again.code() is grpc.StatusCode.PERMISSION_DENIED
