"""What the guard does with callers before a handler runs."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from matl_common.clock import utc_now
from matl_common.errors import MatlError
from matl_common.ids import NodeId
from matl_coordinator.roster import Roster
from matl_coordinator.rpc.guard import (
    MAX_CALLS_PER_NODE,
    MAX_WAITING_PER_KEY,
    UNKNOWN_METHOD,
    Guard,
)
from matl_coordinator.rpc.pace import BURST_CALLS
from tests.coordinator.harness import NODES, Site, make_site

CHECK = "/grpc.health.v1.Health/Check"
PAUSE = "/matl.v1.OperationsService/Pause"
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
    waited: list[bool] = []
    stands_still = Guard(
        roster=Roster(site.allowlist),
        clock=utc_now,
        on_denial=never,
        on_wait=lambda: waited.append(True),
        certifies=lambda _: False,
        monotonic=lambda: 0.0,
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
    assert len(waited) == 2


@dataclass
class Refusals:
    """A guard before whom the clock stands still, and what it told of refusals."""

    site: Site
    told: list[tuple[str, str]] = field(default_factory=list)
    waited: int = 0

    def __post_init__(self) -> None:
        self.guard = Guard(
            roster=Roster(self.site.allowlist),
            clock=utc_now,
            on_denial=self._tell,
            on_wait=self._wait,
            certifies=lambda _: False,
            monotonic=lambda: 0.0,
        )

    async def _tell(self, reason: str, node: NodeId | None, method: str) -> None:
        self.told.append((reason, method))

    def _wait(self) -> None:
        self.waited += 1

    async def knock(self, connection: Connection, method: str) -> None:
        with pytest.raises(MatlError):
            async with self.guard.call(connection, method):
                pytest.fail("it was let in")


@pytest.mark.parametrize("method", [PAUSE, "/matl.v1.FederationService/Give the patient's name"])
async def test_whoever_is_refused_waits_like_anybody_else_and_every_refusal_is_told(
    tmp_path: Path, method: str
) -> None:
    site = make_site(tmp_path)
    (tmp_path / "other").mkdir()
    # Their keys are not enrolled here.
    others = make_site(tmp_path / "other")
    for connection in (connection_of(site, HOSPITAL), connection_of(others, HOSPITAL)):
        door = Refusals(site)
        for _ in range(BURST_CALLS + 1):
            await door.knock(connection, method)
        assert door.waited == 1
        assert len(door.told) == BURST_CALLS + 1
        assert {each for _, each in door.told} <= {PAUSE, UNKNOWN_METHOD}


async def test_a_call_too_many_is_told_and_waits_too(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    door, hasty = Refusals(site), connection_of(site, HOSPITAL)
    async with AsyncExitStack() as opened:
        for _ in range(MAX_CALLS_PER_NODE):
            await opened.enter_async_context(door.guard.call(hasty, CHECK))
        for _ in range(BURST_CALLS - MAX_CALLS_PER_NODE + 1):
            await door.knock(hasty, CHECK)
    assert door.waited == 1
    assert set(door.told) == {("too_many_calls", CHECK)}


async def test_no_more_calls_wait_than_there_is_room_for(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    door, hasty = Refusals(site), connection_of(site, HOSPITAL)
    for _ in range(BURST_CALLS):
        await door.knock(hasty, PAUSE)
    door.told.clear()
    beyond = 7
    await asyncio.gather(*(door.knock(hasty, PAUSE) for _ in range(MAX_WAITING_PER_KEY + beyond)))
    assert door.waited == MAX_WAITING_PER_KEY
    assert door.told.count(("too_many_calls", PAUSE)) == beyond
    assert door.told.count(("role_not_allowed", PAUSE)) == MAX_WAITING_PER_KEY
