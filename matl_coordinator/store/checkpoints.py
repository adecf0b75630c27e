"""Signed checkpoints and their cosignatures in tables. Rows are only ever inserted.

Nothing here begins or ends a transaction, or knows what a signature is worth.
"""

from sqlalchemy import Connection, insert, select

from matl_common.ids import NodeId
from matl_coordinator.ports import CheckpointRecord
from matl_coordinator.store.functions import POSTGRES, call_log_function
from matl_coordinator.store.schema import log_checkpoints, log_cosignatures, stored_bytes

PAGE = 20


def read_below(connection: Connection, size: int | None) -> list[CheckpointRecord]:
    """Some checkpoints below ``size``, or the largest, with their cosignatures, largest first.

    The largest comes alone: it is nearly always the one that is wanted, and each has a line of
    every witness.
    """
    stored, lines = log_checkpoints.c, log_cosignatures.c
    ordered = select(log_checkpoints).order_by(stored.size.desc())
    some = ordered.limit(1) if size is None else ordered.where(stored.size < size).limit(PAGE)
    found = connection.execute(some).all()
    if not found:
        return []
    within = lines.size.between(found[-1].size, found[0].size)
    of_size: dict[int, dict[NodeId, bytes]] = {}
    for row in connection.execute(select(log_cosignatures).where(within).order_by(lines.node_id)):
        of_size.setdefault(row.size, {})[NodeId(row.node_id)] = stored_bytes(row.line)
    return [
        CheckpointRecord(row.size, stored_bytes(row.note), of_size.get(row.size, {}))
        for row in found
    ]


def put_checkpoint(connection: Connection, size: int, note: bytes) -> bool:
    """Keep a checkpoint, unless there is one of its size; whether it is kept now."""
    if connection.dialect.name == POSTGRES:
        call_log_function(connection, "log_put_checkpoint", size, note)
    else:
        there = select(log_checkpoints.c.size).where(log_checkpoints.c.size == size)
        if connection.execute(there).one_or_none() is None:
            connection.execute(insert(log_checkpoints).values(size=size, note=note))
    kept = select(log_checkpoints.c.note).where(log_checkpoints.c.size == size)
    return bytes(connection.execute(kept).scalar_one()) == note


def put_cosignature(connection: Connection, size: int, node_id: NodeId, line: bytes) -> None:
    """Keep a witness's line, unless it has one on this checkpoint."""
    if connection.dialect.name == POSTGRES:
        call_log_function(connection, "log_put_cosignature", size, node_id, line)
        return
    key = (log_cosignatures.c.size == size) & (log_cosignatures.c.node_id == node_id)
    if connection.execute(select(log_cosignatures.c.size).where(key)).one_or_none() is None:
        connection.execute(insert(log_cosignatures).values(size=size, node_id=node_id, line=line))
