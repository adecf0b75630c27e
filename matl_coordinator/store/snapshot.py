"""A database as it stood at one moment, as one SQLite file; and such a file put into a database.

Reading takes no lock that a coordinator waits for, but one: on PostgreSQL the first entry of a
month waits until the copy is done. Only ``StoreError``, ``ConfigurationError`` and
``SnapshotError`` leave this module.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, func, insert, inspect, select, update

from matl_common.durable import PRIVATE_FILE_MODE
from matl_common.errors import ConfigurationError, MatlError
from matl_common.ids import Digest
from matl_coordinator.ports import LogHead, State, StoreError
from matl_coordinator.store import codec, log
from matl_coordinator.store.database import create_database_engine, reading, writing
from matl_coordinator.store.functions import POSTGRES
from matl_coordinator.store.migrate import head, schema_version, upgrade_to_head
from matl_coordinator.store.schema import (
    log_entries,
    log_nodes,
    log_turn,
    metadata,
    models,
    study,
    writer,
)
from matl_coordinator.store.sql import read_state

PAGE: Final = 2_000
"""Rows held in memory at once."""
_SQLITE_PAGES: Final = 256
# Of these one never has a row, and nobody but its owner may look; the other always has one.
_TABLES: Final = tuple(
    each for each in metadata.sorted_tables if each is not log_turn and each is not writer
)

Progress = Callable[[int, int], None]
"""Told of how much is done, of how much."""


class SnapshotError(MatlError):
    """The copy could not be made; what there is of it is no database."""


class Snapshot:
    """A database at one moment, whatever is committed meanwhile."""

    def __init__(self, connection: Connection, *, schema: str) -> None:
        self._connection = connection
        self.schema = schema

    def state(self) -> State:
        """The study."""
        epoch = self._connection.execute(select(writer.c.epoch)).scalar_one()
        return read_state(self._connection, epoch)

    def models(self) -> frozenset[Digest]:
        """Every model that a round has released, or goes on from."""
        found = self._connection.scalars(select(models.c.document)).all()
        records = [codec.MODEL.decode_one(document) for document in found]
        return frozenset(each for record in records for each in (record.digest, record.base))

    def log_head(self) -> LogHead:
        """Size and root of the log, from the hashes of its tree."""
        return log.read_head(self._connection)

    def log_node(self, level: int, index: int) -> bytes:
        """One hash of the log's tree.

        Raises:
            IntegrityError: there is none at this address.
        """
        return log.read_node(self._connection, level, index)

    def copy_to(self, target: Path, *, on_progress: Progress = lambda _, __: None) -> None:
        """Write it as a SQLite file, durably.

        Raises:
            SnapshotError: the disk has no room, or the file cannot be written.
        """
        try:
            if self._connection.dialect.name == POSTGRES:
                _copy_rows(self._connection, target, on_progress)
            else:
                _copy_pages(self._connection, target, on_progress)
            _settle(target)
        except (sqlite3.Error, OSError, ConfigurationError) as error:
            raise SnapshotError(f"cannot write {target}: {error}; see that there is room") from None


@contextmanager
def taken_snapshot(engine: Engine) -> Iterator[Snapshot]:
    """Hold a database still for reading.

    Raises:
        ConfigurationError: it has no tables of a coordinator, or those of another version.
        StoreError: it did not answer.
    """
    is_postgres = engine.dialect.name == POSTGRES
    still = engine.execution_options(isolation_level="REPEATABLE READ") if is_postgres else engine
    with reading(still) as connection:
        schema = schema_version(connection)
        if schema is None:
            raise ConfigurationError("the database has no coordinator's tables yet")
        if is_postgres and schema != head():
            raise ConfigurationError(
                f"the database's tables are of version {schema}, and this software's of {head()}; "
                "back it up with the version that wrote it"
            )
        # The moment is that of the first row read.
        connection.execute(select(writer.c.epoch)).all()
        yield Snapshot(connection, schema=schema)


def fill_database(target: Engine, source: Engine, *, on_progress: Progress) -> None:
    """Put a snapshot's rows into an empty database, all or none of them.

    Args:
        target: brought to this version's tables first, where it has none.
        source: a snapshot's file, of this version's tables.
        on_progress: told of rows.

    Raises:
        ConfigurationError: the database is not empty, or its user may not.
        StoreError: it did not confirm.
    """
    upgrade_to_head(target)
    with reading(source) as rows, writing(target) as connection:
        require_empty(connection)
        if connection.dialect.name == POSTGRES:
            _make_months(rows, connection)
        _copy_tables(rows, connection, on_progress)


def require_empty(connection: Connection) -> None:
    """See that nothing of a study, and no log, is in a database.

    Raises:
        ConfigurationError: something is.
    """
    there = inspect(connection).get_table_names()
    for table in (study, log_nodes):
        if table.name in there and connection.execute(select(table).limit(1)).first() is not None:
            raise ConfigurationError(
                "the database holds a study already; restore into an empty one: another database "
                "of the same PostgreSQL server, or another SQLite file"
            )


def _copy_pages(connection: Connection, target: Path, on_progress: Progress) -> None:
    source = connection.connection.driver_connection
    assert isinstance(source, sqlite3.Connection)

    def tell(_: int, left: int, total: int) -> None:
        on_progress(total - left, total)

    copy = sqlite3.connect(target)
    try:
        # On a connection that reads already, so that it is the moment that was taken.
        source.backup(copy, pages=_SQLITE_PAGES, progress=tell)
    finally:
        copy.close()


def _copy_rows(connection: Connection, target: Path, on_progress: Progress) -> None:
    engine = create_database_engine(f"sqlite:///{target}")
    try:
        upgrade_to_head(engine)
        with writing(engine) as copy:
            _copy_tables(connection, copy, on_progress)
    except StoreError as error:
        raise SnapshotError(f"cannot write {target}: {error}") from None
    finally:
        engine.dispose()


def _copy_tables(source: Connection, target: Connection, on_progress: Progress) -> None:
    count = select(func.count())
    total = sum(source.execute(count.select_from(each)).scalar_one() for each in _TABLES)
    done = 0
    for table in _TABLES:
        rows = source.execute(select(table), execution_options={"yield_per": PAGE})
        for page in rows.mappings().partitions():
            target.execute(insert(table), [dict(row) for row in page])
            done += len(page)
            on_progress(done, total)
    # Whoever wrote to the database that this was is not the writer of this one.
    epoch = source.execute(select(writer.c.epoch)).scalar_one()
    target.execute(update(writer).values(epoch=epoch))


def _make_months(source: Connection, target: Connection) -> None:
    for month in source.scalars(select(log_entries.c.month).distinct()).all():
        target.execute(select(func.log_make_partition(month)))


def _settle(path: Path) -> None:
    """One file that is whole and durable, without a journal beside it."""
    copy = sqlite3.connect(path)
    try:
        copy.execute("PRAGMA journal_mode=DELETE")
    finally:
        copy.close()
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, PRIVATE_FILE_MODE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
