"""Connections: how SQLite and PostgreSQL are opened, and how they fail.

Durability and time limits are settled here, once for each engine. Only
``StoreError`` and ``ConfigurationError`` leave this module, and neither quotes a
URL, a password or a statement's parameters. Nothing here knows a table.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.waiting import Ready
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from matl_common.durable import PRIVATE_FILE_MODE
from matl_common.errors import ConfigurationError
from matl_coordinator.ports import StoreError

POOL_CONNECTIONS = 8
POOL_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long a database is waited for before a call fails."""

    connect_seconds: float = 5.0
    lock_seconds: float = 10.0
    """For another transaction's lock."""
    statement_seconds: float = 30.0
    silence_seconds: float = 45.0
    """For a server that hangs, so that its own limits do not help."""


DEFAULT_LIMITS = TimeLimits()

_WRITES = "matl_writes"
_Result = TypeVar("_Result")


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
            return _postgres_engine(parsed, limits)
    raise ConfigurationError(
        "the database URL must begin with sqlite:/// or postgresql://; see --print-config"
    )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads.

    Raises:
        StoreError: the database did not answer.
    """
    with _translated(engine), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is durable once the block is left without an error.

    Raises:
        StoreError: the database did not confirm; the transaction may or may not count.
    """
    with _translated(engine), engine.execution_options(**{_WRITES: True}).begin() as connection:
        yield connection


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, psycopg.Error, OSError) as error:
        # Whatever broke may have broken every idle connection with it.
        engine.dispose()
        # Without its cause: a driver's text may quote hosts, values and statements.
        raise StoreError(
            f"the {engine.dialect.name} database did not confirm ({_kind_of(error)}); "
            "see that it is reachable and has room"
        ) from None


def _kind_of(error: BaseException) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    match cause:
        case sqlite3.Error():
            code = getattr(cause, "sqlite_errorname", None)
        case psycopg.Error():
            code = cause.sqlstate
        case OSError():
            code = cause.strerror
        case _:
            code = None
    name = type(cause).__name__
    return f"{name}: {code}" if code else name


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
        **_pool_options(),
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


def _postgres_engine(url: URL, limits: TimeLimits) -> Engine:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args={
            # libpq counts whole seconds, and takes 1 for 2.
            "connect_timeout": max(2, round(limits.connect_seconds)),
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": int(limits.silence_seconds * 1000),
            **url.query,
        },
        **_pool_options(),
    )

    def connect(_dialect: object, _entry: object, arguments: Any, options: Any) -> object:
        connection = _ImpatientConnection.connect(*arguments, **options)
        connection.silence_seconds = limits.silence_seconds
        return connection

    def prepare(connection: DBAPIConnection, _entry: object) -> None:
        _prepare_postgres(connection, limits)

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", prepare)
    return engine


class _SilentServerError(psycopg.OperationalError):
    """The server neither answers nor closes the connection."""


class _ImpatientConnection(psycopg.Connection[Any]):
    """A connection that gives up on a silent server.

    The server's own time limits cannot help when the server hangs, nor TCP's when
    its machine still acknowledges.
    """

    silence_seconds = DEFAULT_LIMITS.silence_seconds

    def wait(self, gen: PQGen[_Result], *args: Any, **kwargs: Any) -> _Result:
        try:
            return super().wait(_until(gen, monotonic() + self.silence_seconds), *args, **kwargs)
        except _SilentServerError:
            # Or the rollback that follows would fail on the unfinished statement, and be logged.
            self.close()
            raise


def _until(steps: PQGen[_Result], deadline: float) -> PQGen[_Result]:
    ready: Ready | int | None = None
    while True:
        try:
            request = next(steps) if ready is None else steps.send(ready)
        except StopIteration as finished:
            result: _Result = finished.value
            return result
        # Comes back at least every tenth of a second, ready or not.
        ready = yield request
        if monotonic() > deadline:
            raise _SilentServerError


def _prepare_postgres(connection: DBAPIConnection, limits: TimeLimits) -> None:
    settings = {
        "statement_timeout": limits.statement_seconds,
        "lock_timeout": limits.lock_seconds,
        "idle_in_transaction_session_timeout": limits.statement_seconds,
    }
    cursor = connection.cursor()
    for name, seconds in settings.items():
        cursor.execute(f"SET {name} = {int(seconds * 1000)}")
    # "off" would confirm what a power cut still takes back; the rest is the operator's.
    cursor.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
    cursor.close()
    # Or the settings would end with this connection's first rollback.
    connection.commit()


def _pool_options() -> dict[str, Any]:
    return {
        "pool_size": POOL_CONNECTIONS,
        "max_overflow": 0,
        "pool_timeout": POOL_WAIT_SECONDS,
    }
