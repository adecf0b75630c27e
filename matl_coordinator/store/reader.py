"""The whole log as the database holds it, for who goes over it: nothing is opened or believed.

Pages of rows, never the whole table; a reader needs no more than the right to SELECT. Only
``StoreError``, and ``IntegrityError`` for a table that holds what it cannot, leave this module.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap
from types import NoneType
from typing import Any, Final

from sqlalchemy import Column, Connection, Engine, func, or_, select

from matl_common.errors import IntegrityError
from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.ids import NodeId
from matl_common.tlog.merkle import NodeRun
from matl_common.tlog.sealing import DataKey
from matl_common.tlog.verification import LogDamagedError, StoredLeaf
from matl_coordinator.ports import CheckpointRecord
from matl_coordinator.store import log
from matl_coordinator.store.data_keys import DataKeys
from matl_coordinator.store.database import UndecodableError, driver_rows, reading
from matl_coordinator.store.schema import (
    log_checkpoints,
    log_cosignatures,
    log_entries,
    log_keys,
    log_nodes,
)

PAGE = 5_000
"""Leaves read at once: about 5 MB."""
_BYTES: Final[frozenset[type]] = frozenset({bytes})
_BYTES_OR_NULL: Final[frozenset[type]] = frozenset({bytes, NoneType})


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    try:
        with reading(engine) as connection:
            yield connection
    except UndecodableError:
        raise IntegrityError(
            "one of the log's tables holds text that is not UTF-8: somebody changed it"
        ) from None


def _check_kinds(values: Iterable[Any], *kinds: type, column: Column[Any]) -> None:
    """See that SQLite holds in a column what belongs there, and not whatever was put into it."""
    if set(map(type, values)) - set(kinds):
        raise IntegrityError(
            f"column {column.name} of {column.table.name} holds what does not belong there: "
            "somebody changed it"
        )


def _blob(value: object) -> bytes:
    # SQLite holds whatever was put into a column, of whatever kind.
    if not isinstance(value, bytes | memoryview):
        raise IntegrityError("one of the log's tables holds text where bytes belong")
    return bytes(value)


def _first_misfit(page: Sequence[StoredLeaf]) -> int:
    """How many leaves of a page come before the first with something else where bytes belong."""
    columns = (
        ((each.hash for each in page), _BYTES),
        ((each.leaf for each in page), _BYTES_OR_NULL),
        ((each.payload for each in page), _BYTES_OR_NULL),
    )
    # By kind, and not one by one, where nothing is wrong.
    if all(known >= set(map(type, values)) for values, known in columns):
        return len(page)
    return next(
        at
        for at, each in enumerate(page)
        if not {type(each.hash)} <= _BYTES
        or not {type(each.leaf), type(each.payload)} <= _BYTES_OR_NULL
    )


def _misfit(where: str, *, first: int, last: int) -> LogDamagedError:
    return LogDamagedError(
        f"{where} was changed: a table holds text where bytes belong", first=first, last=last
    )


def _check_key_rows(connection: Connection) -> None:
    columns = log_keys.c
    query = select(columns.name, columns.month, columns.wrapped_by, columns.wrapped)
    rows = driver_rows(connection, query)
    for at, column in enumerate((columns.name, columns.month, columns.wrapped_by)):
        _check_kinds((row[at] for row in rows), str, column=column)
    _check_kinds((row[3] for row in rows), bytes, NoneType, column=columns.wrapped)


class LogReader:
    """Reads a log's tables on an engine of ``create_database_engine``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def size(self) -> int:
        """Leaves in the tree."""
        with _reading(self._engine) as connection:
            newest = select(func.max(log_nodes.c.node_index)).where(log_nodes.c.level == 0)
            last = connection.execute(newest).scalar_one()
        # What is no number is larger than every number to SQLite.
        _check_kinds([last], int, NoneType, column=log_nodes.c.node_index)
        return 0 if last is None else last + 1

    def node(self, level: int, index: int) -> bytes:
        """One stored hash.

        Raises:
            IntegrityError: there is none at this address.
        """
        with _reading(self._engine) as connection:
            return log.read_node(connection, level, index)

    def pages(self, *, start: int = 0, end: int | None = None) -> Iterator[list[StoredLeaf]]:
        """Leaves ``start`` to ``end - 1`` as they are stored, a page at a time, in order.

        Raises:
            LogDamagedError: SQLite holds other than bytes of one, after those before it were given.
        """
        at = start
        while page := self._page(at, PAGE if end is None else min(PAGE, end - at)):
            sound = _first_misfit(page)
            if sound < len(page):
                if sound > 0:
                    yield page[:sound]
                index = page[sound].index
                raise _misfit(f"entry {index}", first=index, last=index)
            yield page
            at = page[-1].index + 1

    def _page(self, start: int, limit: int) -> list[StoredLeaf]:
        if limit <= 0:
            return []
        leaves, entries = log_nodes.c, log_entries.c
        query = (
            select(leaves.node_index, leaves.hash, entries.leaf, entries.payload, entries.month)
            .join(log_entries, entries.leaf_index == leaves.node_index, isouter=True)
            .where((leaves.level == 0) & (leaves.node_index >= start))
            .order_by(leaves.node_index)
            .limit(limit)
        )
        with _reading(self._engine) as connection:
            page = list(starmap(StoredLeaf, driver_rows(connection, query)))
        _check_kinds((each.index for each in page), int, column=leaves.node_index)
        return page

    def stray_entries(self) -> int:
        """Entries that no leaf of the tree belongs to: nobody but an intruder writes them."""
        is_leaf = (log_nodes.c.level == 0) & (log_nodes.c.node_index == log_entries.c.leaf_index)
        query = (
            select(func.count())
            .select_from(log_entries)
            .join(log_nodes, is_leaf, isouter=True)
            .where(log_nodes.c.node_index.is_(None))
        )
        with _reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def nodes(self, wanted: Sequence[NodeRun]) -> list[NodeRun]:
        """What is stored where these runs lie."""
        if not wanted:
            return []
        nodes = log_nodes.c
        lies = or_(
            *(
                (nodes.level == run.level)
                & nodes.node_index.between(run.first, run.first + len(run.hashes) - 1)
                for run in wanted
            )
        )
        with _reading(self._engine) as connection:
            query = select(nodes.level, nodes.node_index, nodes.hash).where(lies)
            rows = driver_rows(connection, query)
        for level, index, value in rows:
            if not isinstance(value, bytes):
                first, last = index << level, ((index + 1) << level) - 1
                raise _misfit(
                    f"a hash of the tree over entries {first} to {last}", first=first, last=last
                )
        held = {(level, index): value for level, index, value in rows}
        return [
            NodeRun(
                run.level,
                run.first,
                tuple(
                    held.get((run.level, index), b"")
                    for index in range(run.first, run.first + len(run.hashes))
                ),
            )
            for run in wanted
        ]

    def checkpoints(self) -> list[CheckpointRecord]:
        """Every signed checkpoint with its cosignatures, the smallest first."""
        with _reading(self._engine) as connection:
            lines: dict[int, dict[NodeId, bytes]] = {}
            # Read to the end: SQLite keeps a connection open under a query that was left.
            for row in connection.execute(
                select(log_cosignatures).order_by(
                    log_cosignatures.c.size, log_cosignatures.c.node_id
                )
            ).all():
                _check_kinds([row.node_id], str, column=log_cosignatures.c.node_id)
                lines.setdefault(row.size, {})[NodeId(row.node_id)] = _blob(row.line)
            newest_last = select(log_checkpoints).order_by(log_checkpoints.c.size)
            rows = connection.execute(newest_last).all()
            return [
                CheckpointRecord(row.size, _blob(row.note), lines.get(row.size, {})) for row in rows
            ]

    def checkpoint_sizes(self) -> list[int]:
        """The sizes that checkpoints are filed under, the smallest first."""
        with _reading(self._engine) as connection:
            sizes = select(log_checkpoints.c.size).order_by(log_checkpoints.c.size)
            return list(connection.scalars(sizes))

    def damage(self) -> str | None:
        """What is in the tables that belongs to nothing else there; nobody is told of it else."""
        lines = select(log_cosignatures.c.size, log_cosignatures.c.node_id).where(
            log_cosignatures.c.size.not_in(select(log_checkpoints.c.size))
        )
        lines = lines.order_by(log_cosignatures.c.size, log_cosignatures.c.node_id).limit(1)
        ends = select(log_nodes.c.level, func.max(log_nodes.c.node_index).label("last"))
        with _reading(self._engine) as connection:
            # One statement, so that nothing is appended in between.
            last = {row.level: row.last for row in connection.execute(ends.group_by("level"))}
            stray = connection.execute(lines).one_or_none()
        _check_kinds(last, int, column=log_nodes.c.level)
        _check_kinds(last.values(), int, column=log_nodes.c.node_index)
        size = last.get(0, -1) + 1
        for level, index in sorted(last.items()):
            if index >= size >> level:
                return (
                    f"the tree holds node {index} of level {level}, over entries that are not there"
                )
        if stray is not None:
            return f"a cosignature of {stray.node_id} is filed under {stray.size}, of no checkpoint"
        return None

    def data_key_names(self) -> set[str]:
        """Names of the data keys that were not erased."""
        with _reading(self._engine) as connection:
            held = select(log_keys.c.name).where(log_keys.c.wrapped.is_not(None))
            names = list(connection.scalars(held))
        _check_kinds(names, str, column=log_keys.c.name)
        return set(names)

    def data_keys(self, key: KeyEncryptionKey) -> dict[str, DataKey]:
        """Every data key that was not erased and unwraps.

        Raises:
            ConfigurationError: another key-encryption key has wrapped all.
        """
        keys = DataKeys(key)
        with _reading(self._engine) as connection:
            _check_key_rows(connection)
            keys.check(connection)
            names = connection.execute(select(log_keys.c.name)).scalars().all()
            return keys.read(connection, names)

    def data_key_damage(self, key: KeyEncryptionKey) -> str | None:
        """What is wrong with the first row of data keys that is not as it was written."""
        with _reading(self._engine) as connection:
            _check_key_rows(connection)
            return DataKeys(key).damage(connection)
