"""A participant of another minor version: it announces that, and knows other fields than we do."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

from collections.abc import Iterator

from typing import Any

import grpc
import pytest

from matl_common.version import __version__
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.documents import envelope_to_wire
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from tests.coordinator.harness import (
    NODES,
    honest_update,
    make_site,
    next_round,
    seal,
)
from tests.coordinator.served import Served, served

HOSPITAL = NODES[0]
MAJOR, MINOR = (int(each) for each in __version__.split(".")[:2])
SECONDS = 30.0


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Yield a coordinator that opens a round for a single hospital."""
    site = make_site(
        tmp_path_factory.mktemp("mixed"), quorum=1, minimum_participants=1, byzantine=0
    )
    with served(site) as running:
        yield running


@pytest.mark.parametrize("minor", [MINOR + 1, max(0, MINOR - 1)])
def test_a_hospital_one_minor_version_apart_takes_part_without_what_it_does_not_know(
    coordinator: Served, minor: int
) -> None:
    with coordinator.channel(HOSPITAL) as channel:
        stub = FederationServiceStub(channel)
        # Neither device nor time: fields that the first versions may not have had.
        welcome = stub.Hello(pb.HelloRequest(version=f"{MAJOR}.{minor}.0"), timeout=SECONDS)
        assert welcome.study_plan.payload
        site, running = coordinator.site, coordinator.coordinator
        start = coordinator.ask(next_round(running, HOSPITAL))
        assert start is not None
        sealed = seal(site, HOSPITAL, start, running.plan, honest_update(HOSPITAL, start))
        opened = stub.OpenUpdate(
            pb.OpenUpdateRequest(
                manifest=envelope_to_wire(sealed.envelope), chunk_hashes=sealed.hashes
            ),
            timeout=SECONDS,
        )
        assert opened.total_chunks == len(sealed.chunks)


def test_a_field_that_only_a_later_version_knows_is_passed_over(coordinator: Served) -> None:
    # Field 100, a text: it is none that this version has.
    request = pb.HelloRequest(version=__version__).SerializeToString() + b"\xa2\x06\x05later"
    with coordinator.channel(HOSPITAL) as channel:
        call: Any = channel.unary_unary(
            "/matl.v1.FederationService/Hello",
            response_deserializer=pb.HelloResponse.FromString,
        )
        assert call(request, timeout=SECONDS).study_plan.payload


@pytest.mark.parametrize("theirs", [f"{MAJOR}.{MINOR + 2}.0", f"{MAJOR + 1}.{MINOR}.0"])
def test_a_hospital_further_apart_is_refused_in_words(coordinator: Served, theirs: str) -> None:
    with coordinator.channel(HOSPITAL) as channel:
        call = FederationServiceStub(channel).Hello
        with pytest.raises(grpc.RpcError) as caught:
            call(pb.HelloRequest(version=theirs), timeout=SECONDS)
    told = str(caught.value)
    assert "FAILED_PRECONDITION" in told
    assert f"MATL {theirs} and MATL {__version__} do not work together" in told
