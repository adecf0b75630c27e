"""Where an append's time goes: what one entry takes of both processes, beside a bare INSERT.

Processor time and bytes of write-ahead log, unlike entries a second, hardly depend on what else the
machine does. Runs a PostgreSQL server of its own, as ``benchmarks.log`` does.
"""

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from benchmarks.log import BATCHES, appender, bare_inserter, plain
from matl_coordinator.store.sql import SqlStore
from tests.logs import LOG
from tests.postgres import fresh_database, running_postgres
from tests.store.roles import WRITER, prepare, url_of

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one entry."""

    writer_us: float
    """Processor time of the process that appends."""
    server_us: float
    """Processor time of PostgreSQL's process for its connection."""
    wal_bytes: float


def measured(
    commit: Callable[[], None], admin: psycopg.Connection, *, pid: int, batch: int, seconds: float
) -> Cost:
    """Commit until the time is over."""
    commit()
    began, mine, theirs, wal = time.perf_counter(), time.process_time(), _used(pid), _wal(admin)
    entries = 0
    while time.perf_counter() - began < seconds:
        commit()
        entries += batch
    return Cost(
        1e6 * (time.process_time() - mine) / entries,
        1e6 * (_used(pid) - theirs) / entries,
        (_wal(admin) - wal) / entries,
    )


def _used(pid: int) -> float:
    """Seconds of processor time of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _wal(admin: psycopg.Connection) -> int:
    row = admin.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").fetchone()
    assert row is not None, "a SELECT of one value gives a row"
    return int(row[0])


def _appending_pid(admin: psycopg.Connection) -> int:
    row = admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE usename = %s AND datname = current_database()",
        (WRITER,),
    ).fetchone()
    assert row is not None, "the store keeps its connection"
    return int(row[0])


def command(
    *,
    batch: Annotated[int, typer.Option(min=1)] = BATCHES[-1],
    seconds: Annotated[float, typer.Option(min=0.2, help="Each arm.")] = 4.0,
) -> None:
    """Measure what one entry takes, appended to the log and inserted barely."""
    with running_postgres() as server, fresh_database(server) as url:
        prepare(url)
        with psycopg.connect(plain(url), autocommit=True) as admin:
            with closing(SqlStore.connect(url_of(url, WRITER), **LOG)) as store:
                store.load()
                append = appender(store, batch)
                append()
                pid = _appending_pid(admin)
                found = {"log": measured(append, admin, pid=pid, batch=batch, seconds=seconds)}
            with psycopg.connect(plain(url)) as connection:
                insert = bare_inserter(connection, batch, waits=False)
                pid = connection.info.backend_pid
                found["bare"] = measured(insert, admin, pid=pid, batch=batch, seconds=seconds)
    for name, cost in found.items():
        typer.echo(
            f"{name}: {cost.writer_us:.1f} us of the writer's processor, {cost.server_us:.1f} us "
            f"of PostgreSQL's, {cost.wal_bytes:,.0f} bytes of write-ahead log an entry"
        )


if __name__ == "__main__":
    typer.run(command)
