"""One writer at a time, by a fencing token.

Taking over raises the epoch in the database; a writer whose epoch is no longer the
stored one has been replaced and is refused inside its own transaction. Nothing here
decides who should lead.
"""

from sqlalchemy import Connection, select, update

from matl_common.errors import IntegrityError
from matl_coordinator.ports import StaleReaderError, StaleWriterError
from matl_coordinator.store.schema import writer

# SQLite has no FOR UPDATE; its transaction began with the write lock.
_HELD_EPOCH = select(writer.c.epoch).with_for_update()


def take_over(connection: Connection) -> int:
    """Become the writer, once the transaction commits; returns the new epoch."""
    statement = update(writer).values(epoch=writer.c.epoch + 1).returning(writer.c.epoch)
    epoch: int | None = connection.execute(statement).scalar_one_or_none()
    return _present(epoch)


def require_epoch(connection: Connection, epoch: int) -> None:
    """Hold the write lock until the transaction ends, as the writer of ``epoch``.

    Raises:
        StaleWriterError: somebody took over.
    """
    current = _present(connection.execute(_HELD_EPOCH).scalar_one_or_none())
    if current != epoch:
        raise StaleWriterError(
            f"another coordinator took over this study (epoch {current}, this one has {epoch}); "
            "stop one of the two"
        )


def require_reign(connection: Connection, epoch: int) -> None:
    """See that whatever was read before this was read as the writer of ``epoch``.

    Raises:
        StaleReaderError: somebody took over.
    """
    current = _present(connection.execute(select(writer.c.epoch)).scalar_one_or_none())
    if current != epoch:
        raise StaleReaderError(
            f"another coordinator took over this study (epoch {current}, this one has {epoch}); "
            "ask that one"
        )


def _present(epoch: int | None) -> int:
    if epoch is None:
        raise IntegrityError(
            "the database has lost the row that names its writer; restore it from a backup"
        )
    return epoch
