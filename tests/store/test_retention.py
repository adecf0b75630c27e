"""Months are put away after their time, under a quorum's signatures, and on record."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, Engine, insert, text

from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.identity.wrapping import SoftwareKeyEncryptionKey
from matl_common.ids import NodeId, parse_federation_id
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.cosignature import cosign, witness_key
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.merkle import (
    consistency_proof,
    inclusion_proof,
    merkle_root,
    verify_consistency,
    verify_inclusion,
)
from matl_common.tlog.names import witness_name
from matl_common.tlog.policy import NO_QUORUM, Policy, threshold_policy
from matl_common.tlog.sealing import DataKey, data_key
from matl_coordinator.core.retention import Compliance, RetentionError
from matl_coordinator.ports import StoreError
from matl_coordinator.service.retention import Retention
from matl_coordinator.store.data_keys import DataKeys
from matl_coordinator.store.database import create_database_engine, writing
from matl_coordinator.store.log import append_entries
from matl_coordinator.store.retention import SqlRetention
from matl_coordinator.store.schema import log_checkpoints
from matl_coordinator.store.sql import SqlStore
from tests.logs import LOG, LogSettings, an_entry, events_of
from tests.store.roles import RETENTION, WRITER, prepare, url_of

OLD, NEXT, NEW = "2019-01", "2019-02", "2026-11"
AT = {OLD: "2019-01-31T23:59:59.999Z", NEXT: "2019-02-01T00:00:00.000Z"}
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
NODES = [NodeId(f"hospital_{letter}") for letter in "abc"]
LOG_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"L")
LOG_KEY = log_key(LOG["log_origin"], LOG_SIGNER.public_key())
WITNESSES = {
    node: Ed25519PrivateKey.from_private_bytes(bytes(31) + node[-1:].encode()) for node in NODES
}
FEDERATION = parse_federation_id("test")
KEYS = {
    str(node): witness_key(witness_name(FEDERATION, node), key.public_key())
    for node, key in WITNESSES.items()
}
OTHER = SoftwareKeyEncryptionKey(bytes(reversed(range(32))))
REWRAPPED = LogSettings(log_origin=LOG["log_origin"], log_key=OTHER)


@dataclass
class Log:
    """A log with three old entries and one of today, its writer, and its retention."""

    url: str
    writer: SqlStore
    writer_url: str
    retention_url: str
    opened: ExitStack

    def retention(
        self, *, years: int = 7, policy: Policy | None = None, now: datetime = NOW
    ) -> Retention:
        store = self.opened.enter_context(closing(SqlRetention.connect(self.retention_url, **LOG)))
        quorum = policy or threshold_policy([LOG_KEY], KEYS, threshold=2)
        return Retention(
            store=store,
            log_key=LOG_KEY,
            policy=quorum,
            years=years,
            compliance=Compliance.HIPAA,
            account="admin_c",
            clock=lambda: now,
        )

    def cosign(self, *nodes: NodeId, size: int | None = None, root: bytes | None = None) -> None:
        head = self.writer.log_head()
        checkpoint = Checkpoint(LOG_KEY.name, size or head.size, root or bytes.fromhex(head.root))
        note = sign_checkpoint(checkpoint, LOG_KEY, LOG_SIGNER).note.encode()
        if root == bytes(32):
            # A database that takes nothing but its own root has it from its superuser.
            engine = create_database_engine(self.url)
            with writing(engine) as connection:
                values = {"size": checkpoint.size, "note": note}
                connection.execute(insert(log_checkpoints).values(values))
            engine.dispose()
        else:
            self.writer.put_checkpoint(checkpoint.size, note)
        for node in nodes:
            line = cosign(checkpoint, KEYS[node], WITNESSES[node], unix_seconds=1_790_000_000)
            self.writer.put_cosignature(checkpoint.size, node, line.encode())

    def events(self) -> list[str]:
        return [parse_leaf(each.leaf).event for each in self.writer.log_entries(start=0, limit=99)]


@contextmanager
def opened_log(url: str) -> Iterator[Log]:
    urls = (url, url)
    if not url.startswith("sqlite"):
        prepare(url, retention_years="7", cosignatures="2")
        urls = (url_of(url, WRITER), url_of(url, RETENTION))
    with ExitStack() as opened, closing(SqlStore.connect(urls[0], **LOG)) as writer:
        writer.load()
        old = [an_entry(event, at=AT[OLD]) for event in "ab"]
        writer.commit([], [*old, an_entry("c", at=AT[NEXT]), an_entry("d")])
        yield Log(url, writer, *urls, opened)


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with opened_log(database_url) as log:
        yield log


@pytest.fixture
def guarded_log(postgres_database: str) -> Iterator[Log]:
    with opened_log(postgres_database) as log:
        yield log


@pytest.fixture
def intruder(log: Log) -> Iterator[Engine]:
    engine = create_database_engine(log.url)
    yield engine
    engine.dispose()


def test_a_dropped_month_is_gone_and_every_proof_still_verifies(log: Log) -> None:
    before = log.writer.log_head()
    log.cosign(*NODES[:2])
    logged = log.retention().drop_month(OLD, reason="seven years are over")
    assert log.events() == ["c", "d", "month_dropped"]
    told = parse_entry(logged.data or b"")
    assert (told["month"], told["entries"], told["last_index"]) == (OLD, 2, 1)
    assert told["account"] == "admin_c"
    assert (told["retention_years"], told["compliance"]) == (7, "hipaa")
    assert (told["gone"], told["erased"]) == ([[0, 1]], {})
    assert (told["checkpoint_size"], told["cosigners"]) == (4, NODES[:2])
    assert (told["checkpoint_root"], told["reason"]) == (before.root, "seven years are over")
    head, read = log.writer.log_head(), log.writer.log_node
    assert head.size == 5
    for index in range(5):
        verify_inclusion(
            index=index,
            size=5,
            leaf=read(0, index),
            proof=inclusion_proof(index, 5, read),
            root=bytes.fromhex(head.root),
        )
    verify_consistency(
        old_size=4,
        new_size=5,
        old_root=bytes.fromhex(before.root),
        new_root=bytes.fromhex(head.root),
        proof=consistency_proof(4, 5, read),
    )
    # And the coordinator that runs goes on.
    log.writer.commit([], [an_entry("e")])
    assert log.events() == ["c", "d", "month_dropped", "e"]


def test_the_months_that_are_there_are_listed_with_their_end(log: Log) -> None:
    months = log.retention().months()
    assert [(each.held.month, each.held.entries, each.held.last_index) for each in months] == [
        (OLD, 2, 1),
        (NEXT, 1, 2),
        (NEW, 1, 3),
    ]
    assert [each.is_expired for each in months] == [True, True, False]
    assert months[0].kept_until == datetime(2026, 2, 1, tzinfo=UTC)
    assert all(each.held.is_readable for each in months)


@pytest.mark.parametrize(
    ("month", "years", "now"),
    [
        (NEW, 7, NOW),
        (OLD, 8, NOW),
        (OLD, 7, datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_nothing_is_put_away_before_its_time(
    log: Log, month: str, years: int, now: datetime
) -> None:
    log.cosign(*NODES)
    retention = log.retention(years=years, now=now)
    with pytest.raises(RetentionError, match="kept until"):
        retention.drop_month(month, reason="too early")
    with pytest.raises(RetentionError, match="kept until"):
        retention.erase_key(month, reason="too early")
    assert log.events() == ["a", "b", "c", "d"]


@pytest.mark.parametrize("month", ["2019", "2019-13", "2019-01; DROP TABLE log_nodes", ""])
def test_what_is_no_month_is_refused(log: Log, month: str) -> None:
    with pytest.raises(InvalidInputError):
        log.retention().drop_month(month, reason="over")


def test_a_month_without_a_quorum_above_it_stays(log: Log) -> None:
    # A quorum on a checkpoint that misses one entry of the month.
    log.cosign(*NODES, size=1, root=log.writer.log_node(0, 0))
    with pytest.raises(RetentionError, match="quorum"):
        log.retention().drop_month(OLD, reason="over")
    log.cosign(NODES[0])
    with pytest.raises(RetentionError, match="quorum"):
        log.retention().drop_month(OLD, reason="over")
    assert log.events() == ["a", "b", "c", "d"]


def test_without_witnesses_nothing_is_dropped(log: Log) -> None:
    log.cosign(*NODES)
    alone = Policy((LOG_KEY,), {}, (), NO_QUORUM)
    with pytest.raises(RetentionError, match="no hospital is enrolled as a witness"):
        log.retention(policy=alone).drop_month(OLD, reason="over")


def test_lines_that_nobody_signed_are_no_cosignatures(log: Log) -> None:
    log.cosign(NODES[0])
    forger = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"F")
    head = log.writer.log_head()
    checkpoint = Checkpoint(LOG_KEY.name, head.size, bytes.fromhex(head.root))
    stranger = witness_key(witness_name(FEDERATION, NODES[1]), forger.public_key())
    line = cosign(checkpoint, stranger, forger, unix_seconds=1_790_000_000).encode()
    log.writer.put_cosignature(head.size, NODES[1], line)
    with pytest.raises(RetentionError, match="quorum"):
        log.retention().drop_month(OLD, reason="over")


def test_a_quorum_on_another_history_drops_nothing(log: Log) -> None:
    log.cosign(*NODES, root=bytes(32))
    with pytest.raises(IntegrityError, match="rewritten"):
        log.retention().drop_month(OLD, reason="over")
    assert log.events() == ["a", "b", "c", "d"]


def test_an_erased_month_cannot_be_read_and_stays_in_place(log: Log) -> None:
    logged = log.retention().erase_key(OLD, reason="a subject's request")
    told = parse_entry(logged.data or b"")
    assert (told["event"], told["account"]) == ("month_key_erased", "admin_c")
    assert log.events() == ["a", "b", "c", "d", "month_key_erased"]
    gone = [each.data is None for each in log.writer.log_entries(start=0, limit=9)]
    assert gone == [True, True, False, False, False]
    assert [each.held.is_readable for each in log.retention().months()] == [False, True, True]
    with pytest.raises(RetentionError):
        log.retention().erase_key(OLD, reason="again")
    assert log.writer.log_head().size == 5


def test_dropping_a_month_erases_its_key_for_the_sake_of_backups(
    log: Log, intruder: Engine
) -> None:
    log.cosign(*NODES)
    log.retention().drop_month(OLD, reason="over")
    with intruder.connect() as connection:
        rows = connection.execute(text("SELECT name, wrapped IS NULL FROM log_keys ORDER BY name"))
        assert [(name, bool(gone)) for name, gone in rows] == [
            ("2019-01.1", True),
            ("2019-02.1", False),
            ("2026-11.1", False),
        ]


def test_every_order_repeats_what_the_ones_before_it_put_away(log: Log) -> None:
    # A clock went back over a month's end.
    log.writer.commit([], [an_entry("late", at=AT[OLD]), an_entry("e")])
    log.cosign(*NODES)
    retention = log.retention()
    retention.erase_key(NEXT, reason="over")
    logged = retention.drop_month(OLD, reason="over")
    told = parse_entry(logged.data or b"")
    assert (told["gone"], told["erased"]) == ([[0, 1], [4, 4]], {NEXT: 6})
    log.cosign(*NODES)
    told = parse_entry(retention.drop_month(NEXT, reason="over").data or b"")
    assert (told["gone"], told["erased"]) == ([[0, 2], [4, 4]], {NEXT: 6})


class StrangersKeys(DataKeys):
    """Data keys of who knows what the log's own are called, and not what they are."""

    def current(self, connection: Connection, month: str) -> DataKey:
        return data_key(f"{month}.1", bytes(32))


@pytest.mark.hostile
def test_an_order_that_does_not_open_stops_no_other_and_is_not_repeated(
    log: Log, intruder: Engine
) -> None:
    with writing(intruder) as connection:
        forged = an_entry("month_key_erased")
        keys = StrangersKeys(LOG["log_key"])
        append_entries(connection, [forged], origin=LOG["log_origin"], keys=keys)
    logged = log.retention().erase_key(OLD, reason="over")
    told = parse_entry(logged.data or b"")
    assert (logged.index, told["gone"], told["erased"]) == (5, [], {})


def test_a_month_that_is_not_there_is_not_dropped_twice(log: Log) -> None:
    log.cosign(*NODES)
    log.retention().drop_month(OLD, reason="over")
    with pytest.raises(RetentionError, match="no entries of"):
        log.retention().drop_month(OLD, reason="over")
    assert log.writer.log_head().size == 5


def test_all_keys_go_under_another_key_and_no_leaf_changes(log: Log) -> None:
    before = log.writer.log_entries(start=0, limit=9)
    logged = log.retention().rewrap_keys(OTHER, reason="the old one's custodian left")
    assert parse_entry(logged.data or b"")["account"] == "admin_c"
    # A daemon that still runs with the old one writes nothing under it.
    with pytest.raises(IntegrityError, match="took its place"):
        log.writer.commit([], [an_entry("under the old key")])
    with closing(SqlStore.connect(log.writer_url, **REWRAPPED)) as again:
        again.load()
        assert again.log_entries(start=0, limit=4) == before
        again.commit([], [an_entry("e")])
        assert events_of(again.log_entries(start=4, limit=9)) == ["log_keys_rewrapped", "e"]
    with pytest.raises(ConfigurationError, match="restore the key that belongs"):
        SqlStore.connect(log.writer_url, **LOG)


def test_a_coordinator_that_writes_all_the_while_takes_turns(log: Log) -> None:
    log.cosign(*NODES)
    retention = log.retention()
    with ThreadPoolExecutor(1) as thread:
        writing_on = thread.submit(
            lambda: [log.writer.commit([], [an_entry(f"{number}")]) for number in range(40)]
        )
        retention.drop_month(OLD, reason="over")
        retention.erase_key(NEXT, reason="over")
        writing_on.result()
    entries = log.writer.log_entries(start=0, limit=99)
    assert [each.index for each in entries] == [*range(2, 46)]
    told = [event for event in log.events() if not event.isdigit()]
    assert told == ["c", "d", "month_dropped", "month_key_erased"]
    hashes = [log.writer.log_node(0, index) for index in range(46)]
    assert log.writer.log_head().root == merkle_root(hashes).hex()


def test_a_key_that_was_erased_is_not_rewrapped(log: Log) -> None:
    log.retention().erase_key(OLD, reason="over")
    log.retention().rewrap_keys(OTHER, reason="over")
    with closing(SqlStore.connect(log.writer_url, **REWRAPPED)) as again:
        told = [each.data is None for each in again.log_entries(start=0, limit=9)]
        assert told == [True, True, False, False, False, False]


def test_rewrapping_with_the_wrong_key_changes_nothing(log: Log) -> None:
    with pytest.raises(ConfigurationError):
        SqlRetention.connect(log.retention_url, **REWRAPPED)
    assert log.events() == ["a", "b", "c", "d"]


@pytest.mark.postgres
@pytest.mark.parametrize("years", [0, 2])
def test_the_database_keeps_months_for_its_own_time_whatever_the_caller_says(
    guarded_log: Log, years: int
) -> None:
    guarded_log.writer.commit([], [an_entry("e", at="2024-01-31T00:00:00.000Z")])
    guarded_log.cosign(*NODES)
    retention = guarded_log.retention(years=years)
    with pytest.raises(RetentionError, match="the database refuses"):
        retention.drop_month("2024-01", reason="over")
    with pytest.raises(RetentionError, match="the database refuses"):
        retention.erase_key("2024-01", reason="over")
    assert guarded_log.events() == ["a", "b", "c", "d", "e"]


@pytest.mark.postgres
def test_the_database_wants_its_own_number_of_cosignatures(guarded_log: Log) -> None:
    guarded_log.cosign(NODES[0])
    one = threshold_policy([LOG_KEY], KEYS, threshold=1)
    with pytest.raises(RetentionError, match="the database refuses"):
        guarded_log.retention(policy=one).drop_month(OLD, reason="over")


@pytest.mark.postgres
def test_the_coordinator_itself_puts_nothing_away(guarded_log: Log) -> None:
    guarded_log.cosign(*NODES)
    guarded_log.retention_url = guarded_log.writer_url
    with pytest.raises(RetentionError, match="the database refuses"):
        guarded_log.retention().drop_month(OLD, reason="over")
    with pytest.raises(RetentionError, match="the database refuses"):
        guarded_log.retention().rewrap_keys(OTHER, reason="over")
    assert guarded_log.events() == ["a", "b", "c", "d"]


@pytest.mark.postgres
@pytest.mark.parametrize("event", ["x", "month_key_erased", '","event":"month_dropped'])
def test_the_database_drops_nothing_under_an_entry_that_says_something_else(
    guarded_log: Log, event: str
) -> None:
    guarded_log.cosign(*NODES)
    (entry,) = guarded_log.writer.commit([], [an_entry(event)])
    with pytest.raises(StoreError, match="22023"):
        call(
            guarded_log,
            "SELECT log_drop_month('2019-01', 7, 2, 5, %b, %b)",
            entry.leaf,
            entry.payload,
        )


@pytest.mark.postgres
def test_the_database_wants_the_whole_month_under_the_checkpoint(guarded_log: Log) -> None:
    guarded_log.cosign(*NODES, size=1, root=guarded_log.writer.log_node(0, 0))
    (entry,) = guarded_log.writer.commit([], [an_entry("month_dropped")])
    with pytest.raises(StoreError, match="42501"):
        call(
            guarded_log,
            "SELECT log_drop_month('2019-01', 7, 2, 5, %b, %b)",
            entry.leaf,
            entry.payload,
        )


@pytest.mark.postgres
def test_an_erased_key_does_not_come_back(guarded_log: Log) -> None:
    guarded_log.retention().erase_key(OLD, reason="over")
    engine = create_database_engine(guarded_log.url)
    with pytest.raises(StoreError, match="23001"), writing(engine) as connection:
        connection.execute(text("UPDATE log_keys SET wrapped = 'x' WHERE wrapped IS NULL"))
    engine.dispose()


@pytest.mark.postgres
def test_the_database_leaves_no_key_under_the_old_one(guarded_log: Log) -> None:
    (entry,) = guarded_log.writer.commit([], [an_entry("log_keys_rewrapped")])
    with pytest.raises(StoreError, match="22023"):
        call(
            guarded_log,
            "SELECT log_rewrap_keys(%s, %b, 'new', 5, %b, %b)",
            ["2019-01.1"],
            [bytes(40)],
            entry.leaf,
            entry.payload,
        )


def call(log: Log, statement: str, *arguments: object) -> None:
    """Call a function with the retention role's own rights."""
    engine = create_database_engine(log.retention_url)
    try:
        with writing(engine) as connection:
            connection.exec_driver_sql(statement, arguments)
    finally:
        engine.dispose()
