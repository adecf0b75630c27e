"""Who may lead: a lock in PostgreSQL that ends with whoever holds it.

A session-level advisory lock on a connection of its own. The server ends the session, and with it
the lock, when its connection closes, and when nothing has come over it for the lease's length,
whatever became of the process or its machine (``idle_session_timeout``, PostgreSQL 14 or newer).
Nothing here keeps anybody from writing: that is the epoch's part, in ``leadership``.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from matl_common.errors import ConfigurationError
from matl_coordinator.ports import StoreError
from matl_coordinator.store.database import create_database_engine, reading, translated
from matl_coordinator.store.limits import TimeLimits

# Any number that nobody else who uses the database locks.
_LEADER = 0x6C656164
_TAKE = text(f"SELECT pg_try_advisory_lock({_LEADER})")
_IS_HELD = text(f"""
    SELECT count(*) FROM pg_locks
     WHERE locktype = 'advisory' AND classid = 0 AND objid = {_LEADER} AND objsubid = 1
       AND granted AND pid = pg_backend_pid()
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
_HOLDER = text(f"""
    SELECT pid, usename AS user, application_name AS application
      FROM pg_locks JOIN pg_stat_activity USING (pid)
     WHERE locktype = 'advisory' AND classid = 0 AND objid = {_LEADER} AND objsubid = 1
       AND granted AND datname = current_database()
""")
_PREFIX = "matl-coordinator "
_OLDEST_VERSION = 140000


class LockLostError(StoreError):
    """The session that held the lock is no more."""


class LeaderLock:
    """One process's way to the lock. Blocking, and for one thread at a time."""

    def __init__(self, url: str, *, name: str, lease_seconds: float) -> None:
        """Connect to nothing yet.

        Args:
            url: of PostgreSQL; directly, for a pooler gives each transaction another session.
            name: of this daemon, for others to see in the database who leads.
            lease_seconds: after which a silent session ends.
        """
        answer_seconds = lease_seconds / 3.0
        self._engine = create_database_engine(
            url,
            limits=TimeLimits(
                connect_seconds=answer_seconds,
                lock_seconds=answer_seconds,
                statement_seconds=answer_seconds,
                silence_seconds=answer_seconds,
            ),
        )
        self._name = name
        self._lease_seconds = lease_seconds
        self._session: Connection | None = None

    def take(self) -> bool:
        """Whether this process has the lock now.

        Raises:
            ConfigurationError: the server is too old.
            StoreError: it did not answer.
        """
        with self._ending_on_failure():
            if self._session is None:
                self._session = self._open()
            return bool(self._session.execute(_TAKE).scalar_one())

    def confirm(self) -> None:
        """See that the lock is held still, and begin its lease anew.

        Raises:
            LockLostError: it is not.
            StoreError: the server did not answer.
        """
        with self._ending_on_failure():
            if self._session is None or not self._session.execute(_IS_HELD).scalar_one():
                raise LockLostError(
                    "the database session that held the lock is another one: connect to "
                    "PostgreSQL directly and not through a pooler of transactions"
                )

    def holder(self) -> str:
        """Who has the lock, for people to read; empty for nobody.

        Raises:
            StoreError: the server did not answer.
        """
        with reading(self._engine) as connection:
            row = connection.execute(_HOLDER).first()
        if row is None:
            return ""
        if (row.application or "").startswith(_PREFIX):
            return str(row.application.removeprefix(_PREFIX))
        return f"process {row.pid} of database user {row.user}"

    def release(self) -> None:
        """Let somebody else have it."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(SQLAlchemyError):
                # Closed for good, not put back into the pool: the lock is the session's.
                session.invalidate()
                session.close()

    def close(self) -> None:
        self.release()
        self._engine.dispose()

    def _open(self) -> Connection:
        session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            version = session.execute(text("SHOW server_version_num")).scalar_one()
            if int(version) < _OLDEST_VERSION:
                raise ConfigurationError(
                    "[standby] needs PostgreSQL 14 or newer, which ends a session that has "
                    "fallen silent"
                )
            for setting, value in (
                ("application_name", _PREFIX + self._name),
                ("idle_session_timeout", f"{int(self._lease_seconds * 1000)}ms"),
            ):
                session.execute(
                    text("SELECT set_config(:setting, :value, false)"),
                    {"setting": setting, "value": value},
                )
        except BaseException:
            session.invalidate()
            session.close()
            raise
        return session

    @contextmanager
    def _ending_on_failure(self) -> Iterator[None]:
        """Whatever went wrong, the session may be gone, and its lock with it."""
        try:
            with translated(self._engine):
                yield
        except BaseException:
            self.release()
            raise
