"""Putting parts of the log away: a month's entries, a month's keys, a key-encryption key.

PostgreSQL has a function for each, which its retention role may call and the coordinator's may
not; they check what SQL can. SQLite has no roles, so the same is done from here. Either way it is
one transaction with the entry that tells of it, and takes turns with a coordinator that runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Self

from sqlalchemy import Connection, Engine, delete, func, select, update
from sqlalchemy.exc import DBAPIError

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.ids import NodeId
from matl_common.tlog.entry import Entry, parse_entry
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.orders import Order, parse_order
from matl_common.tlog.sealing import open_sealed
from matl_coordinator.core.retention import RetentionError
from matl_coordinator.ports import CheckpointRecord, LoggedEntry
from matl_coordinator.service.retention import LogMonth
from matl_coordinator.store import log
from matl_coordinator.store.data_keys import DataKeys
from matl_coordinator.store.database import create_database_engine, reading
from matl_coordinator.store.functions import POSTGRES, call_log_function
from matl_coordinator.store.reader import LogReader
from matl_coordinator.store.schema import (
    log_checkpoints,
    log_cosignatures,
    log_entries,
    log_keys,
)
from matl_coordinator.store.turns import taking_turns

_NEWEST = 100
"""Cosigned checkpoints that are looked at."""
_REFUSALS = {"42501", "P0002"}
"""SQLSTATE of the functions' own refusals, and of a user who may not call them."""


class SqlRetention:
    """A ``RetentionStore`` on a database whose tables are of this version."""

    def __init__(self, engine: Engine, *, log_origin: str, log_key: KeyEncryptionKey) -> None:
        self._engine = engine
        self._origin = log_origin
        self._keys = DataKeys(log_key)

    @classmethod
    def connect(cls, url: str, *, log_origin: str, log_key: KeyEncryptionKey) -> Self:
        """Open a database.

        Raises:
            ConfigurationError: a URL of another kind, or the log is under another key.
            StoreError: the database cannot be reached, or has no log.
        """
        retention = cls(create_database_engine(url), log_origin=log_origin, log_key=log_key)
        try:
            with reading(retention._engine) as connection:
                retention._keys.check(connection)
        except BaseException:
            retention.close()
            raise
        return retention

    def months(self) -> tuple[LogMonth, ...]:
        stored = log_entries.c
        held = select(stored.month, func.count(), func.max(stored.leaf_index))
        readable = select(log_keys.c.month).where(log_keys.c.wrapped.is_not(None))
        with reading(self._engine) as connection:
            rows = connection.execute(held.group_by(stored.month).order_by(stored.month)).all()
            with_key = set(connection.scalars(readable))
        return tuple(LogMonth(month, count, last, month in with_key) for month, count, last in rows)

    def runs(self, month: str) -> list[range]:
        index = log_entries.c.leaf_index
        # Within a run, a place less its rank stays the same.
        rank = func.row_number().over(order_by=index)
        ranked = select(index, (index - rank).label("run")).where(log_entries.c.month == month)
        of = ranked.subquery().c
        ends = select(func.min(of.leaf_index), func.max(of.leaf_index)).group_by(of.run)
        with reading(self._engine) as connection:
            rows = connection.execute(ends).all()
        return sorted((range(first, last + 1) for first, last in rows), key=lambda run: run.start)

    def orders(self) -> list[Order]:
        found: list[Order | None] = []
        for page in LogReader(self._engine).pages():
            for stored in page:
                # Cheaper than taking every leaf apart.
                if stored.leaf is None or b'"event":"month_' not in stored.leaf:
                    continue
                leaf = parse_leaf(stored.leaf)
                with reading(self._engine) as connection:
                    key = self._keys.read(connection, [leaf.key]).get(leaf.key)
                if key is None:
                    continue
                # Whoever may append can add what does not open, and stops nothing with it.
                with suppress(IntegrityError, InvalidInputError):
                    sealed = open_sealed(leaf, stored.payload or b"", key)
                    found.append(parse_order(leaf.index, parse_entry(sealed.data)))
        return [each for each in found if each is not None]

    def cosigned_checkpoints(self, *, above: int) -> Iterator[CheckpointRecord]:
        lines = log_cosignatures.c
        newest = select(lines.size).where(lines.size > above).distinct()
        sizes = newest.order_by(lines.size.desc()).limit(_NEWEST).subquery()
        found = (
            select(lines.size, log_checkpoints.c.note, lines.node_id, lines.line)
            .join(log_checkpoints, log_checkpoints.c.size == lines.size)
            .where(lines.size.in_(select(sizes.c.size)))
            .order_by(lines.size.desc(), lines.node_id)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(found).all()
        for size, group in groupby(rows, key=lambda row: int(row.size)):
            of_size = list(group)
            yield CheckpointRecord(
                size=size,
                note=bytes(of_size[0].note),
                cosignatures={NodeId(row.node_id): bytes(row.line) for row in of_size},
            )

    def log_node(self, level: int, index: int) -> bytes:
        with reading(self._engine) as connection:
            return log.read_node(connection, level, index)

    def drop_month(self, month: str, *, years: int, cosignatures: int, entry: Entry) -> LoggedEntry:
        with taking_turns(self._engine) as connection:
            logged = self._sealed(connection, entry)
            if connection.dialect.name == POSTGRES:
                _call(connection, "log_drop_month", logged, month, years, cosignatures)
            else:
                log.insert_sealed(connection, [entry], [logged])
                connection.execute(delete(log_entries).where(log_entries.c.month == month))
                _erase(connection, month)
        return logged

    def erase_key(self, month: str, *, years: int, entry: Entry) -> LoggedEntry:
        with taking_turns(self._engine) as connection:
            logged = self._sealed(connection, entry)
            if connection.dialect.name == POSTGRES:
                _call(connection, "log_erase_key", logged, month, years)
            else:
                log.insert_sealed(connection, [entry], [logged])
                if not _erase(connection, month):
                    raise RetentionError(f"there is no data key of {month}")
        return logged

    def rewrap_keys(self, key: KeyEncryptionKey, *, entry: Entry) -> LoggedEntry:
        with taking_turns(self._engine) as connection:
            # First, since it may make this month's data key.
            logged = self._sealed(connection, entry)
            rewrapped = self._keys.rewrapped(connection, key)
            if connection.dialect.name == POSTGRES:
                names, wrapped = list(rewrapped), list(rewrapped.values())
                _call(connection, "log_rewrap_keys", logged, names, wrapped, key.name)
            else:
                log.insert_sealed(connection, [entry], [logged])
                for name, wrapped_key in rewrapped.items():
                    of_name = update(log_keys).where(log_keys.c.name == name)
                    connection.execute(of_name.values(wrapped=wrapped_key, wrapped_by=key.name))
        return logged

    def close(self) -> None:
        self._engine.dispose()

    def _sealed(self, connection: Connection, entry: Entry) -> LoggedEntry:
        (logged,) = log.sealed_entries(connection, [entry], origin=self._origin, keys=self._keys)
        return logged


def _call(connection: Connection, name: str, logged: LoggedEntry, *arguments: object) -> None:
    with _refusals():
        call_log_function(connection, name, *arguments, logged.index, logged.leaf, logged.payload)


def _erase(connection: Connection, month: str) -> int:
    held = update(log_keys).where((log_keys.c.month == month) & log_keys.c.wrapped.is_not(None))
    return connection.execute(held.values(wrapped=None)).rowcount


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _REFUSALS:
            raise RetentionError(
                "the database refuses: it keeps months longer or wants more cosignatures than "
                "this configuration (see log_floor), has nothing to remove, or its user is not "
                "matl_log_retention"
            ) from None
        raise
