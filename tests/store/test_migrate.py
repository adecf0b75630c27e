import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from matl_common.errors import ConfigurationError
from matl_coordinator.store import migrate
from matl_coordinator.store.database import create_database_engine, reading, writing
from matl_coordinator.store.migrate import schema_drift, upgrade_to_head
from matl_coordinator.store.schema import metadata
from matl_coordinator.store.sql import SqlStore
from tests.logs import LOG, some_entries

ROOT = Path(__file__).parents[2]


@contextmanager
def engine_of(url: str) -> Iterator[Engine]:
    engine = create_database_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def constraints(engine: Engine) -> dict[str, object]:
    """What the comparison of tables does not look at: keys, checks and references."""
    inspector = inspect(engine)
    found: dict[str, object] = {}
    for name in sorted(metadata.tables):
        checks = inspector.get_check_constraints(name)
        references = inspector.get_foreign_keys(name)
        found[name] = (
            inspector.get_pk_constraint(name),
            sorted((each["name"] or "", each["sqltext"]) for each in checks),
            references,
            [
                (each["name"], str(each["type"]), each["nullable"], each["default"])
                for each in inspector.get_columns(name)
            ],
        )
    return found


def test_the_history_leads_to_the_tables_of_the_schema(database_url: str) -> None:
    with engine_of(database_url) as engine:
        upgrade_to_head(engine)
        assert schema_drift(engine) == []
        migrated = constraints(engine)
        with writing(engine) as connection:
            connection.execute(text("DROP TABLE alembic_version"))
            metadata.drop_all(connection)
            metadata.create_all(connection)
        assert constraints(engine) == migrated


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE rounds ADD COLUMN extra TEXT",
        "ALTER TABLE rounds DROP COLUMN phase",
        "DROP TABLE trust",
        "DROP INDEX ix_models_digest",
    ],
)
def test_drift_is_noticed(database_url: str, change: str) -> None:
    with engine_of(database_url) as engine:
        upgrade_to_head(engine)
        with writing(engine) as connection:
            connection.execute(text(change))
        assert len(schema_drift(engine)) == 1


def test_upgrading_again_changes_nothing(database_url: str) -> None:
    store = SqlStore.connect(database_url, **LOG)
    store.load()
    store.commit([], some_entries("kept"))
    with engine_of(database_url) as engine:
        upgrade_to_head(engine)
    store.commit([], some_entries("still the writer"))
    assert store.log_head().size == 2
    store.close()


def test_daemons_that_start_together_take_turns(database_url: str) -> None:
    code = (
        "import sys; from matl_coordinator.store.sql import SqlStore; from tests.logs import LOG; "
        "SqlStore.connect(sys.argv[1], **LOG).load()"
    )
    command = [sys.executable, "-c", code, database_url]
    starting = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [each.wait() for each in starting] == [0] * 4
    with engine_of(database_url) as engine, reading(engine) as connection:
        rows = connection.execute(text("SELECT id, epoch FROM writer")).all()
    assert rows == [(1, 4)]


def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    with engine_of(database_url) as engine:
        upgrade_to_head(engine)
        with writing(engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(ConfigurationError, match="another version"):
            SqlStore.connect(database_url, **LOG)
        with reading(engine) as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version"))
            assert found.scalar_one() == "9999"


def test_a_start_that_fails_half_way_leaves_no_tables(database_url: str) -> None:
    with engine_of(database_url) as engine:
        with writing(engine) as connection:
            # In the way of a table that comes late in the history.
            connection.execute(text("CREATE TABLE log_entries (x INTEGER)"))
        with pytest.raises(Exception, match="did not confirm"):
            upgrade_to_head(engine)
        assert inspect(engine).get_table_names() == ["log_entries"]


def test_no_number_is_drawn_from_a_sequence(database_url: str) -> None:
    with engine_of(database_url) as engine:
        upgrade_to_head(engine)
        with reading(engine) as connection:
            if engine.dialect.name == "postgresql":
                found = connection.execute(text("SELECT sequencename FROM pg_sequences"))
            else:
                condition = "name = 'sqlite_sequence' OR sql LIKE '%AUTOINCREMENT%'"
                found = connection.execute(
                    text(f"SELECT name FROM sqlite_master WHERE {condition}")
                )
            assert found.all() == []


def test_the_newest_file_of_the_history_is_its_head() -> None:
    script = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    assert migrate.head() == script.get_current_head()


def test_a_process_of_its_own_migrates_as_well_and_keeps_quiet_about_the_url(
    database_url: str,
) -> None:
    migrate.upgrade_apart(database_url)
    with engine_of(database_url) as engine:
        assert schema_drift(engine) == []
        with writing(engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="another version") as caught:
        migrate.upgrade_apart(database_url)
    assert database_url not in str(caught.value)
