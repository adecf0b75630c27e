"""The log's tree and its entries in tables, appended inside a caller's transaction.

Leaves are numbered by counting, under the caller's write lock, so there is never a
gap. Every call reads O(log n) rows for a tree of n leaves. Nothing here begins or
ends a transaction, and nothing is ever changed or removed.
"""

import os
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, func, insert, select, tuple_

from matl_common.errors import IntegrityError
from matl_common.ids import Digest
from matl_common.tlog.entry import Entry
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.merkle import NodeAddress, appended_nodes, leaf_hash, root_from
from matl_common.tlog.sealing import RANDOM_BYTES, open_sealed, seal
from matl_coordinator.ports import LoggedEntry, LogHead
from matl_coordinator.store.data_keys import DataKeys
from matl_coordinator.store.schema import log_entries, log_nodes

_MONTH_CHARACTERS = len("YYYY-MM")


def append_entries(
    connection: Connection, entries: Sequence[Entry], *, origin: str, keys: DataKeys
) -> tuple[LoggedEntry, ...]:
    """Append leaves, the entries encrypted, and the interior nodes they complete.

    Assumes that no other transaction appends meanwhile.
    """
    if not entries:
        return ()
    months = [entry.at[:_MONTH_CHARACTERS] for entry in entries]
    key_of = {month: keys.current(connection, month) for month in dict.fromkeys(months)}
    first = read_size(connection)
    # Whatever an append reads is either a peak of the tree before it, or new.
    nodes = _read_nodes(connection, _peaks(first))
    added: dict[NodeAddress, bytes] = {}
    logged: list[LoggedEntry] = []
    for index, (entry, month) in enumerate(zip(entries, months, strict=True), start=first):
        sealed = seal(
            entry,
            origin=origin,
            index=index,
            key=key_of[month],
            random=os.urandom(RANDOM_BYTES),
        )
        hashed = leaf_hash(sealed.leaf)
        completed = appended_nodes(index, hashed, lambda level, i: nodes[level, i])
        nodes.update(completed)
        added.update(completed)
        logged.append(
            LoggedEntry(
                index=index,
                leaf=sealed.leaf,
                payload=sealed.payload,
                data=entry.data,
                salt=sealed.salt,
                leaf_hash=Digest(hashed.hex()),
            )
        )
    connection.execute(
        insert(log_nodes),
        [{"level": level, "node_index": i, "hash": value} for (level, i), value in added.items()],
    )
    connection.execute(
        insert(log_entries),
        [
            {"leaf_index": each.index, "month": month, "leaf": each.leaf, "payload": each.payload}
            for each, month in zip(logged, months, strict=True)
        ],
    )
    return tuple(logged)


def read_size(connection: Connection) -> int:
    """Number of leaves."""
    newest = select(func.max(log_nodes.c.node_index)).where(log_nodes.c.level == 0)
    last: int | None = connection.execute(newest).scalar_one()
    return 0 if last is None else last + 1


def read_head(connection: Connection) -> LogHead:
    """Size and root. Nodes never change, so the two agree whatever is appended meanwhile."""
    size = read_size(connection)
    nodes = _read_nodes(connection, _peaks(size))
    return LogHead(size, Digest(root_from(size, lambda level, index: nodes[level, index]).hex()))


def read_node(connection: Connection, level: int, index: int) -> bytes:
    """One stored hash.

    Raises:
        IntegrityError: there is none at this address.
    """
    return _read_nodes(connection, [(level, index)])[level, index]


def read_entries(
    connection: Connection, *, start: int, limit: int, keys: DataKeys
) -> tuple[LoggedEntry, ...]:
    """At most ``limit`` leaves from ``start`` on, opened where their key is still there.

    Raises:
        IntegrityError: an entry is not what its leaf commits to.
    """
    is_leaf = (log_nodes.c.level == 0) & (log_nodes.c.node_index == log_entries.c.leaf_index)
    stored = log_entries.c
    rows = connection.execute(
        select(stored.leaf_index, stored.leaf, stored.payload, log_nodes.c.hash)
        .join(log_nodes, is_leaf)
        .where(log_entries.c.leaf_index >= start)
        .order_by(log_entries.c.leaf_index)
        .limit(limit)
    ).all()
    leaves = [parse_leaf(bytes(row.leaf)) for row in rows]
    held = keys.read(connection, {each.key for each in leaves})
    read: list[LoggedEntry] = []
    for row, leaf in zip(rows, leaves, strict=True):
        payload, key = bytes(row.payload), held.get(leaf.key)
        opened = None if key is None else open_sealed(leaf, payload, key)
        read.append(
            LoggedEntry(
                index=row.leaf_index,
                leaf=bytes(row.leaf),
                payload=payload,
                data=None if opened is None else opened.data,
                salt=None if opened is None else opened.salt,
                leaf_hash=Digest(row.hash.hex()),
            )
        )
    return tuple(read)


def _peaks(size: int) -> list[NodeAddress]:
    """Roots of the complete subtrees that make up a tree: one for each set bit of its size."""
    levels = (level for level in range(size.bit_length()) if size >> level & 1)
    return [(level, (size >> level) - 1) for level in levels]


def _read_nodes(
    connection: Connection, addresses: Iterable[NodeAddress]
) -> dict[NodeAddress, bytes]:
    wanted = list(addresses)
    if not wanted:
        return {}
    rows = connection.execute(
        select(log_nodes.c.level, log_nodes.c.node_index, log_nodes.c.hash).where(
            tuple_(log_nodes.c.level, log_nodes.c.node_index).in_(wanted)
        )
    )
    found = {(level, index): bytes(value) for level, index, value in rows}
    if missing := [address for address in wanted if address not in found]:
        raise IntegrityError(
            f"the log has no node {missing[0]}; if its size says it should, "
            "restore the database from a backup"
        )
    return found
