"""Bring a database to this version's tables, and compare the two.

There is one history, in ``migrations/versions``, for both engines. It runs inside
one transaction, so that a killed start leaves the tables as they were.
"""

import subprocess
import sys
from pathlib import Path

from sqlalchemy import Connection, Engine, String, column, func, inspect, select, table, text

from matl_common.errors import ConfigurationError, MatlError
from matl_coordinator.ports import StoreError
from matl_coordinator.store.database import create_database_engine, reading, writing
from matl_coordinator.store.guards import may_migrate
from matl_coordinator.store.schema import metadata

_HISTORY = Path(__file__).parent / "migrations"
# Any number that nobody else who uses the database locks.
_MIGRATION_LOCK = 0x6D61746C
_MIGRATION_SECONDS = 600
_REFUSED = 2
_VERSION_TABLE = "alembic_version"


def upgrade_to_head(engine: Engine) -> None:
    """Apply what is missing. Daemons that start together take turns.

    Raises:
        ConfigurationError: a newer version wrote this database, or its tables have to change and
            are another user's.
        StoreError: the database did not confirm.
    """
    if _is_at_head(engine):
        return
    with reading(engine) as connection:
        if not may_migrate(connection):
            raise ConfigurationError(
                "the database's tables are not this version's, and its user may not change them; "
                "run 'matl-coordinator migrate --database URL' as an administrator of the "
                "database, and then deploy/postgresql/roles.sql"
            )
    # Loaded only where there is something to do: it costs a daemon 11 MB.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    history = Config()
    # "%" begins an interpolation there.
    history.set_main_option("script_location", str(_HISTORY).replace("%", "%%"))
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            _take_turns(connection)
        history.attributes["connection"] = connection
        try:
            command.upgrade(history, "head")
        except CommandError:
            raise ConfigurationError(
                "this database was written by another version of the coordinator, newer or before "
                "the first release; start that version"
            ) from None


def upgrade_apart(url: str) -> None:
    """``upgrade_to_head`` in a process of its own, if there is anything to do.

    For a daemon that will run for months: what migrating loads would stay with it.

    Raises:
        ConfigurationError, StoreError: as ``upgrade_to_head``.
    """
    engine = create_database_engine(url)
    try:
        if _is_at_head(engine):
            return
    finally:
        engine.dispose()
    # The URL may hold a password, so it is no argument.
    ended = subprocess.run(
        [sys.executable, "-m", __name__],
        input=url,
        capture_output=True,
        text=True,
        check=False,
        timeout=_MIGRATION_SECONDS,
    )
    match ended.returncode:
        case 0:
            return
        case status if status == _REFUSED:
            raise ConfigurationError(ended.stderr.strip())
        case status:
            raise StoreError(ended.stderr.strip() or f"migrating ended with status {status}")


def schema_drift(engine: Engine) -> list[object]:
    """What separates the database from ``schema.metadata``; empty when nothing does."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))


def head() -> str:
    """The revision this version of the software works with: the newest file's number."""
    return max(revisions())


def revisions() -> frozenset[str]:
    """Every revision that this version of the software can bring to its head."""
    return frozenset(
        path.stem.split("_")[0] for path in (_HISTORY / "versions").glob("[0-9]*_*.py")
    )


def schema_version(connection: Connection) -> str | None:
    """The revision that a database's tables are of; ``None`` where it has none of ours."""
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    query = select(column("version_num", String)).select_from(table(_VERSION_TABLE))
    return connection.scalars(query).one_or_none()


def _is_at_head(engine: Engine) -> bool:
    with reading(engine) as connection:
        return schema_version(connection) == head()


def _take_turns(connection: Connection) -> None:
    limit = _MIGRATION_SECONDS * 1000
    for setting in ("lock_timeout", "statement_timeout"):
        connection.execute(text(f"SET LOCAL {setting} = {limit}"))
    # Released when the transaction ends.
    connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))


def _main() -> None:
    engine = create_database_engine(sys.stdin.read())
    try:
        upgrade_to_head(engine)
    except MatlError as error:
        print(error, file=sys.stderr)
        sys.exit(_REFUSED if isinstance(error, ConfigurationError) else 1)
    finally:
        engine.dispose()


if __name__ == "__main__":
    _main()
