"""One writer at a time, by a fencing token.

Taking over raises the epoch in the database; a writer whose epoch is no longer the
stored one has been replaced and is refused inside its own transaction. Nothing here
decides who should lead.
"""

from sqlalchemy import Connection, func, select, update

from matl_common.errors import IntegrityError
from matl_coordinator.ports import StaleReaderError, StaleWriterError
from matl_coordinator.store.functions import POSTGRES
from matl_coordinator.store.schema import writer

# log_take_over's own limit: nobody gets there by counting.
_MAX_EPOCH = 2**53
# Above every epoch in the log, for each start has written an entry; matl audit verify would find
# two coordinators at once where the epochs in a log go back.
_COUNT_ANEW = "UPDATE writer SET epoch = (SELECT count(*) FROM log_nodes WHERE level = 0)"
# SQLite has no FOR UPDATE; its transaction began with the write lock.
_HELD_EPOCH = select(writer.c.epoch).with_for_update()


def take_over(connection: Connection) -> int:
    """Become the writer, once the transaction commits; returns the new epoch.

    Raises:
        IntegrityError: somebody else wrote, or deleted, the row that counts the writers.
    """
    current = _present(connection.execute(_HELD_EPOCH).scalar_one_or_none())
    if not 0 <= current < _MAX_EPOCH:
        raise IntegrityError(
            f"the database counts {current} starts of a coordinator, so somebody else wrote that; "
            "change the passwords that may, then, as the tables' owner or a superuser and while no "
            f"coordinator runs: {_COUNT_ANEW}"
        )
    if connection.dialect.name == POSTGRES:
        taken: int = connection.execute(select(func.log_take_over())).scalar_one()
        return taken
    connection.execute(update(writer).values(epoch=current + 1))
    return current + 1


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
