"""Hospitals that come and go while a round runs: the others notice nothing."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from matl_common.identity.allowlist import encode_allowlist, enrol, load_allowlist
from matl_common.identity.tls import channel_credentials, channel_options
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from tests.system.diagnosis import broken, diagnosis
from tests.system.federation import (
    COORDINATOR,
    COORDINATOR_NAME,
    HOSPITALS,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.processes import until
from tests.system.story import finish, of

pytestmark = [pytest.mark.system, pytest.mark.certificates]
STAYING, LEAVING = HOSPITALS[:2], HOSPITALS[2]
SERVICE, HEALTH = "/matl.v1.FederationService/", "/grpc.health.v1.Health/Check"


def write_allowlist(federation: Federation, *, without: object = None) -> None:
    """Write everybody's enrolment, or everybody's but one, in place of the file."""
    path = federation.keys[COORDINATOR].allowlist
    complete = path.with_suffix(".complete")
    if not complete.exists():
        complete.write_bytes(path.read_bytes())
    everybody = load_allowlist(complete)
    nodes = [node for node_id, node in everybody.nodes.items() if node_id != without]
    new = path.with_suffix(".new")
    new.write_bytes(encode_allowlist(enrol(everybody.federation, nodes)))
    new.replace(path)


def a_stalled_upload(over: threading.Event) -> Iterator[pb.PushChunksRequest]:
    over.wait()
    yield from ()


def test_a_hospital_removed_is_cut_off_and_one_added_takes_part_without_any_restart(
    tmp_path: Path, material: Material
) -> None:
    federation = found_federation(
        tmp_path,
        material,
        study={"rounds": 2},
        rounds={"quorum": 2, "minimum_participants": 2, "byzantine": 0},
    )
    over = threading.Event()
    with ExitStack() as running, ThreadPoolExecutor() as calling:
        running.callback(over.set)
        for node in HOSPITALS:
            federation.control(node).write_text("wait")
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        hospitals = {
            node: running.enter_context(federation.start_scripted(node)) for node in STAYING
        }
        coordinator.wait_for("round_phase", round=1, phase="collecting")
        until(
            lambda: all(federation.trainings(node) == [1] for node in STAYING),
            what="the hospitals that stay train",
        )

        channel = running.enter_context(
            grpc.secure_channel(
                federation.address,
                channel_credentials(federation.keys[LEAVING].tls),
                options=channel_options(COORDINATOR_NAME),
            )
        )
        stub = FederationServiceStub(channel)
        stub.Hello(pb.HelloRequest(version="0"), timeout=30)
        polling = calling.submit(
            stub.AwaitRound, pb.AwaitRoundRequest(have_round=9, wait_seconds=60), timeout=80
        )
        uploading = calling.submit(stub.PushChunks, a_stalled_upload(over), timeout=80)
        coordinator_sees(federation)

        write_allowlist(federation, without=LEAVING)
        for call in (polling, uploading):
            refused = call.exception(timeout=80)
            assert isinstance(refused, grpc.RpcError)
            assert refused.code() is grpc.StatusCode.PERMISSION_DENIED, refused.details()
        with pytest.raises(grpc.RpcError) as again:
            stub.Hello(pb.HelloRequest(version="0"), timeout=30)
        assert again.value.code() is grpc.StatusCode.PERMISSION_DENIED
        coordinator.wait_for("allowlist_changed", removed=[LEAVING])
        assert federation.metric("matl_refused_peers_total", reason="unlisted") == 3
        assert federation.metric("matl_enrolled_participants") == 2
        expect_explanations(federation)

        write_allowlist(federation)
        coordinator.read_again()
        coordinator.wait_for("allowlist_changed", added=[LEAVING])
        hospitals[LEAVING] = running.enter_context(federation.start_scripted(LEAVING))
        for node in HOSPITALS:
            federation.control(node).unlink()
        finish(federation, coordinator, hospitals)

    events = logged_events(federation)
    denied = of(events, "access_denied", reason="unlisted", node=LEAVING)
    methods = (*(SERVICE + name for name in ("AwaitRound", "Hello", "PushChunks")), HEALTH)
    assert sorted(str(each["method"]) for each in denied) == sorted(methods)
    assert len(of(events, "enrolment_changed")) == 2
    assert len(of(events, "node_removed", node=LEAVING, round=1)) == 1
    assert len(of(events, "model_released")) == 2
    for node in STAYING:
        assert not of(events, "access_denied", node=node)
        # Neither connected anew nor trained again.
        assert federation.trainings(node) == [1, 2]
        assert not hospitals[node].events("participant.retrying")


def expect_explanations(federation: Federation) -> None:
    """Either side's doctor says why the hospital that was removed is not let in."""
    certificate = str(federation.keys[LEAVING].tls.certificate_chain)
    for config, link, arguments in (
        (federation.participant_config(LEAVING, address="", changes={}), "enrolment", ()),
        (federation.coordinator_config, "peer's enrolment", ("--peer", certificate)),
    ):
        links = diagnosis(config, *arguments)
        assert broken(links) == [link]
        assert "unlisted" in links[link]["found"]
        assert "no longer" in links[link]["remedy"]
    # The hospital's own, which is refused like any other call.
    assert federation.metric("matl_refused_peers_total", reason="unlisted") == 4


def coordinator_sees(federation: Federation) -> None:
    """Wait until the calls under way have arrived."""
    with federation.operator() as operator:
        until(
            lambda: operator.status().active_participants == len(HOSPITALS),
            what="the coordinator sees the hospital that will leave",
        )
