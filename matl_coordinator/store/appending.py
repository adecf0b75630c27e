"""One entry put into the log from beside its coordinator, which goes on as the only other writer.

Needs the right to append and nothing more. Takes turns in the database; nobody is taken over from.
"""

from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.tlog.entry import Entry
from matl_coordinator.ports import LoggedEntry
from matl_coordinator.store import log
from matl_coordinator.store.data_keys import DataKeys
from matl_coordinator.store.database import create_database_engine, reading, writing


def append_beside(
    url: str, entry: Entry, *, log_origin: str, log_key: KeyEncryptionKey
) -> LoggedEntry:
    """Append an entry to the log of a database whose tables are of this version.

    Raises:
        ConfigurationError: the log is under another key.
        StoreError: the database cannot be reached, may only be read, or did not confirm.
        IntegrityError: the log's tree is damaged.
    """
    engine = create_database_engine(url)
    try:
        keys = DataKeys(log_key)
        with reading(engine) as connection:
            keys.check(connection)
        with writing(engine) as connection:
            (logged,) = log.append_entries(connection, [entry], origin=log_origin, keys=keys)
        return logged
    finally:
        engine.dispose()
