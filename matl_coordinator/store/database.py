"""Connections: how SQLite and PostgreSQL are opened, and how they fail.

Durability and time limits are settled here, once for each engine. Only
``StoreError`` and ``ConfigurationError`` leave this module, and neither quotes a
URL, a password or a statement's parameters. Nothing here knows a table.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Select, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from matl_common.durable import PRIVATE_FILE_MODE
from matl_common.errors import ConfigurationError
from matl_coordinator.ports import StoreError
from matl_coordinator.store.failures import word_for
from matl_coordinator.store.limits import BINARY, DEFAULT_LIMITS, TimeLimits, pool_options

_WRITES = "matl_writes"
_LOCK_CODES = {"55P03", "SQLITE_BUSY"}
"""How PostgreSQL (lock_not_available) and SQLite say that a lock was waited for in vain."""


class LockedError(StoreError):
    """Another transaction kept its lock for longer than this one waits; nothing was done."""


class UndecodableError(StoreError):
    """SQLite was made to hold a text that is not UTF-8."""


def create_database_engine(url: str, *, limits: TimeLimits = DEFAULT_LIMITS) -> Engine:
    """Make an engine; nothing is opened yet.

    Args:
        url: ``sqlite:////absolute/path`` or ``postgresql://user:password@host/database``.

    Raises:
        ConfigurationError: another kind of URL, or SQLite without a file in an
            existing folder.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    match parsed.drivername if parsed is not None else None:
        case "sqlite" | "sqlite+pysqlite":
            assert parsed is not None
            return _sqlite_engine(parsed, limits)
        case "postgresql" | "postgresql+psycopg":
            assert parsed is not None
            # Loaded only where it is used: the driver costs a daemon on SQLite 9 MB.
            from matl_coordinator.store.postgres import postgres_engine

            return postgres_engine(parsed, limits)
    raise ConfigurationError(
        "the database URL must begin with sqlite:/// or postgresql://; see --print-config"
    )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads.

    Raises:
        StoreError: the database did not answer.
    """
    with translated(engine), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is durable once the block is left without an error.

    Raises:
        StoreError: the database did not confirm; the transaction may or may not count.
    """
    with translated(engine), engine.execution_options(**{_WRITES: True}).begin() as connection:
        yield connection


def driver_rows(connection: Connection, query: Select[Any]) -> list[tuple[Any, ...]]:
    """A query's rows as the driver makes them, in a third of the time that ``Row`` takes.

    Bytes are ``bytes``. SQLite gives whatever somebody put into a column.
    """
    found = connection.execute(query, execution_options={BINARY: True})
    return [] if found.cursor is None else list(found.cursor.fetchall())


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Let nothing of the driver's out of the block.

    Raises:
        StoreError: the database did not confirm.
    """
    driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
    try:
        yield
    except (SQLAlchemyError, driver_error, OSError) as error:
        # Whatever broke may have broken every idle connection with it.
        engine.dispose()
        kind = LockedError if _code_of(error) in _LOCK_CODES else StoreError
        # The driver itself says so, without a code of SQLite's.
        if str(_cause_of(error)).startswith("Could not decode to UTF-8"):
            kind = UndecodableError
        # Without its cause: a driver's text may quote hosts, values and statements.
        raise kind(
            f"the {engine.dialect.name} database did not confirm ({_kind_of(error)}); "
            "see that it is reachable and has room"
        ) from None


def _kind_of(error: BaseException) -> str:
    cause = _cause_of(error)
    # SQLAlchemy's own texts quote statements.
    told = _code_of(error) or word_for("" if isinstance(cause, SQLAlchemyError) else str(cause))
    return ": ".join(filter(None, (type(cause).__name__, told)))


def _code_of(error: BaseException) -> str | None:
    cause = _cause_of(error)
    if isinstance(cause, OSError):
        return cause.strerror
    # The drivers' own names for a cause; neither quotes anything.
    code: str | None = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None)
    return code


def _cause_of(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig else error


def _sqlite_engine(url: URL, limits: TimeLimits) -> Engine:
    if not url.database or url.database == ":memory:" or url.query:
        raise ConfigurationError("SQLite needs the path of a file: sqlite:////absolute/path")
    path = Path(url.database)
    try:
        # SQLite gives its journal files the mode of the database.
        path.touch(mode=PRIVATE_FILE_MODE, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"cannot open the database file {path}: {error.strerror}; create its folder first"
        ) from error
    engine = create_engine(
        url,
        hide_parameters=True,
        connect_args={"timeout": limits.lock_seconds},
        **pool_options(),
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # The driver must not begin transactions by itself: see _begin_sqlite.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that will write takes the lock first: taking it later, after a
    # read, fails at once when another writer came between.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
