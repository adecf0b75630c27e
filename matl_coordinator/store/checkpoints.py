"""Signed checkpoints and their cosignatures in tables. Rows are only ever inserted.

Nothing here begins or ends a transaction, or knows what a signature is worth.
"""

from sqlalchemy import Connection, insert, select

from matl_common.ids import NodeId
from matl_coordinator.ports import CheckpointRecord
from matl_coordinator.store.schema import log_checkpoints, log_cosignatures


def read_latest(connection: Connection) -> CheckpointRecord | None:
    """The largest checkpoint, with its cosignatures."""
    newest = select(log_checkpoints).order_by(log_checkpoints.c.size.desc()).limit(1)
    found = connection.execute(newest).one_or_none()
    if found is None:
        return None
    lines = select(log_cosignatures).where(log_cosignatures.c.size == found.size)
    rows = connection.execute(lines.order_by(log_cosignatures.c.node_id))
    return CheckpointRecord(
        size=found.size,
        note=bytes(found.note),
        cosignatures={NodeId(row.node_id): bytes(row.line) for row in rows},
    )


def put_checkpoint(connection: Connection, size: int, note: bytes) -> None:
    """Insert a checkpoint, unless there is one of its size."""
    there = select(log_checkpoints.c.size).where(log_checkpoints.c.size == size)
    if connection.execute(there).one_or_none() is None:
        connection.execute(insert(log_checkpoints).values(size=size, note=note))


def put_cosignature(connection: Connection, size: int, node_id: NodeId, line: bytes) -> None:
    """Insert a witness's line, unless it has one on this checkpoint."""
    key = (log_cosignatures.c.size == size) & (log_cosignatures.c.node_id == node_id)
    if connection.execute(select(log_cosignatures.c.size).where(key)).one_or_none() is None:
        connection.execute(insert(log_cosignatures).values(size=size, node_id=node_id, line=line))
