"""The log's tree and its entries in tables, appended inside a caller's transaction.

Leaves are numbered by counting, under a lock that is held until the transaction ends, so there
is never a gap. PostgreSQL appends by a function of its own, ``log_append``, which computes the
tree itself; the database's user may then have no other way to write. SQLite knows no functions
and no users, so the same rows are inserted from here. Every call reads O(log n) rows for a tree
of n leaves. Nothing here begins or ends a transaction, or changes or removes anything.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from sqlalchemy import Connection, func, insert, select

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.ids import Digest
from matl_common.tlog.entry import Entry
from matl_common.tlog.leaf import Leaf, parse_leaf
from matl_common.tlog.merkle import (
    NodeAddress,
    ReadNode,
    frontier_from,
    grow,
    leaf_hash,
    nodes_read,
    root_from,
)
from matl_common.tlog.sealing import RANDOM_BYTES, DataKey, check_payload, open_sealed, seal
from matl_coordinator.ports import EntryDamage, LoggedEntry, LogHead
from matl_coordinator.store.data_keys import DataKeys
from matl_coordinator.store.functions import POSTGRES
from matl_coordinator.store.schema import log_entries, log_nodes, stored_bytes

_MONTH_CHARACTERS = len("YYYY-MM")
_CHUNK = 256
_LOCK = select(func.log_lock())
_NODES_OF = (
    "SELECT level, node_index, hash FROM log_nodes "
    "JOIN unnest(%s::bigint[], %s::bigint[]) AS wanted (level, node_index) "
    "USING (level, node_index)"
)


def append_entries(
    connection: Connection, entries: Sequence[Entry], *, origin: str, keys: DataKeys
) -> tuple[LoggedEntry, ...]:
    """Append leaves, the entries encrypted, and the interior nodes they complete."""
    if not entries:
        return ()
    place = _take_place(connection, entries, origin=origin, keys=keys)
    if connection.dialect.name != POSTGRES:
        logged = _sealed(place, entries)
        insert_sealed(connection, entries, logged)
        return logged
    driver = connection.connection.driver_connection
    assert driver is not None
    appended: list[LoggedEntry] = []
    # While PostgreSQL appends a chunk, the next one is encrypted; a single one is simply sent.
    ahead = driver.pipeline() if len(entries) > _CHUNK else nullcontext()
    with ahead, driver.cursor() as cursor:
        for start in range(0, len(entries), _CHUNK):
            chunk = _sealed(place, entries[start : start + _CHUNK], start=start)
            leaves, payloads = [each.leaf for each in chunk], [each.payload for each in chunk]
            # %b sends bytes as they are and not as text.
            cursor.execute("SELECT log_append(%s, %b, %b)", (chunk[0].index, leaves, payloads))
            appended += chunk
    return tuple(appended)


def sealed_entries(
    connection: Connection, entries: Sequence[Entry], *, origin: str, keys: DataKeys
) -> tuple[LoggedEntry, ...]:
    """Encrypt entries for the end of the log, which stays the end until the transaction does."""
    return _sealed(_take_place(connection, entries, origin=origin, keys=keys), entries)


@dataclass(frozen=True, slots=True)
class _Place:
    """The end of a log, and the keys of the months that go there."""

    origin: str
    size: int
    key_of: Mapping[str, DataKey]


def _take_place(
    connection: Connection, entries: Sequence[Entry], *, origin: str, keys: DataKeys
) -> _Place:
    size = _lock(connection)
    months = dict.fromkeys(_month_of(entry) for entry in entries)
    return _Place(origin, size, {month: keys.current(connection, month) for month in months})


def _sealed(place: _Place, entries: Sequence[Entry], *, start: int = 0) -> tuple[LoggedEntry, ...]:
    """Encrypt entries, the first of them for ``start`` leaves beyond the end."""
    random = os.urandom(RANDOM_BYTES * len(entries))
    logged: list[LoggedEntry] = []
    for position, entry in enumerate(entries):
        sealed = seal(
            entry,
            origin=place.origin,
            index=place.size + start + position,
            key=place.key_of[_month_of(entry)],
            random=random[RANDOM_BYTES * position : RANDOM_BYTES * (position + 1)],
        )
        logged.append(
            LoggedEntry(
                index=place.size + start + position,
                leaf=sealed.leaf,
                payload=sealed.payload,
                data=entry.data,
                salt=sealed.salt,
                leaf_hash=Digest(leaf_hash(sealed.leaf).hex()),
            )
        )
    return tuple(logged)


def insert_sealed(
    connection: Connection, entries: Sequence[Entry], logged: Sequence[LoggedEntry]
) -> None:
    """Insert what ``sealed_entries`` returned, where the database has no function for it."""
    size = logged[0].index
    stored = stored_nodes(connection, lambda read: frontier_from(size, read))
    _, runs = grow(frontier_from(size, stored), (bytes.fromhex(each.leaf_hash) for each in logged))
    connection.execute(
        insert(log_nodes),
        [
            {"level": run.level, "node_index": run.first + position, "hash": value}
            for run in runs
            for position, value in enumerate(run.hashes)
        ],
    )
    connection.execute(
        insert(log_entries),
        [
            {
                "leaf_index": each.index,
                "month": _month_of(entry),
                "leaf": each.leaf,
                "payload": each.payload,
            }
            for entry, each in zip(entries, logged, strict=True)
        ],
    )


def _lock(connection: Connection) -> int:
    """Keep everybody else from appending until the transaction ends; returns the size."""
    if connection.dialect.name == POSTGRES:
        size: int = connection.execute(_LOCK).scalar_one()
        return size
    # SQLite's transaction began with the write lock.
    return read_size(connection)


def _month_of(entry: Entry) -> str:
    return entry.at[:_MONTH_CHARACTERS]


def read_size(connection: Connection) -> int:
    """Number of leaves."""
    newest = select(func.max(log_nodes.c.node_index)).where(log_nodes.c.level == 0)
    last: int | None = connection.execute(newest).scalar_one()
    return 0 if last is None else last + 1


def read_head(connection: Connection) -> LogHead:
    """Size and root. Nodes never change, so the two agree whatever is appended meanwhile."""
    size = read_size(connection)
    stored = stored_nodes(connection, lambda read: root_from(size, read))
    return LogHead(size, Digest(root_from(size, stored).hex()))


def read_node(connection: Connection, level: int, index: int) -> bytes:
    """One stored hash.

    Raises:
        IntegrityError: there is none at this address.
    """
    return read_nodes(connection, [(level, index)])[level, index]


def read_entries(
    connection: Connection, *, start: int, limit: int, keys: DataKeys
) -> tuple[LoggedEntry, ...]:
    """At most ``limit`` leaves from ``start`` on, opened where their key is still there.

    One that somebody changed comes as it is stored, and says what is wrong with it: whoever can
    write to the database must not keep others from reading the rest.
    """
    is_leaf = (log_nodes.c.level == 0) & (log_nodes.c.node_index == log_entries.c.leaf_index)
    stored = log_entries.c
    rows = connection.execute(
        select(stored.leaf_index, stored.leaf, stored.payload, log_nodes.c.hash)
        .join(log_nodes, is_leaf)
        .where(log_entries.c.leaf_index >= start)
        # By the other's index SQLite would sort all that follow.
        .order_by(log_nodes.c.node_index)
        .limit(limit)
    ).all()
    found = [
        LoggedEntry(
            index=row.leaf_index,
            leaf=stored_bytes(row.leaf),
            payload=stored_bytes(row.payload),
            data=None,
            salt=None,
            leaf_hash=Digest(stored_bytes(row.hash).hex()),
        )
        for row in rows
    ]
    leaves = [_sound_leaf(each) for each in found]
    names = {each.key for each in leaves if isinstance(each, Leaf)}
    held = keys.read(connection, names)
    return tuple(_opened(each, leaf, held) for each, leaf in zip(found, leaves, strict=True))


def _sound_leaf(found: LoggedEntry) -> Leaf | EntryDamage:
    if leaf_hash(found.leaf).hex() != found.leaf_hash:
        return EntryDamage.HASH
    try:
        leaf = parse_leaf(found.leaf)
        if leaf.index != found.index:
            return EntryDamage.MOVED
        check_payload(leaf, found.payload)
    except InvalidInputError:
        return EntryDamage.LEAF
    except IntegrityError:
        return EntryDamage.PAYLOAD
    return leaf


def _opened(
    found: LoggedEntry, leaf: Leaf | EntryDamage, held: Mapping[str, DataKey]
) -> LoggedEntry:
    if not isinstance(leaf, Leaf):
        return replace(found, damage=leaf)
    key = held.get(leaf.key)
    if key is None:
        return found
    try:
        opened = open_sealed(leaf, found.payload, key)
    except IntegrityError:
        return replace(found, damage=EntryDamage.CLOSED)
    return replace(found, data=opened.data, salt=opened.salt)


def stored_nodes(connection: Connection, compute: Callable[[ReadNode], object]) -> ReadNode:
    """What a computation over the tree will read, fetched in one query.

    Raises:
        IntegrityError: a node is missing.
    """
    nodes = read_nodes(connection, nodes_read(compute))
    return lambda level, index: nodes[level, index]


def _nodes_of(count: int) -> str:
    # Joined: for a list of pairs SQLite looks at every row there is. As text: to
    # compile it from expressions, each time anew, costs more than to run it.
    pairs = ", ".join(["(?, ?)"] * count)
    return (
        f"WITH wanted (level, node_index) AS (VALUES {pairs}) "
        "SELECT n.level, n.node_index, n.hash FROM wanted JOIN log_nodes AS n "
        "ON n.level = wanted.level AND n.node_index = wanted.node_index"
    )


def read_nodes(
    connection: Connection, addresses: Iterable[NodeAddress]
) -> dict[NodeAddress, bytes]:
    """Stored hashes, in one query.

    Raises:
        IntegrityError: there is none at one of the addresses.
    """
    wanted = list(addresses)
    if not wanted:
        return {}
    if connection.dialect.name == POSTGRES:
        # A list of pairs would be planned pair by pair, at five times the cost.
        rows = connection.exec_driver_sql(_NODES_OF, tuple(map(list, zip(*wanted, strict=True))))
    else:
        rows = connection.exec_driver_sql(
            _nodes_of(len(wanted)), tuple(number for address in wanted for number in address)
        )
    found = {(level, index): bytes(value) for level, index, value in rows}
    if missing := [address for address in wanted if address not in found]:
        raise IntegrityError(
            f"the log has no node {missing[0]}; if its size says it should, "
            "restore the database from a backup"
        )
    return found
