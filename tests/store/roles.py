"""A database as ``deploy/postgresql/roles.sql`` leaves it, and its four users."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, NullPool, create_engine, make_url, text

from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.migrate import upgrade_to_head
from tests.postgres import execute, run_script

ROLES = Path(__file__).parents[2] / "deploy" / "postgresql" / "roles.sql"
WRITER, READER, RETENTION = "matl_log_writer", "matl_log_reader", "matl_log_retention"
OWNER = "matl_log_owner"
_PASSWORD = "of-a-test"


def prepare(url: str, **variables: str) -> None:
    """Migrate as an administrator, hand over to the roles, and let them log in."""
    engine = create_database_engine(url)
    upgrade_to_head(engine)
    engine.dispose()
    run_script(url, ROLES, **variables)
    for role in (WRITER, READER, RETENTION):
        execute(url, f"ALTER ROLE {role} PASSWORD '{_PASSWORD}'")


def url_of(url: str, role: str) -> str:
    """The same database for one of the users that can log in."""
    named = make_url(url).set(username=role, password=_PASSWORD)
    return named.render_as_string(hide_password=False)


@contextmanager
def connected(url: str, role: str | None) -> Iterator[Connection]:
    """A transaction as a role, or as the administrator; it never lasts."""
    login = url if role in {None, OWNER} else url_of(url, role or "")
    engine = create_engine(login, poolclass=NullPool)
    with engine.connect() as connection:
        if role == OWNER:
            # It cannot log in; whoever may act as it does it this way.
            connection.execute(text(f"SET SESSION AUTHORIZATION {OWNER}"))
        yield connection
        connection.rollback()


def disarm(connection: Connection) -> None:
    """Do what a superuser can: switch off what keeps the log's rows from being changed."""
    if connection.dialect.name == "postgresql":
        for table in ("log_entries", "log_nodes", "log_keys"):
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
