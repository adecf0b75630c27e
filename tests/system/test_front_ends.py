"""Two front ends and HAProxy between hospitals and a coordinator with a standby, for real."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from matl_common.identity.federation_folder import FederationFolder
from matl_common.identity.tls import channel_credentials, channel_options
from matl_common.ids import NodeId
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from matl_participant.core.account import AttemptState
from tests.haproxy import IS_HERE, MISSING, running_haproxy
from tests.system.conftest import STUDY_ROUNDS
from tests.system.federation import (
    COORDINATOR_NAME,
    HOSPITALS,
    Federation,
    Material,
    found_federation,
)
from tests.system.front_end import FrontEnd
from tests.system.narrow_link import narrow_link
from tests.system.processes import PATIENCE_SECONDS, Daemon, until
from tests.system.story import Story, charges, tell

pytestmark = [
    pytest.mark.system,
    pytest.mark.postgres,
    pytest.mark.crash,
    pytest.mark.timeout(600),
]
FRONT_ENDS = (NodeId("front_1"), NodeId("front_2"))
MIB = 1 << 20


@pytest.fixture(autouse=True)
def haproxy_is_here() -> None:
    if not IS_HERE:
        pytest.fail(MISSING, pytrace=False)


@dataclass
class Fleet:
    """A coordinator, its standby, and front ends before both, behind one address."""

    places: dict[str, Federation]
    front_ends: dict[NodeId, FrontEnd]
    running: ExitStack
    daemons: dict[str, Daemon] = field(default_factory=dict)
    address: str = ""

    def start(self) -> None:
        """All but the standby and the hospitals."""
        self.lead("first").wait_for("coordinator_ready")
        for front in [self.front(name) for name in self.front_ends]:
            front.wait_for("leader_reached")
        folder = self.places["first"].folder / "haproxy"
        folder.mkdir()
        servers = {
            f"front-{at}.example:8470 port 9472": f"127.0.0.1:{each.port} port {each.metrics_port}"
            for at, each in enumerate(self.front_ends.values(), start=1)
        }
        self.address = self.running.enter_context(running_haproxy(folder, servers))

    def lead(self, name: str) -> Daemon:
        daemon = self.places[name].start_coordinator()
        self.daemons[name] = self.running.enter_context(daemon)
        return daemon

    def front(self, name: NodeId) -> Daemon:
        self.daemons[name] = self.running.enter_context(self.front_ends[name].start())
        return self.daemons[name]

    def hospital(self, node: NodeId, *, address: str = "") -> Daemon:
        federation = self.places["first"]
        return self.running.enter_context(
            federation.start_scripted(node, address=address or self.address)
        )


@pytest.fixture
def fleet(
    tmp_path: Path, material: Material, running: ExitStack, postgres_database: str
) -> Callable[..., Fleet]:
    def make(**changes: object) -> Fleet:
        study = {"rounds": STUDY_ROUNDS}
        federation = found_federation(tmp_path, material, database=postgres_database, study=study)
        federation = replace(federation, **changes)  # type: ignore[arg-type]
        places = {name: federation.daemon_named(name) for name in ("first", "second")}
        leaders = ", ".join(each.address for each in places.values())
        front_ends = {name: FrontEnd(federation, name, leaders) for name in FRONT_ENDS}
        return Fleet(places, front_ends, running)

    return make


def test_a_study_through_front_ends_has_the_same_model_whoever_is_killed(
    fleet: Callable[..., Fleet], undisturbed: Story
) -> None:
    all_of_it = fleet()
    all_of_it.start()
    standby = all_of_it.lead("second")
    hospitals = [all_of_it.hospital(node) for node in HOSPITALS]
    leader = all_of_it.daemons["first"]
    standby.wait_for("coordinator_standing_by", reason="first leads")
    leader.wait_for("round_phase", round=1, phase="scoring")
    all_of_it.daemons[FRONT_ENDS[0]].kill()
    leader.wait_for("round_phase", round=2, phase="collecting")
    leader.kill()
    standby.wait_for("coordinator_ready")
    left = all_of_it.daemons[FRONT_ENDS[1]]
    left.wait_for("leader_reached", address=all_of_it.places["second"].address)
    all_of_it.front(FRONT_ENDS[0])
    for hospital in hospitals:
        assert hospital.wait(seconds=2 * PATIENCE_SECONDS) == 0, hospital.output[-3000:]
    for each in (standby, left, all_of_it.daemons[FRONT_ENDS[0]]):
        assert each.drain() == 0, each.output[-3000:]
    assert tell(all_of_it.places["first"]) == undisturbed


def test_an_upload_whose_front_end_is_killed_goes_on_at_another(
    fleet: Callable[..., Fleet], tmp_path: Path, running: ExitStack
) -> None:
    # 94 chunks. How the update would be scored is not this test's business.
    (victim, *_) = HOSPITALS
    big = {"backbone": "resnet50_gn", "learning_rate": 1.0}
    all_of_it = fleet(
        hospitals=(victim,), direction=tmp_path / "none", study=big, rounds={"byzantine": 0}
    )
    all_of_it.start()
    port = int(all_of_it.address.rpartition(":")[2])
    link = running.enter_context(narrow_link(port, limit_bytes=40 * MIB))
    hospital = all_of_it.hospital(victim, address=link.address)
    until(link.is_full, what="a part of the update is on its way")
    (hit,) = (name for name in FRONT_ENDS if all_of_it.daemons[name].events("upload_begun"))
    all_of_it.daemons[hit].kill()
    link.open_wide()
    (other,) = set(FRONT_ENDS) - {hit}
    kept = int(all_of_it.daemons[other].wait_for("upload_continued")["chunks_kept"])
    place = all_of_it.places["first"]
    until(
        lambda: (1, AttemptState.ACKNOWLEDGED) in charges(place, victim),
        what="the update was admitted",
    )
    assert hospital.is_running()
    assert place.trainings(victim)[:1] == [1]
    # What had been received did not come again.
    size = (place.coordinator_state / "spool" / "1" / f"{victim}.update").stat().st_size
    front_end = all_of_it.front_ends[other]
    assert front_end.metric("kept_bytes_total") == kept * MIB > 20 * MIB
    assert front_end.metric("received_bytes_total") == size - kept * MIB

    FederationFolder(tmp_path / "keys").revoke(victim, reason="left", now=datetime.now(UTC))
    with grpc.secure_channel(
        all_of_it.address,
        channel_credentials(place.keys[victim].tls),
        options=channel_options(COORDINATOR_NAME),
    ) as channel:
        until(lambda: is_shut_out(channel), what="the hospital is shut out")


def is_shut_out(channel: grpc.Channel) -> bool:
    """Whether the front end answers that this node may not take part."""
    try:
        FederationServiceStub(channel).Hello(pb.HelloRequest(version=""), timeout=30)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.PERMISSION_DENIED
    return False
