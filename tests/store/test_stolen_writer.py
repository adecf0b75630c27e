"""What whoever stole the writer's password can do to the log, and what it does not stop."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import NullPool, create_engine, text

from matl_common.errors import IntegrityError
from matl_common.ids import NodeId
from matl_common.tlog.leaf import parse_leaf
from matl_coordinator.ports import ForeignRow, PutRound, PutStudy, StaleWriterError, StoreError
from matl_coordinator.store.database import LockedError
from matl_coordinator.store.limits import TimeLimits
from matl_coordinator.store.sql import SqlStore
from tests.contracts.samples import a_round, a_study
from tests.logs import LOG, a_note, an_entry, events_of
from tests.postgres import fresh_database
from tests.store.roles import READER, RETENTION, WRITER, connected, prepare, url_of
from tests.store.test_postgres_roles import LINE, outcome

pytestmark = pytest.mark.postgres

BEFORE, NOW = "2026-10-31T23:59:59.999Z", "2026-11-28T12:00:00.000Z"
HASTY = TimeLimits(lock_seconds=0.3)
WRAPPED = "decode(repeat('ab', 40), 'hex')"


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[str]:
    """Two entries, and a checkpoint of the first."""
    with fresh_database(postgres_url) as url:
        prepare(url)
        with closing(SqlStore.connect(url_of(url, WRITER), **LOG)) as store:
            store.load()
            store.commit([], [an_entry("old", at=BEFORE)])
            assert store.put_checkpoint(1, a_note(store.log_head()))
            store.commit([], [an_entry("new", at=BEFORE)])
        yield url


def hexed(data: bytes) -> str:
    return f"decode('{data.hex()}', 'hex')"


REFUSED = {
    "a checkpoint of more than there is": "SELECT log_put_checkpoint(3, convert_to("
    "E'x\\n3\\n\\n\\n\\u2014 x AAAA\\n', 'UTF8'))",
    "a checkpoint of very much more": "SELECT log_put_checkpoint(9007199254740993, convert_to("
    "E'x\\n9007199254740993\\n\\n\\n\\u2014 x AAAA\\n', 'UTF8'))",
    "a checkpoint before the newest": "SELECT log_put_checkpoint(0, convert_to(format("
    "E'x\\n0\\n%s\\n\\n\\u2014 x AAAA\\n', encode(sha256(''), 'base64')), 'UTF8'))",
    "a checkpoint of no size": "SELECT log_put_checkpoint(NULL, 'x')",
    "a checkpoint that states nothing": "SELECT log_put_checkpoint(2, 'x')",
    "no checkpoint": "SELECT log_put_checkpoint(2, NULL)",
    "a checkpoint of another root": "SELECT log_put_checkpoint(2, convert_to(format("
    "E'x\\n2\\n%s\\n\\n\\u2014 x AAAA\\n', encode(decode(repeat('00', 32), 'hex'), 'base64')),"
    " 'UTF8'))",
    "a cosignature of no checkpoint": f"SELECT log_put_cosignature(2, 'hospital_a', {hexed(LINE)})",
    "a cosignature of another": f"SELECT log_put_cosignature(1, 'hospital_b', {hexed(LINE)})",
    "two cosignatures in one": f"SELECT log_put_cosignature(1, 'hospital_a', {hexed(LINE * 2)})",
    "a cosignature that is no line": "SELECT log_put_cosignature(1, 'hospital_a', 'x')",
    "a cosignature by nobody": f"SELECT log_put_cosignature(1, '', {hexed(LINE)})",
    "no cosignature": "SELECT log_put_cosignature(1, 'hospital_a', NULL)",
    "a key of a month to come": f"SELECT log_put_key('2999-01.1', '2999-01', 'x', {WRAPPED})",
    "a key of no month": f"SELECT log_put_key('2026-13.1', '2026-13', 'x', {WRAPPED})",
    "a key that leaves names out": f"SELECT log_put_key('2026-10.9', '2026-10', 'x', {WRAPPED})",
    "a key in another's place": f"SELECT log_put_key('2026-10.1', '2026-10', 'x', {WRAPPED})",
    "a key under another month": f"SELECT log_put_key('2026-10.2', '2026-09', 'x', {WRAPPED})",
    "a key that is too short": "SELECT log_put_key('2026-10.2', '2026-10', 'x', 'x')",
    "a key that is erased": "SELECT log_put_key('2026-10.2', '2026-10', 'x', NULL)",
    "a key wrapped by nothing": f"SELECT log_put_key('2026-10.2', '2026-10', '', {WRAPPED})",
    "a second row of a key": "SELECT log_put_key('2026-10.2', '2026-10', 'x', wrapped)"
    " FROM log_keys WHERE name = '2026-10.1'",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_sql_can_tell_from_the_coordinators_own_is_refused(database: str, what: str) -> None:
    # A colon begins a parameter there.
    assert outcome(database, WRITER, REFUSED[what].replace(":", "\\:")) == "22023"


def test_the_first_of_a_size_and_of_a_witness_stays(postgres_database: str) -> None:
    prepare(postgres_database)
    with closing(SqlStore.connect(url_of(postgres_database, WRITER), **LOG)) as store:
        store.load()
        for count in range(1, 12):
            store.commit([], [an_entry("a")])
            note = a_note(store.log_head())
            # The database's own root agrees with ours at every size.
            assert store.put_checkpoint(count, note)
            assert store.put_checkpoint(count, note)
            assert not store.put_checkpoint(count, a_note(store.log_head(), seed=b"x" * 32))
            store.put_cosignature(count, NodeId("hospital_a"), LINE)
            store.put_cosignature(count, NodeId("hospital_a"), LINE.replace(b"AAAAAAAA", b"BBBB"))
            newest = next(store.checkpoints())
            assert (newest.size, newest.note) == (count, note)
            assert newest.cosignatures == {"hospital_a": LINE}


def test_a_junk_data_key_of_this_month_or_the_next_entrys_stops_nothing(
    postgres_database: str,
) -> None:
    prepare(postgres_database)
    url, found = url_of(postgres_database, WRITER), list[ForeignRow]()
    with closing(SqlStore.connect(url, **LOG, report=found.append)) as store:
        store.load()
        store.commit([], [an_entry("a", at=BEFORE)])
        with connected(postgres_database, WRITER) as thief:
            for month, number, byte in (("2026-10", 2, "aa"), ("2026-11", 1, "bb")):
                junk = f"decode(repeat('{byte}', 40), 'hex')"
                name = f"{month}.{number}"
                thief.execute(text(f"SELECT log_put_key('{name}', '{month}', 'thief', {junk})"))
            thief.commit()
        store.commit([], [an_entry("b", at=BEFORE), an_entry("c", at=NOW)])
        store.commit([], [an_entry("d", at=NOW)])
        logged = store.log_entries(start=0, limit=9)
        assert events_of(logged) == ["a", "b", "c", "d"]
        names = [parse_leaf(each.leaf).key for each in logged]
        assert names == ["2026-10.1", "2026-10.1", "2026-11.2", "2026-11.2"]
    # Each is told of once, and once more at a start.
    assert [(row.table, row.key) for row in found] == [
        ("log_keys", "2026-10.2"),
        ("log_keys", "2026-11.1"),
    ]
    with closing(SqlStore.connect(url, **LOG, report=found.append)) as store:
        store.load()
        store.commit([], [an_entry("e", at=NOW)])
        assert events_of(store.log_entries(start=4, limit=1)) == ["e"]
    assert len(found) == 4


def test_an_advisory_lock_that_anybody_may_hold_stops_nothing(database: str) -> None:
    engine = create_engine(url_of(database, READER), poolclass=NullPool)
    with engine.connect() as reader:
        for number in (0x6D61746D, 0x6D61746C):
            reader.execute(text(f"SELECT pg_advisory_lock({number})"))
        reader.execute(text("LOCK TABLE log_nodes, log_entries IN ACCESS SHARE MODE"))
        with closing(SqlStore.connect(url_of(database, WRITER), limits=HASTY, **LOG)) as store:
            store.load()
            store.commit([], [an_entry("all the same", at=BEFORE)])
    engine.dispose()


@pytest.mark.parametrize(
    ("role", "holding"),
    [
        (WRITER, "SELECT log_lock()"),
        (RETENTION, "SELECT log_lock()"),
        (WRITER, "SELECT epoch FROM writer FOR UPDATE"),
    ],
)
def test_whoever_keeps_the_log_locked_is_named(database: str, role: str, holding: str) -> None:
    with closing(SqlStore.connect(url_of(database, WRITER), limits=HASTY, **LOG)) as store:
        store.load()
        with connected(database, role) as thief:
            pid = thief.execute(text("SELECT pg_backend_pid()")).scalar_one()
            thief.execute(text(holding))
            with pytest.raises(LockedError, match=f"process {pid} of database user {role}"):
                store.commit([], [an_entry("late", at=BEFORE)])
        with pytest.raises(StoreError, match="load"):
            store.commit([], [an_entry("of unknown end", at=BEFORE)])
        store.load()
        store.commit([], [an_entry("free again", at=BEFORE)])


REMEDY = (
    "UPDATE log_keys SET wrapped = NULL WHERE name = '2026-10.2'",
    "ALTER EVENT TRIGGER matl_log_keep_guards DISABLE",
    "ALTER TABLE log_cosignatures DISABLE TRIGGER log_keep_rows",
    "ALTER TABLE log_checkpoints DISABLE TRIGGER log_keep_rows",
    "DELETE FROM log_cosignatures WHERE size = 2",
    "DELETE FROM log_checkpoints WHERE size = 2",
    "ALTER TABLE log_checkpoints ENABLE ALWAYS TRIGGER log_keep_rows",
    "ALTER TABLE log_cosignatures ENABLE ALWAYS TRIGGER log_keep_rows",
    "ALTER EVENT TRIGGER matl_log_keep_guards ENABLE ALWAYS",
)


def test_a_superuser_removes_what_somebody_else_put_and_all_is_guarded_as_before(
    postgres_database: str,
) -> None:
    prepare(postgres_database)
    found = list[ForeignRow]()
    with closing(SqlStore.connect(url_of(postgres_database, WRITER), **LOG)) as store:
        store.load()
        store.commit([], [an_entry("a", at=BEFORE), an_entry("b", at=BEFORE)])
        store.put_checkpoint(2, a_note(store.log_head(), seed=b"x" * 32))
        store.put_cosignature(2, NodeId("hospital_a"), LINE)
        with connected(postgres_database, WRITER) as thief:
            thief.execute(text(f"SELECT log_put_key('2026-10.2', '2026-10', 'x', {WRAPPED})"))
            thief.commit()
        with connected(postgres_database, None) as superuser:
            for statement in REMEDY:
                superuser.execute(text(statement))
            superuser.commit()
        assert list(store.checkpoints()) == []
        assert store.put_checkpoint(2, a_note(store.log_head()))
    with closing(SqlStore.connect(postgres_database, **LOG, report=found.append)) as store:
        assert found == []
    for table in ("log_checkpoints", "log_keys"):
        assert outcome(postgres_database, None, f"DELETE FROM {table}") == "23001"
    disabling = "ALTER TABLE log_checkpoints DISABLE TRIGGER log_keep_rows"
    assert outcome(postgres_database, None, disabling) == "23001"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE writer SET epoch = epoch + 1",
        "UPDATE writer SET epoch = 9223372036854775807",
        "INSERT INTO writer VALUES (2, 0)",
        "DELETE FROM writer",
        "TRUNCATE writer",
    ],
)
def test_the_epoch_is_counted_and_never_written(database: str, statement: str) -> None:
    assert outcome(database, WRITER, statement) == "42501"


def test_a_thief_who_takes_over_stops_a_coordinator_until_its_next_start(
    postgres_database: str,
) -> None:
    prepare(postgres_database)
    url = url_of(postgres_database, WRITER)
    for count in range(1, 4):
        with closing(SqlStore.connect(url, **LOG)) as store:
            store.load()
            with connected(postgres_database, WRITER) as thief:
                taken = thief.execute(text("SELECT log_take_over()")).scalar_one()
                assert taken == 2 * count
                thief.commit()
            with pytest.raises(StaleWriterError, match="took over"):
                store.commit([], [an_entry("late", at=BEFORE)])
    with closing(SqlStore.connect(url, **LOG)) as store:
        store.load()
        store.commit([], [an_entry("in time", at=BEFORE)])


@pytest.mark.parametrize("role", [READER, RETENTION])
def test_nobody_else_takes_over(database: str, role: str) -> None:
    assert outcome(database, role, "SELECT log_take_over()") == "42501"


def test_counting_ends_before_the_column_does(database: str) -> None:
    end = "UPDATE writer SET epoch = 9007199254740991"
    assert outcome(database, None, end, "SELECT log_take_over()") is None
    assert outcome(database, None, end, *["SELECT log_take_over()"] * 2) == "22023"


def test_what_a_thief_writes_into_the_study_is_seen_at_the_next_start_where_it_makes_no_sense(
    postgres_database: str,
) -> None:
    prepare(postgres_database)
    with closing(SqlStore.connect(url_of(postgres_database, WRITER), **LOG)) as store:
        store.load()
        store.commit([PutStudy(a_study()), PutRound(a_round(1))], [an_entry("a", at=BEFORE)])
        assert outcome(postgres_database, WRITER, "DELETE FROM rounds") == "42501"
        with connected(postgres_database, WRITER) as thief:
            thief.execute(text("UPDATE rounds SET document = 'x'"))
            thief.commit()
        with pytest.raises(IntegrityError, match="cannot be read"):
            store.load()
        assert events_of(store.log_entries(start=0, limit=9)) == ["a"]
