import stat
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import QueuePool, create_engine, event, make_url, text

from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.ids import RoundId
from matl_coordinator.ports import Change, PutModel, PutRound, PutUpdate, State, StoreError
from matl_coordinator.store.database import create_database_engine, reading, writing
from matl_coordinator.store.limits import DEFAULT_LIMITS, TimeLimits
from matl_coordinator.store.migrate import upgrade_to_head
from matl_coordinator.store.sql import SqlStore
from tests.contracts.samples import a_model, a_round, an_update
from tests.logs import LOG, an_entry, events_of, some_entries
from tests.store.proxy import Mode, proxied

HASTY = TimeLimits(
    connect_seconds=2.0, lock_seconds=0.3, statement_seconds=1.0, silence_seconds=1.0
)


SECRET = "hunter2"


def shown(error: BaseException) -> str:
    """All that a log or a terminal would show of an error."""
    return "".join(traceback.format_exception(error))


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Hold the row of the writer, as another coordinator does while it commits."""
    engine = create_database_engine(url)
    with writing(engine) as connection:
        connection.execute(text("UPDATE writer SET epoch = epoch"))
        yield
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://root:{SECRET}@db/x",
        f"postgresql+asyncpg://root:{SECRET}@db/x",
        SECRET,
        "",
        "sqlite://",
        "sqlite:///:memory:",
        f"sqlite:////nowhere-at-all/{SECRET}/x.db",
        f"sqlite:///x.db?mode={SECRET}",
        f"postgresql://root:{SECRET}@db:notaport/x",
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_database_engine(url)
    if "nowhere" not in url:
        assert SECRET not in shown(caught.value)


def test_an_unreachable_server_is_a_store_error_without_the_password() -> None:
    with pytest.raises(StoreError) as caught:
        SqlStore.connect(f"postgresql://root:{SECRET}@127.0.0.1:1/x", limits=HASTY, **LOG)
    assert SECRET not in shown(caught.value)


@pytest.mark.postgres
def test_a_wrong_password_is_not_shown(postgres_database: str) -> None:
    wrong = make_url(postgres_database).set(password=SECRET)
    with pytest.raises(StoreError) as caught:
        SqlStore.connect(wrong.render_as_string(hide_password=False), **LOG)
    assert SECRET not in shown(caught.value)


@pytest.mark.parametrize("epoch", [2**63 - 1, -(2**63), 2**53])
def test_a_count_of_starts_that_nobody_counted_is_named_with_its_remedy(
    database_url: str, epoch: int
) -> None:
    with closing(SqlStore.connect(database_url, **LOG)) as store:
        engine = create_database_engine(database_url)
        with writing(engine) as connection:
            connection.execute(text(f"UPDATE writer SET epoch = {epoch}"))
        with pytest.raises(IntegrityError, match=f"{epoch} starts .* somebody else") as caught:
            store.load()
        remedy = str(caught.value).rpartition(": ")[2]
        with writing(engine) as connection:
            connection.execute(text(remedy))
        engine.dispose()
        store.load()
        store.commit([], [an_entry("goes on")])


@pytest.mark.parametrize(
    "change", [PutUpdate(replace(an_update(9), reason=SECRET)), PutRound(a_round(0))]
)
def test_a_refused_change_is_not_quoted(database_url: str, change: Change) -> None:
    engine = create_database_engine(database_url)
    upgrade_to_head(engine)
    with closing(SqlStore(engine, **LOG)) as store:
        store.load()
        with pytest.raises(StoreError, match=r"IntegrityError|Violation") as caught:
            store.commit([change], some_entries(SECRET))
        # Nor is any connection used again.
        assert isinstance(engine.pool, QueuePool)
        assert engine.pool.checkedin() == 0
    for hidden in (SECRET, "INSERT", "sqlalchemy.exc", "DETAIL"):
        assert hidden not in shown(caught.value).replace(str(Path.cwd()), "")


def test_a_lock_that_is_never_released_is_not_waited_for(database_url: str) -> None:
    with closing(SqlStore.connect(database_url, limits=HASTY, **LOG)) as store:
        store.load()
        with locked(database_url):
            began = time.monotonic()
            with pytest.raises(StoreError):
                store.commit([], some_entries("too late"))
            assert time.monotonic() - began < 5.0
            assert store.log_head().size == 0
        store.load()
        store.commit([], some_entries("free again"))
        assert store.log_head().size == 1


def test_sqlite_is_durable_and_private(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    engine = create_database_engine(f"sqlite:///{path}")
    upgrade_to_head(engine)
    with reading(engine) as connection:
        found = [
            connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    engine.dispose()
    assert found == ["wal", 2, 1]
    assert set(modes.values()) == {0o600}
    assert f"{path.name}-wal" in modes


def test_a_full_sqlite_disk_fails_and_recovers(tmp_path: Path) -> None:
    engine = create_database_engine(f"sqlite:///{tmp_path / 'coordinator.db'}")
    upgrade_to_head(engine)
    pages = 100

    def limit(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(engine, "connect", limit)
    engine.dispose()
    with closing(SqlStore(engine, **LOG)) as store:
        store.load()
        store.commit([], some_entries("fits"))
        with pytest.raises(StoreError, match="SQLITE_FULL"):
            store.commit([PutRound(a_round())], [an_entry("large", text="x" * (60 << 10))] * 20)
        pages = 1 << 20
        assert store.load().round is None
        store.commit([PutRound(a_round())], [an_entry("large", text="x" * (60 << 10))] * 20)
        assert [each.index for each in store.log_entries(start=0, limit=99)] == [*range(21)]


@pytest.mark.postgres
def test_postgres_settings_outlive_a_rollback(postgres_database: str) -> None:
    name = make_url(postgres_database).database
    plain = create_engine(postgres_database, isolation_level="AUTOCOMMIT")
    with plain.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    plain.dispose()
    engine = create_database_engine(postgres_database)
    with pytest.raises(StoreError), writing(engine) as connection:
        connection.execute(text("SELECT no_such_column"))
    with reading(engine) as connection:
        connection.execute(text("SELECT 1"))
    for _ in range(2):
        with reading(engine) as connection:
            found = [
                connection.execute(text(f"SHOW {each}")).scalar_one()
                for each in ("statement_timeout", "lock_timeout", "synchronous_commit")
            ]
        assert found == ["30s", "10s", "on"]
    engine.dispose()


@pytest.mark.postgres
@pytest.mark.parametrize("mode", [Mode.CUT_BEFORE_COMMIT, Mode.CUT_AFTER_COMMIT])
def test_a_commit_whose_answer_is_lost_is_found_by_loading(
    postgres_database: str, mode: Mode
) -> None:
    with proxied(postgres_database) as (url, proxy), closing(SqlStore.connect(url, **LOG)) as store:
        store.load()
        store.commit([PutModel(a_model())], some_entries("before"))
        proxy.mode = mode
        with pytest.raises(StoreError):
            store.commit([PutRound(a_round())], some_entries("in doubt"))
        proxy.mode = Mode.FORWARD
        with pytest.raises(StoreError, match="load"):
            store.commit([], some_entries("without a look"))
        is_kept = mode is Mode.CUT_AFTER_COMMIT
        assert loaded(store).round == (a_round() if is_kept else None)
        store.commit([PutRound(a_round(2))], some_entries("after"))
        expected = ["before", "in doubt", "after"] if is_kept else ["before", "after"]
        assert events_of(store.log_entries(start=0, limit=9)) == expected


def loaded(store: SqlStore) -> State:
    """Load, as a daemon does: again, while the cut connections are still being torn down."""
    give_up_at = time.monotonic() + 20.0
    while True:
        try:
            return store.load()
        except StoreError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)


@pytest.mark.postgres
def test_a_server_that_hangs_is_given_up(postgres_database: str) -> None:
    with (
        proxied(postgres_database) as (url, proxy),
        closing(SqlStore.connect(url, limits=HASTY, **LOG)) as store,
    ):
        store.load()
        store.commit([], some_entries("before"))
        proxy.mode = Mode.SILENT
        for call in (lambda: store.commit([], some_entries("lost")), store.log_head, store.load):
            began = time.monotonic()
            with pytest.raises(StoreError, match="timed out"):
                call()
            assert time.monotonic() - began < 8.0
        proxy.mode = Mode.FORWARD
        store.load()
        store.commit([], some_entries("after"))
        assert store.log_head().size == 2


@pytest.mark.postgres
def test_a_transaction_on_a_server_that_hangs_ends_quietly(
    postgres_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with proxied(postgres_database) as (url, proxy):
        engine = create_database_engine(url, limits=HASTY)

        def write() -> None:
            with writing(engine) as connection:
                connection.execute(text("SELECT 1"))
                proxy.mode = Mode.SILENT
                connection.execute(text("SELECT 2"))

        began = time.monotonic()
        with pytest.raises(StoreError):
            write()
        assert time.monotonic() - began < 8.0
        engine.dispose()
    assert caplog.records == []


@pytest.mark.postgres
def test_reading_survives_a_restart_of_the_server(postgres_database: str) -> None:
    with proxied(postgres_database) as (url, proxy), closing(SqlStore.connect(url, **LOG)) as store:
        store.load()
        store.commit([PutRound(a_round())], [])
        proxy.mode = Mode.CUT
        proxy.cut()
        with pytest.raises(StoreError):
            store.round(RoundId(1))
        proxy.mode = Mode.FORWARD
        assert store.round(RoundId(1)) == a_round()
        # Idle connections that died meanwhile are replaced unnoticed.
        proxy.cut()
        assert store.round(RoundId(1)) == a_round()
        store.commit([], some_entries("still the writer"))


def test_the_limits_leave_room_for_each_other() -> None:
    limits = DEFAULT_LIMITS
    assert limits.lock_seconds < limits.statement_seconds < limits.silence_seconds
