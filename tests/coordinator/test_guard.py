"""What the guard does with callers before a handler runs."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from matl_common.ids import NodeId
from matl_coordinator.roster import Roster
from matl_coordinator.rpc.guard import Guard
from matl_coordinator.rpc.pace import BURST_CALLS
from tests.coordinator.harness import NODES, Site, make_site, utc_now

CHECK = "/grpc.health.v1.Health/Check"
HOSPITAL, OTHER, *_ = NODES


@dataclass(frozen=True)
class Connection:
    """What gRPC tells of the connection of a call."""

    certificate: bytes

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [self.certificate]}


def connection_of(site: Site, node: NodeId) -> Connection:
    return Connection(site.nodes[node].tls.certificate_chain.read_bytes())


async def never(reason: str, node: NodeId | None, method: str) -> None:
    raise AssertionError(reason)


async def test_whoever_calls_too_often_waits_and_nobody_else(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    stands_still = Guard(
        roster=Roster(site.allowlist), clock=utc_now, on_denial=never, monotonic=lambda: 0.0
    )
    hasty = connection_of(site, HOSPITAL)
    for _ in range(BURST_CALLS):
        async with asyncio.timeout(0), stands_still.call(hasty, CHECK):
            pass
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0), stands_still.call(hasty, CHECK):
            pytest.fail("it was not told to wait")
    async with asyncio.timeout(0), stands_still.call(connection_of(site, OTHER), CHECK):
        pass
    async with stands_still.call(hasty, CHECK):
        pass
