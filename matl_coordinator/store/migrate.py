"""Bring a database to this version's tables, and compare the two.

There is one history, in ``migrations/versions``, for both engines. It runs inside
one transaction, so that a killed start leaves the tables as they were.
"""

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, func, select, text

from matl_common.errors import ConfigurationError
from matl_coordinator.store.database import reading, writing
from matl_coordinator.store.schema import metadata

_HISTORY = Path(__file__).parent / "migrations"
# Any number that nobody else who uses the database locks.
_MIGRATION_LOCK = 0x6D61746C
_MIGRATION_SECONDS = 600


def upgrade_to_head(engine: Engine) -> None:
    """Apply what is missing. Daemons that start together take turns.

    Raises:
        ConfigurationError: a newer version wrote this database.
        StoreError: the database did not confirm.
    """
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
                "this database was written by a newer version of the coordinator; "
                "start that version"
            ) from None


def schema_drift(engine: Engine) -> list[object]:
    """What separates the database from ``schema.metadata``; empty when nothing does."""
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))


def _take_turns(connection: Connection) -> None:
    limit = _MIGRATION_SECONDS * 1000
    for setting in ("lock_timeout", "statement_timeout"):
        connection.execute(text(f"SET LOCAL {setting} = {limit}"))
    # Released when the transaction ends.
    connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
