"""The log's tree in two tables, appended inside a caller's transaction.

Leaves are numbered by counting, under the caller's write lock, so there is never a
gap. Every call reads O(log n) rows for a tree of n leaves. Nothing here begins or
ends a transaction, and nothing is ever changed or removed.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, func, insert, select, tuple_

from matl_common.errors import IntegrityError
from matl_common.ids import Digest
from matl_common.tlog.merkle import NodeAddress, appended_nodes, leaf_hash, root_from
from matl_coordinator.ports import LoggedEntry, LogHead
from matl_coordinator.store.schema import log_entries, log_nodes


def append_entries(connection: Connection, entries: Sequence[bytes]) -> tuple[LoggedEntry, ...]:
    """Append leaves and the interior nodes they complete.

    Assumes that no other transaction appends meanwhile.
    """
    if not entries:
        return ()
    first = read_size(connection)
    # Whatever an append reads is either a peak of the tree before it, or new.
    nodes = _read_nodes(connection, _peaks(first))
    added: dict[NodeAddress, bytes] = {}
    logged: list[LoggedEntry] = []
    for index, data in enumerate(entries, start=first):
        leaf = leaf_hash(data)
        completed = appended_nodes(index, leaf, lambda level, i: nodes[level, i])
        nodes.update(completed)
        added.update(completed)
        logged.append(LoggedEntry(index, data, Digest(leaf.hex())))
    connection.execute(
        insert(log_nodes),
        [{"level": level, "node_index": i, "hash": value} for (level, i), value in added.items()],
    )
    connection.execute(
        insert(log_entries), [{"leaf_index": each.index, "data": each.data} for each in logged]
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


def read_entries(connection: Connection, *, start: int, limit: int) -> tuple[LoggedEntry, ...]:
    """At most ``limit`` leaves from ``start`` on."""
    leaf = (log_nodes.c.level == 0) & (log_nodes.c.node_index == log_entries.c.leaf_index)
    rows = connection.execute(
        select(log_entries.c.leaf_index, log_entries.c.data, log_nodes.c.hash)
        .join(log_nodes, leaf)
        .where(log_entries.c.leaf_index >= start)
        .order_by(log_entries.c.leaf_index)
        .limit(limit)
    )
    return tuple(LoggedEntry(index, data, Digest(value.hex())) for index, data, value in rows)


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
