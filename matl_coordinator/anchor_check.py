"""Nothing is put into a log from beside its coordinator that the coordinator would not start with.

A database that was rolled back, or exchanged, is found out by the last checkpoint that the
coordinator signed and keeps in ``state_dir``. An entry more would grow over what is missing.
"""

from __future__ import annotations

from matl_common.tlog.checkpoint import parse_checkpoint
from matl_common.tlog.merkle import root_from
from matl_common.tlog.note import parse_note
from matl_coordinator.config import Config
from matl_coordinator.service.checkpoints import check_continues
from matl_coordinator.store.anchor import log_anchor
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader


def check_anchored(config: Config, *, database: str | None = None) -> None:
    """See that the log still begins with what its coordinator signed last.

    Args:
        config: of the coordinator.
        database: another user's URL of its database.

    Raises:
        LogRewrittenError: it does not.
        IntegrityError: a hash of the tree is missing.
        InvalidInputError: the file that keeps the checkpoint holds none.
        StoreError: the file or the database cannot be read.
    """
    note = log_anchor(config.state_dir).read()
    if note is None:
        return
    # Its signature is verified by who starts or verifies the log; breaking the glass takes no key
    # but that of the entries.
    last = parse_checkpoint(parse_note(note).text)
    engine = create_database_engine(database or config.database_url)
    try:
        reader = LogReader(engine)
        size = reader.size()
        root = root_from(last.size, reader.node) if size >= last.size else b""
    finally:
        engine.dispose()
    check_continues(last, size=size, root=root)
