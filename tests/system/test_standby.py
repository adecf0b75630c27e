"""Two daemons of one coordinator: one leads, and the other does when that one is gone."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from matl.calls import OperationsError
from matl.operations import OperationsClient
from matl_common.identity.tls import channel_credentials, channel_options
from matl_common.ids import NodeId
from matl_participant.core.account import AttemptState
from tests.postgres import own_server
from tests.store.proxy import Mode, Proxy
from tests.system.conftest import STUDY_ROUNDS
from tests.system.federation import (
    COORDINATOR_NAME,
    HOSPITALS,
    OPERATOR,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.narrow_link import narrow_link
from tests.system.processes import PATIENCE_SECONDS, Daemon, until
from tests.system.story import Story, charges, of, tell

pytestmark = [pytest.mark.system, pytest.mark.postgres]
PHASES = ("collecting", "scoring", "aggregating", "evaluating")
MIB = 1 << 20


@dataclass
class Pair:
    """Both daemons, by name."""

    places: dict[str, Federation]
    running: ExitStack
    daemons: dict[str, Daemon]

    def start(self, name: str) -> Daemon:
        self.daemons[name] = self.running.enter_context(self.places[name].start_coordinator())
        return self.daemons[name]

    def start_hospitals(self, *addresses: str) -> dict[NodeId, Daemon]:
        federation = self.places["first"]
        known = ",".join(addresses or [each.address for each in self.places.values()])
        return {
            node: self.running.enter_context(federation.start_scripted(node, address=known))
            for node in federation.hospitals
        }

    def finish(self, hospitals: dict[NodeId, Daemon]) -> Story:
        """Wait for the study's end, whoever leads then, and tell it."""
        for hospital in hospitals.values():
            assert hospital.wait() == 0, hospital.output[-3000:]
        for daemon in self.daemons.values():
            assert daemon.drain() == 0, daemon.output[-3000:]
        return tell(self.places["first"])


@pytest.fixture
def pair(
    tmp_path: Path, material: Material, running: ExitStack, postgres_database: str
) -> Callable[..., Pair]:
    def make(*, database: str = postgres_database, lease_seconds: float = 10.0) -> Pair:
        study = {"rounds": STUDY_ROUNDS}
        federation = found_federation(tmp_path, material, database=database, study=study)
        names = ("first", "second")
        places = {
            name: federation.daemon_named(name, lease_seconds=lease_seconds) for name in names
        }
        return Pair(places, running, {})

    return make


def started(pair: Pair) -> tuple[Daemon, Daemon]:
    """The first leads, the second stands by."""
    first = pair.start("first")
    first.wait_for("coordinator_ready")
    second = pair.start("second")
    second.wait_for("coordinator_standing_by", reason="first leads")
    return first, second


def phase(daemons: Sequence[Daemon], number: int, name: str) -> Daemon:
    """Wait until one of them says that a round is in a phase; returns it."""
    found: list[Daemon] = []

    def look() -> bool:
        found[:] = [
            each for each in daemons if each.events("round_phase", round=number, phase=name)
        ]
        return bool(found)

    # Hospitals may have to follow before, and a worker to start.
    until(look, what=f"round {number} is in phase {name}", seconds=2 * PATIENCE_SECONDS)
    return found[0]


@pytest.mark.crash
@pytest.mark.timeout(900)
def test_leaders_killed_in_every_phase_are_followed_by_the_other_with_the_same_model(
    pair: Callable[..., Pair], undisturbed: Story
) -> None:
    both = pair()
    leader, waiting = started(both)
    names = {"first": "second", "second": "first"}
    name = "first"
    hospitals = both.start_hospitals()
    for round_id, each in enumerate(PHASES, start=1):
        phase([leader], round_id, each)
        leader.kill()
        ready = waiting.wait_for("coordinator_ready")
        assert ready["round"] >= round_id
        waiting_name, leader = name, waiting
        name = names[name]
        waiting = both.start(waiting_name)
        waiting.wait_for("coordinator_standing_by", reason=f"{name} leads")
    assert both.finish(hospitals) == undisturbed
    started_by = [
        each["leader"] for each in of(logged_events(both.places["first"]), "coordinator_started")
    ]
    assert started_by == ["first", "second", "first", "second", "first"]


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_an_upload_that_its_leader_did_not_live_to_see_goes_on_at_the_other(
    pair: Callable[..., Pair], material: Material, tmp_path: Path, running: ExitStack
) -> None:
    # 94 MB: an update of 94 chunks. How it would be scored is not this test's business.
    (victim, *_) = HOSPITALS
    both = pair()
    for name, place in both.places.items():
        both.places[name] = replace(
            place,
            hospitals=(victim,),
            direction=tmp_path / "none",
            study={"backbone": "resnet50_gn", "learning_rate": 1.0},
            rounds={"byzantine": 0},
        )
    first, second = started(both)
    ports = [each.port for each in both.places.values()]
    narrow = running.enter_context(narrow_link(ports[0], limit_bytes=40 * MIB))
    wide = running.enter_context(narrow_link(ports[1], limit_bytes=1 << 40))
    hospitals = both.start_hospitals(narrow.address, wide.address)
    until(narrow.is_full, what="a part of the update is on its way")
    # Before the kill: the second may lead a moment after it.
    half = both.places["first"].coordinator_state / ".half.tmp"
    half.write_bytes(b"as of a leader that was killed while it wrote")
    first.kill()
    narrow.close()
    second.wait_for("coordinator_ready", round=1, phase="collecting")
    assert not half.exists()
    until(
        lambda: (1, AttemptState.ACKNOWLEDGED) in charges(both.places["first"], victim),
        what="the update was admitted",
    )
    assert hospitals[victim].is_running()
    assert both.places["first"].trainings(victim)[:1] == [1]
    assert wide.sent_bytes < 94 * MIB - 20 * MIB


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_a_leader_that_was_stopped_for_longer_than_its_lease_writes_nothing_when_it_goes_on(
    pair: Callable[..., Pair], undisturbed: Story, running: ExitStack
) -> None:
    both = pair(lease_seconds=3.0)
    first, second = started(both)
    held = HOSPITALS[0]
    place = both.places["first"]
    place.control(held).write_text("wait")
    # As when a network is divided: who is connected to the first leaves it.
    link = Proxy("127.0.0.1", place.port)
    running.callback(link.close)
    hospitals = both.start_hospitals(f"127.0.0.1:{link.port}", both.places["second"].address)
    until(lambda: place.trainings(held) == [1], what="a round is under way")
    with _operator(place) as operator:
        operator.status()
        first.suspend()
        order = Ordered(operator)
        second.wait_for("coordinator_ready", round=1, phase="collecting")
        link.mode = Mode.CUT
        link.cut()
        first.go_on()
        first.wait_for("leadership_lost")
        first.wait_for("coordinator_standing_by", reason="second leads")
        assert isinstance(order.result(), OperationsError)
    place.control(held).unlink()
    assert both.finish(hospitals) == undisturbed
    events = logged_events(place)
    assert of(events, "study_paused") == []
    assert [each["leader"] for each in of(events, "coordinator_started")] == ["first", "second"]
    # It did not even say that it stopped.
    assert [each["reign"] for each in of(events, "coordinator_stopped")] == [2]


@contextmanager
def _operator(place: Federation) -> Iterator[OperationsClient]:
    """A patient operator's connection to one daemon."""
    credentials = channel_credentials(place.keys[OPERATOR].tls)
    options = channel_options(COORDINATOR_NAME)
    with grpc.secure_channel(place.address, credentials, options=options) as channel:
        yield OperationsClient(channel, timeout_seconds=120.0)


class Ordered:
    """An order to pause, given from another thread."""

    def __init__(self, operator: OperationsClient) -> None:
        self._operator = operator
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> Exception | None:
        self._thread.join(120.0)
        assert not self._thread.is_alive()
        return self._error

    def _run(self) -> None:
        try:
            self._operator.pause("given to who leads no more")
        except OperationsError as error:
            self._error = error


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_a_database_that_crashes_and_restarts_in_every_phase_costs_nothing(
    pair: Callable[..., Pair], undisturbed: Story
) -> None:
    with own_server() as server:
        both = pair(database=server.url)
        daemons = started(both)
        hospitals = both.start_hospitals()
        for number, name in enumerate(PHASES, start=1):
            phase(daemons, number, name)
            server.stop(signal.SIGQUIT)
            server.start()
        assert both.finish(hospitals) == undisturbed


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_a_database_that_is_away_for_longer_than_a_lease_is_waited_for(
    pair: Callable[..., Pair], undisturbed: Story
) -> None:
    with own_server() as server:
        both = pair(database=server.url, lease_seconds=3.0)
        first, second = started(both)
        hospitals = both.start_hospitals()
        phase([first, second], 2, "scoring")
        server.stop(signal.SIGQUIT)
        first.wait_for("leadership_lost")
        server.start()
        assert both.finish(hospitals) == undisturbed


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_a_database_that_fails_over_to_its_replica_is_followed(
    pair: Callable[..., Pair], undisturbed: Story
) -> None:
    with own_server() as primary, primary.replica() as replica:
        hosts = f"host=127.0.0.1:{primary.port}&host=127.0.0.1:{replica.port}"
        url = (
            f"postgresql://matl:{primary.password}@/postgres?{hosts}"
            "&target_session_attrs=read-write"
        )
        both = pair(database=url)
        daemons = started(both)
        hospitals = both.start_hospitals()
        phase(daemons, 2, "collecting")
        primary.stop(signal.SIGQUIT)
        replica.promote()
        assert both.finish(hospitals) == undisturbed
