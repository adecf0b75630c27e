"""When something was last put on record, by what leaves say of themselves.

The database looks for the event's name in the leaf, so that nothing is read but the newest one.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, LargeBinary, func, literal, select

from matl_common.errors import InvalidInputError
from matl_common.tlog.leaf import parse_leaf
from matl_coordinator.store.functions import POSTGRES
from matl_coordinator.store.schema import log_entries, stored_bytes


def newest_of(connection: Connection, event: str, *, start: int) -> datetime | None:
    """When the newest entry of this kind from leaf ``start`` on was written.

    ``event`` is a name of ours, which JSON writes as it is.
    """
    stored = log_entries.c
    # A quotation mark inside a text has a backslash before it, so only the field itself matches.
    field = literal(f'"event":"{event}"'.encode(), LargeBinary())
    # In full, because the bare word is syntax of its own.
    is_postgres = connection.dialect.name == POSTGRES
    place = func.pg_catalog.position if is_postgres else func.instr
    leaf = connection.execute(
        select(stored.leaf)
        .where(stored.leaf_index >= start, place(stored.leaf, field) > 0)
        .order_by(stored.leaf_index.desc())
        .limit(1)
    ).scalar_one_or_none()
    try:
        return None if leaf is None else datetime.fromisoformat(parse_leaf(stored_bytes(leaf)).at)
    except InvalidInputError:
        # Somebody else's row; the log's verification names it.
        return None
