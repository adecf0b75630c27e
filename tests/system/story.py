"""What came of a study: enough to compare two runs of it, and to check each by itself."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

from matl.calls import CoordinatorUnavailableError
from matl.operations import OperationsClient
from matl_common.ids import NodeId
from matl_participant.core.account import AttemptState
from tests.system.federation import Event, Federation, logged_events
from tests.system.processes import PATIENCE_SECONDS, Daemon, until

# Once for each life of the coordinator, or when witnesses have come, so they differ between runs.
_OF_ONE_RUN = (
    "allowlist_read",
    "coordinator_started",
    "coordinator_stopped",
    "database_migrated",
    "log_read",
    "model_published",
)


@dataclass(frozen=True)
class Story:
    """A study that has ended."""

    final_model: str
    entries: Counter[tuple[object, object, object]]
    """How often the log has each (event, round, node), but for a process's own."""


def tell(federation: Federation) -> Story:
    """Read the log of a study whose coordinator has stopped, and check its tree."""
    events = logged_events(federation)
    released = [event for event in events if event["event"] == "model_released"]
    return Story(
        final_model=str(released[-1]["model"]),
        entries=Counter(
            (event["event"], event.get("round"), event.get("node"))
            for event in events
            if event["event"] not in _OF_ONE_RUN
        ),
    )


def run_to_the_end(federation: Federation, running: ExitStack) -> Story:
    """Run a whole study with scripted hospitals."""
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    hospitals = start_hospitals(federation, running)
    finish(federation, coordinator, hospitals)
    return tell(federation)


def start_hospitals(
    federation: Federation, running: ExitStack, *, address: str = ""
) -> dict[NodeId, Daemon]:
    """Start every hospital, scripted; it looks for the coordinator at ``address`` if not empty."""
    return {
        node: running.enter_context(federation.start_scripted(node, address=address))
        for node in federation.hospitals
    }


def finish(federation: Federation, coordinator: Daemon, hospitals: dict[NodeId, Daemon]) -> None:
    """Wait for the study's end and for everybody to leave in order."""
    wait_for_the_end(federation)
    for hospital in hospitals.values():
        assert hospital.wait() == 0, hospital.output[-3000:]
    assert coordinator.drain() == 0, coordinator.output[-3000:]


def wait_for_the_end(federation: Federation, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Ask the coordinator, which may be starting, until it says that the study is complete."""
    with federation.operator() as operator:
        until(lambda: _is_complete(operator), what="the study is complete", seconds=seconds)


def _is_complete(operator: OperationsClient) -> bool:
    try:
        return operator.status().study_complete
    except CoordinatorUnavailableError:
        return False


def charges(federation: Federation, node: NodeId) -> list[tuple[int, AttemptState]]:
    """What a hospital's ledger charged, by round, and what became of it."""
    return [(each.round_id, each.state) for each in federation.account(node).attempts]


def of(events: list[Event], event: str, **facts: object) -> list[Event]:
    """The log entries of one kind with these facts."""
    return [each for each in events if each["event"] == event and facts.items() <= each.items()]
