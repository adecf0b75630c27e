"""A coordinator that stands by says so, and whoever knows the other's address finds it."""

# Before gRPC, which reads its TLS settings once.
import asyncio
from collections.abc import Iterator

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

import matl_common  # noqa: F401
from matl.calls import CoordinatorUnavailableError
from matl.operations import connect_operator
from matl_common.clock import utc_now
from matl_common.identity.keys import parse_public_key
from matl_common.identity.tls import ServerIdentity
from matl_coordinator.metrics import Metrics
from matl_coordinator.rpc.waiting import STANDS_BY, WaitingServer
from matl_participant.client import FederationClient, UnavailableError
from matl_participant.connection import RenewingChannel
from matl_participant.metrics import Metrics as HospitalMetrics
from matl_participant.reports import Reports
from tests.coordinator.harness import FEDERATION, NODES, OPERATOR, Site, make_site
from tests.coordinator.served import NAME, Served, served

NODE = NODES[0]


@pytest.fixture(scope="module")
def leader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Yield a coordinator that leads."""
    with served(make_site(tmp_path_factory.mktemp("leader"))) as coordinator:
        yield coordinator


@pytest.fixture
def waiting(leader: Served) -> Iterator[str]:
    """Yield the address of one that stands by."""

    async def start() -> tuple[WaitingServer, int]:
        identity = ServerIdentity(leader.site.config.identity.tls)
        server = WaitingServer(identity, meter=Metrics(), clock=utc_now)
        return server, await server.start("127.0.0.1:0")

    server, port = leader.ask(start())
    yield f"127.0.0.1:{port}"
    leader.ask(server.stop())


def channel_to(site: Site, address: str) -> RenewingChannel:
    return RenewingChannel(address, site.nodes[NODE].tls, NAME, reports=Reports(HospitalMetrics()))


def client_over(site: Site, channel: RenewingChannel) -> FederationClient:
    key = parse_public_key(site.nodes[NODE].coordinator_signing_key.read_bytes())
    return FederationClient(channel, node_id=NODE, federation_id=FEDERATION, coordinator_key=key)


async def test_every_method_is_refused_in_words_and_health_says_not_serving(
    leader: Served, waiting: str
) -> None:
    async with channel_to(leader.site, waiting) as channel:
        client = client_over(leader.site, channel)
        with pytest.raises(UnavailableError, match=STANDS_BY):
            await client.hello(version="test", device="")
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        answer = await check(HealthCheckRequest(), timeout=30.0)
        assert answer.status == HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_hospital_goes_on_to_the_address_where_one_leads_and_stays_there(
    leader: Served, waiting: str, order: tuple[int, int]
) -> None:
    addresses = [waiting, f"127.0.0.1:{leader.port}"]
    known = ", ".join(addresses[each] for each in order)
    async with channel_to(leader.site, known) as channel:
        client = client_over(leader.site, channel)
        if order[0] == 0:
            with pytest.raises(UnavailableError, match=STANDS_BY):
                await client.hello(version="test", device="")
            # The least that a hospital waits after a failure.
            await asyncio.sleep(0.1)
        for _ in range(3):
            await client.hello(version="test", device="")


async def test_a_hospital_with_one_address_stays_there(leader: Served, waiting: str) -> None:
    async with channel_to(leader.site, waiting) as channel:
        client = client_over(leader.site, channel)
        for _ in range(3):
            with pytest.raises(UnavailableError, match=STANDS_BY):
                await client.hello(version="test", device="")


def test_an_operator_reaches_whoever_leads(leader: Served, waiting: str) -> None:
    files = leader.site.nodes[OPERATOR].tls
    leading = f"127.0.0.1:{leader.port}"
    for known in (f"{waiting},{leading}", f"{leading},{waiting}", leading):
        with connect_operator(known, files, NAME) as client:
            assert client.status().reign == 1
    with (
        connect_operator(waiting, files, NAME) as client,
        pytest.raises(CoordinatorUnavailableError, match=STANDS_BY),
    ):
        client.status()
