"""What the log gets in sums: what operators read, and refusals beyond those logged singly."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, NodeId
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.policy import NO_QUORUM, Policy
from matl_coordinator.metrics import Metrics
from matl_coordinator.ports import StoreError
from matl_coordinator.preflight import enrolled_participants
from matl_coordinator.protection import protection_of
from matl_coordinator.service.readings import WINDOW, Readings, Verification
from matl_coordinator.service.register import Register
from matl_coordinator.service.watch import MAX_KINDS, MAX_LOGGED_PER_HOUR, Watch
from matl_coordinator.start_record import log_schema, started_facts
from matl_coordinator.store.anchor import FileAnchor
from tests.coordinator.harness import make_site
from tests.fakes import FakeStore, Fault, FaultyStore

START = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
ANNE, BERT = NodeId("anne"), NodeId("bert")


@dataclass
class Desk:
    """A coordinator's register, and a clock that a test moves."""

    store: FaultyStore = field(default_factory=lambda: FaultyStore(FakeStore()))
    now: datetime = START

    def __post_init__(self) -> None:
        self.register = Register(self.store)
        self.readings = Readings(register=self.register, clock=lambda: self.now)
        self.watch = Watch(register=self.register, meter=Metrics(), clock=lambda: self.now)

    def told(self, *names: str) -> list[tuple[Any, ...]]:
        entries = self.store.log_entries(start=0, limit=10_000)
        facts = [parse_entry(each.data) for each in entries if each.data is not None]
        return [tuple(each.get(name) for name in names) for each in facts]

    def reads(self) -> list[tuple[Any, ...]]:
        return self.told("event", "operator", "reads", "first", "last")


async def test_a_long_reading_is_two_entries_of_the_log() -> None:
    desk = Desk()
    await desk.readings.read(ANNE, range(100, 200))
    assert desk.reads() == [("log_read", ANNE, 1, 100, 199)]
    for page in range(200, 0, -50):
        await desk.readings.read(ANNE, range(page, page + 50))
    await desk.readings.settle()
    assert len(desk.reads()) == 1
    desk.now += WINDOW
    await desk.readings.settle()
    await desk.readings.settle()
    assert desk.reads()[1:] == [("log_read", ANNE, 4, 50, 249)]


async def test_every_operator_and_every_window_is_on_record_by_itself() -> None:
    desk = Desk()
    await desk.readings.read(ANNE, range(1))
    await desk.readings.read(BERT, range(2))
    await desk.readings.read(ANNE, range(3, 4))
    desk.now += WINDOW
    await desk.readings.read(ANNE, range(5, 6))
    assert [each[1:] for each in desk.reads()] == [
        (ANNE, 1, 0, 0),
        (BERT, 1, 0, 1),
        (ANNE, 1, 3, 3),
        (ANNE, 1, 5, 5),
    ]
    await desk.readings.read(BERT, range(0))
    assert len(desk.reads()) == 4


async def test_what_cannot_be_put_on_record_is_not_shown() -> None:
    desk = Desk()
    desk.store.fail_commit(0, Fault.NOT_PERSISTED)
    with pytest.raises(StoreError):
        await desk.readings.read(ANNE, range(1))
    # The next is the first again.
    await desk.readings.read(ANNE, range(7, 9))
    assert desk.reads() == [("log_read", ANNE, 1, 7, 8)]


async def test_a_sum_that_the_store_did_not_take_is_logged_the_next_time() -> None:
    desk = Desk()
    await desk.readings.read(ANNE, range(1))
    await desk.readings.read(ANNE, range(1, 3))
    desk.store.fail_commit(1, Fault.NOT_PERSISTED)
    await desk.readings.settle(is_over=True)
    assert len(desk.reads()) == 1
    await desk.readings.settle(is_over=True)
    assert desk.reads()[1:] == [("log_read", ANNE, 1, 1, 2)]


async def test_a_verification_names_who_what_and_with_which_result() -> None:
    desk = Desk()
    root = Digest("ab" * 32)
    assert await desk.readings.verified(ANNE, Verification(9, root)) == 0
    assert await desk.readings.verified(BERT, Verification(9, first=3, last=4)) == 1
    names = ("event", "operator", "entries", "result", "root", "first", "last")
    assert desk.told(*names) == [
        ("log_verified", ANNE, 9, "sound", root, None, None),
        ("log_found_damaged", BERT, 9, "damaged", None, 3, 4),
    ]


@pytest.mark.parametrize("number", [-1, 1 << 53, 1 << 64])
def test_a_verification_of_what_no_log_has_is_refused(number: int) -> None:
    with pytest.raises(InvalidInputError):
        Verification(number)
    with pytest.raises(InvalidInputError):
        Verification(1, first=number)
    with pytest.raises(InvalidInputError):
        Verification(1, last=number)


async def refuse(desk: Desk, count: int, *, reason: str = "expired") -> None:
    for _ in range(count):
        await desk.watch.access_denied(reason, ANNE, "/method")


async def test_refusals_beyond_those_logged_are_counted_in_one_entry() -> None:
    desk = Desk()
    await refuse(desk, MAX_LOGGED_PER_HOUR + 7)
    await refuse(desk, 3, reason="not_enrolled")
    for _ in range(MAX_LOGGED_PER_HOUR + 2):
        desk.watch.handshake_refused("no certificate")
    # Those that were refused a connection are logged by tasks of their own.
    await asyncio.sleep(0)
    await desk.register.settle()
    await desk.watch.settle()
    assert ("refusals_suppressed",) not in desk.told("event")
    desk.now += timedelta(minutes=31)
    await desk.watch.settle()
    await desk.watch.settle()
    names = ("event", "hour", "refusals", "kinds")
    assert [each for each in desk.told(*names) if each[0] == "refusals_suppressed"] == [
        (
            "refusals_suppressed",
            "2026-11-28T12:00+00:00",
            9,
            {"expired anne": 7, "no certificate": 2},
        )
    ]


async def test_an_hour_without_more_refusals_than_are_logged_needs_no_sum() -> None:
    desk = Desk()
    await refuse(desk, MAX_LOGGED_PER_HOUR)
    desk.now += timedelta(hours=1)
    await desk.watch.settle(is_over=True)
    assert {event for (event,) in desk.told("event")} == {"access_denied"}


async def test_at_a_stop_and_after_a_failure_nothing_suppressed_is_forgotten() -> None:
    desk = Desk()
    await refuse(desk, MAX_LOGGED_PER_HOUR + 1)
    desk.store.fail_commit(desk.store.commits, Fault.NOT_PERSISTED)
    await desk.watch.settle(is_over=True)
    assert desk.told("refusals")[-1] == (None,)
    await desk.watch.settle(is_over=True)
    assert desk.told("refusals")[-1] == (1,)


async def test_the_sum_names_the_most_frequent_kinds_and_counts_all() -> None:
    desk = Desk()
    for number in range(MAX_KINDS + 5):
        reason = f"reason-{number}"
        await refuse(desk, MAX_LOGGED_PER_HOUR + 1 + (number == 3), reason=reason)
    await desk.watch.settle(is_over=True)
    ((total, kinds),) = desk.told("refusals", "kinds")[-1:]
    assert (total, len(kinds), kinds["reason-3 anne"]) == (MAX_KINDS + 6, MAX_KINDS, 2)


async def test_a_change_of_the_tables_is_logged_once_at_the_next_start(tmp_path: Path) -> None:
    desk = Desk()
    anchor = FileAnchor(tmp_path / "log-schema.txt", holds="the logged schema")

    async def start(version: str, *, register: Register = desk.register) -> None:
        await log_schema(register, anchor, version, node=ANNE, clock=lambda: desk.now)

    for version in ("0004", "0004", "0005", "0005"):
        await start(version)
    names = ("event", "schema", "before")
    assert desk.told(*names) == [
        ("database_migrated", "0004", None),
        ("database_migrated", "0005", "0004"),
    ]
    # Where it was not logged, the next start does it.
    desk.store.fail_commit(desk.store.commits, Fault.NOT_PERSISTED)
    with pytest.raises(StoreError):
        await start("0006")
    await start("0006")
    assert desk.told(*names)[2:] == [("database_migrated", "0006", "0005")]


def test_a_start_tells_the_terms_that_every_later_entry_was_decided_by(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    policy = site.checkpoints(FakeStore()).policy
    protection = protection_of(site.config, enrolled=enrolled_participants(site.allowlist))
    facts = started_facts(site.config, protection, policy)
    names = ("quorum", "witnesses", "witness_quorum", "retention_years", "compliance")
    assert tuple(facts[name] for name in names) == (2, 3, 3, 7, "hipaa")
    nobody = Policy(policy.logs, {}, (), NO_QUORUM)
    alone = started_facts(site.config, protection, nobody)
    assert (alone["witnesses"], alone["witness_quorum"]) == (0, 0)
