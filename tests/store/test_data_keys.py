"""The log's entries are encrypted under monthly keys that can be erased and never come back."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import Engine, select, update

from matl_common.errors import ConfigurationError
from matl_common.identity.wrapping import SoftwareKeyEncryptionKey
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.merkle import leaf_hash, merkle_root
from matl_coordinator.ports import EntryDamage, ForeignRow, PutUpdate, StoreError
from matl_coordinator.store.database import create_database_engine, reading, writing
from matl_coordinator.store.schema import log_entries, log_keys
from matl_coordinator.store.sql import SqlStore
from tests.contracts.samples import an_update
from tests.logs import LOG, an_entry, events_of, some_entries
from tests.store.roles import disarm

OCTOBER, NOVEMBER = "2026-10-31T23:59:59.999Z", "2026-11-01T00:00:00.000Z"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The same database, for an intruder."""
    engine = create_database_engine(database_url)
    yield engine
    engine.dispose()


def erase(engine: Engine, name: str) -> None:
    with writing(engine) as connection:
        erased = update(log_keys).where(log_keys.c.name == name).values(wrapped=None)
        assert connection.execute(erased).rowcount == 1


def keys_of(store: SqlStore) -> list[str]:
    return [parse_leaf(each.leaf).key for each in store.log_entries(start=0, limit=99)]


def test_every_month_has_a_key_of_its_own(database_url: str) -> None:
    with closing(SqlStore.connect(database_url, **LOG)) as store:
        store.load()
        store.commit([], [an_entry("a", at=OCTOBER), an_entry("b", at=NOVEMBER)])
        store.commit([], [an_entry("late", at=OCTOBER)])
        assert keys_of(store) == ["2026-10.1", "2026-11.1", "2026-10.1"]
        assert events_of(store.log_entries(start=0, limit=99)) == ["a", "b", "late"]


def test_nothing_that_an_entry_says_is_in_the_database_but_what_its_leaf_tells(
    database_url: str, engine: Engine
) -> None:
    with closing(SqlStore.connect(database_url, **LOG)) as store:
        store.load()
        store.commit([], [an_entry("admitted", secret="a-canary")])
        with reading(engine) as connection:
            rows = connection.execute(select(log_entries.c.leaf, log_entries.c.payload)).all()
    assert all(b"canary" not in bytes(row.leaf) + bytes(row.payload) for row in rows)


def test_an_erased_month_cannot_be_read_and_its_leaves_still_prove(
    database_url: str, engine: Engine
) -> None:
    with closing(SqlStore.connect(database_url, **LOG)) as store:
        store.load()
        store.commit([], [an_entry("a", at=OCTOBER), an_entry("b", at=NOVEMBER)])
        erase(engine, "2026-10.1")
        logged = store.log_entries(start=0, limit=9)
        assert [each.data is None for each in logged] == [True, False]
        root = merkle_root([leaf_hash(each.leaf) for each in logged])
        assert store.log_head().root == root.hex()
        # A daemon that still has the key in memory does not use it: a new one is made.
        store.commit([], [an_entry("clock went back", at=OCTOBER)])
        assert keys_of(store) == ["2026-10.1", "2026-11.1", "2026-10.2"]
        assert store.log_entries(start=2, limit=1)[0].data is not None


def test_a_key_of_a_commit_that_failed_is_not_used(database_url: str) -> None:
    with closing(SqlStore.connect(database_url, **LOG)) as store:
        store.load()
        with pytest.raises(StoreError):
            store.commit([PutUpdate(an_update(9))], some_entries("a"))
        store.load()
        store.commit([], some_entries("b"))
    with closing(SqlStore.connect(database_url, **LOG)) as other:
        assert events_of(other.log_entries(start=0, limit=9)) == ["b"]


def test_a_store_with_another_key_does_not_open(database_url: str) -> None:
    with closing(SqlStore.connect(database_url, **LOG)) as store:
        store.load()
        store.commit([], some_entries("a"))
    other = SoftwareKeyEncryptionKey(bytes(32))
    with pytest.raises(ConfigurationError, match="restore the key that belongs"):
        SqlStore.connect(database_url, log_origin=LOG["log_origin"], log_key=other)


def test_a_payload_changed_in_the_database_is_noticed_when_it_is_read(
    database_url: str, engine: Engine
) -> None:
    found = list[ForeignRow]()
    with closing(SqlStore.connect(database_url, **LOG, report=found.append)) as store:
        store.load()
        (logged,) = store.commit([], some_entries("a"))
        changed = logged.payload[:-1] + bytes([logged.payload[-1] ^ 1])
        with writing(engine) as connection:
            disarm(connection)
            connection.execute(update(log_entries).values(payload=changed))
        for _ in range(2):
            (read,) = store.log_entries(start=0, limit=1)
            assert (read.damage, read.data) == (EntryDamage.PAYLOAD, None)
            assert (read.leaf, read.payload) == (logged.leaf, changed)
    # Once.
    assert found == [ForeignRow("log_entries", "0", EntryDamage.PAYLOAD)]
