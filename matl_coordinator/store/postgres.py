"""Connections to PostgreSQL: durable, with time limits that hold when the server hangs.

Imported only where a PostgreSQL URL is configured.
"""

from select import POLLIN, poll
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.waiting import Ready
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError

from matl_coordinator.store.limits import BINARY, DEFAULT_LIMITS, TimeLimits, pool_options

_Result = TypeVar("_Result")


def postgres_engine(url: URL, limits: TimeLimits) -> Engine:
    defaults = {
        # libpq counts whole seconds, and takes 1 for 2.
        "connect_timeout": max(2, round(limits.connect_seconds)),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(limits.silence_seconds * 1000),
    }
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        # What the URL says goes before, and several hosts in it are SQLAlchemy's to take apart.
        connect_args={name: each for name, each in defaults.items() if name not in url.query},
        **pool_options(),
    )

    def connect(_dialect: object, _entry: object, arguments: Any, options: Any) -> object:
        connection = _ImpatientConnection.connect(*arguments, **options)
        connection.silence_seconds = limits.silence_seconds
        return connection

    def prepare(connection: DBAPIConnection, _entry: object) -> None:
        _prepare_postgres(connection, limits)

    def choose_format(*arguments: Any) -> None:
        _connection, cursor, _statement, _parameters, context, _is_many = arguments
        if context.execution_options.get(BINARY):
            # Bytes in text are twice as long.
            cursor.format = psycopg.pq.Format.BINARY

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", prepare)
    event.listen(engine, "checkout", _refuse_closed)
    event.listen(engine, "before_cursor_execute", choose_format)
    return engine


def _refuse_closed(connection: Any, _entry: object, _proxy: object) -> None:
    """Let the pool open another connection where the server has closed this one.

    Asking the server would cost every transaction a round trip. A server sends nothing unasked
    but its farewell, and rarely a setting that its operator changed.
    """
    sent = poll()
    sent.register(connection.fileno(), POLLIN)
    if sent.poll(0):
        raise DisconnectionError


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
            raise _SilentServerError("timeout expired")


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
