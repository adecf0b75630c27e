"""Transactions that take turns: who keeps everybody else waiting is named.

PostgreSQL's locks that writers wait for are on two tables, of which no reader may lock either.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, Engine, text

from matl_coordinator.ports import StoreError
from matl_coordinator.store.database import LockedError, reading, writing
from matl_coordinator.store.functions import POSTGRES

_HOLDERS = text("""
    SELECT DISTINCT pid, usename AS user
      FROM pg_locks JOIN pg_stat_activity USING (pid)
     WHERE relation IN (to_regclass('log_turn'), to_regclass('writer'))
       AND granted AND mode <> 'AccessShareLock'
     ORDER BY pid
""")


@contextmanager
def taking_turns(engine: Engine) -> Iterator[Connection]:
    """``writing``, for a transaction that waits for others to append or take over.

    Raises:
        LockedError: somebody else did not end in time; the message says who.
        StoreError: the database did not confirm; the transaction may or may not count.
    """
    try:
        with writing(engine) as connection:
            yield connection
    except LockedError as error:
        held = _holders(engine)
        if not held:
            raise
        raise LockedError(
            f"the log is kept locked by {held}; if that is none of yours, change the password it "
            "connects with, then end it with pg_terminate_backend()"
        ) from error


def _holders(engine: Engine) -> str:
    if engine.dialect.name != POSTGRES:
        return ""
    with suppress(StoreError), reading(engine) as connection:
        rows = connection.execute(_HOLDERS).all()
        return ", ".join(f"process {row.pid} of database user {row.user}" for row in rows)
    return ""
