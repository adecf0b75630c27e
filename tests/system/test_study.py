"""One undisturbed study with real training, what must hold of it, and draining."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from matl.operations import Participant, Status
from matl_common.identity.keys import parse_public_key
from matl_common.ids import NodeId, digest_of_file
from matl_common.protocol import PayloadType
from matl_common.signing import parse_envelope, verify
from matl_common.tlog.entry import encode_entry
from matl_common.wire.documents import parse_receipt
from matl_participant.core.account import AttemptState
from matl_participant.files import StateFolder
from tests.system.federation import (
    HOSPITALS,
    STUDY,
    Event,
    Federation,
    Material,
    found_federation,
    logged_events,
    logged_leaf,
    logged_root,
)
from tests.system.processes import until
from tests.system.story import charges, of, start_hospitals, wait_for_the_end

pytestmark = pytest.mark.system
ROUNDS = 2
MAX_IDLE_BYTES = 120_000_000
# A first round maps 7 MB more, mostly code of numpy, gRPC and OpenBLAS that had not run before.
MAX_RESTING_BYTES = MAX_IDLE_BYTES + 6_000_000


@dataclass(frozen=True)
class Ended:
    """A study of three real participants, after its end."""

    federation: Federation
    status: Status
    participants: tuple[Participant, ...]
    told_entries: tuple[bytes, ...]
    exit_statuses: dict[str, int]
    idle_bytes: int
    """Resident memory of the coordinator that waits for its first hospital."""
    afterwards_bytes: int
    """The same after the last round."""
    mapped: frozenset[str]
    events: list[Event]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Ended]:
    federation = found_federation(
        tmp_path_factory.mktemp("study"),
        material,
        study={"rounds": ROUNDS, "learning_rate": 0.5},
    )
    with ExitStack() as running:
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        process = psutil.Process(coordinator.pid)
        idle = process.memory_info().rss
        daemons = {
            node: running.enter_context(federation.start_participant(node)) for node in HOSPITALS
        }
        wait_for_the_end(federation)
        statuses = {str(node): daemon.wait() for node, daemon in daemons.items()}
        # The hospitals left after they had witnessed the last release.
        coordinator.wait_for("model_published", round=ROUNDS)
        with federation.operator() as operator:
            status, participants = operator.status(), operator.participants()
            told = operator.newest_log_entries()
        afterwards = process.memory_info().rss
        mapped = frozenset(each.path for each in process.memory_maps())
        statuses["coordinator"] = coordinator.drain()
        yield Ended(
            federation,
            status,
            participants,
            told,
            statuses,
            idle,
            afterwards,
            mapped,
            logged_events(federation),
        )


def test_three_hospitals_and_a_coordinator_release_a_model_and_leave_in_order(
    ended: Ended,
) -> None:
    assert ended.exit_statuses == dict.fromkeys([*HOSPITALS, "coordinator"], 0)
    assert ended.status.study_complete
    assert ended.status.rounds_released == ROUNDS
    model = (
        ended.federation.coordinator_state / "models" / f"{ended.status.latest_model}.safetensors"
    )
    assert digest_of_file(model) == ended.status.latest_model
    released = of(ended.events, "model_released")
    assert [each["round"] for each in released] == [1, 2]
    assert released[-1]["model"] == ended.status.latest_model
    assert released[0]["model"] != released[1]["model"]
    assert {each.node_id for each in ended.participants} >= set(HOSPITALS)


def test_the_log_tells_the_whole_study_and_its_root_is_that_of_its_leaves(ended: Ended) -> None:
    size = ended.status.log_size
    assert logged_root(ended.federation, size=size) == ended.status.log_root
    assert [encode_entry(event) for event in ended.events[:size]] == list(ended.told_entries)
    # After the operator asked, which is on record, the coordinator only stopped.
    later = [event["event"] for event in ended.events[size:]]
    assert later == ["log_read", "coordinator_stopped"]
    assert ended.events[0]["event"] == "study_founded"
    assert ended.events[1]["event"] == "allowlist_read"
    for number in range(1, ROUNDS + 1):
        said = [str(event["event"]) for event in ended.events if event.get("round") == number]
        # A quorum may witness the release whenever it comes.
        said.remove("model_published")
        assert said[:2] == ["round_scheduled", "round_opened"]
        assert sorted(said[2:8]) == ["update_admitted"] * 3 + ["update_declared"] * 3
        assert said[8:] == [
            "collection_closed",
            "round_scored",
            *["score_signed"] * 3,
            "round_weighted",
            "model_aggregated",
            "model_released",
        ]


@pytest.mark.parametrize("node", HOSPITALS)
def test_a_hospital_paid_once_a_round_and_holds_a_receipt_for_the_log_entry(
    ended: Ended, node: NodeId
) -> None:
    account = ended.federation.account(node)
    assert charges(ended.federation, node) == [
        (number, AttemptState.ACKNOWLEDGED) for number in range(1, ROUNDS + 1)
    ]
    key = parse_public_key(ended.federation.keys[node].coordinator_signing_key.read_bytes())
    folder = StateFolder(ended.federation.folder / node).study(STUDY).receipts
    for attempt in account.attempts:
        envelope = parse_envelope((folder / f"round-{attempt.round_id:06d}.json").read_bytes())
        receipt = parse_receipt(verify(envelope, key, PayloadType.RECEIPT))
        assert (receipt.node_id, receipt.round_id) == (node, attempt.round_id)
        assert receipt.update_digest == attempt.update_digest
        entry = ended.events[receipt.log_index]
        assert logged_leaf(ended.federation, receipt.log_index) == receipt.log_leaf_hash
        assert (entry["event"], entry["node"]) == ("update_admitted", node)
        assert entry["update"] == attempt.update_digest


def test_an_idle_coordinator_is_small_and_has_no_torch(ended: Ended) -> None:
    assert ended.idle_bytes <= MAX_IDLE_BYTES
    assert ended.afterwards_bytes <= MAX_RESTING_BYTES
    assert [path for path in ended.mapped if "torch" in path or "opacus" in path] == []
    # That the list of mapped files is one: gRPC is in it.
    assert any("grpc" in path for path in ended.mapped)


def test_sigterm_ends_a_coordinator_at_which_a_hospital_waits(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material)
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    # It asks for a round, of which there is none without the others, for half a minute.
    hospital = running.enter_context(federation.start_scripted(HOSPITALS[0]))
    with federation.operator() as operator:
        until(lambda: operator.status().active_participants == 1, what="the hospital waits")
    assert coordinator.drain() == 0
    assert coordinator.events("coordinator_draining")
    assert logged_events(federation)[-1]["event"] == "coordinator_stopped"
    assert hospital.is_running()
    assert hospital.drain() == 0


def test_sigterm_ends_a_participant_that_trains_for_too_long_and_keeps_what_is_trained_in_time(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material)
    for node in HOSPITALS:
        federation.control(node).write_text("wait")
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    hospitals = start_hospitals(federation, running)
    until(
        lambda: all(federation.trainings(node) == [1] for node in HOSPITALS),
        what="everybody trains",
    )
    too_long, in_time, _ = HOSPITALS

    assert hospitals[too_long].drain() == 0
    assert charges(federation, too_long) == [(1, AttemptState.ABANDONED)]
    hospitals[in_time].terminate()
    hospitals[in_time].wait_for("participant.draining")
    federation.control(in_time).unlink()
    assert hospitals[in_time].wait() == 0
    assert charges(federation, in_time) == [(1, AttemptState.SEALED)]
    assert federation.trainings(in_time) == [1]
