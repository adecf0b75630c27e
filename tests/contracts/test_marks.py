"""When something was last put on record, read from leaves alone."""

from contextlib import closing

from matl_coordinator.store.sql import SqlStore
from tests.logs import LOG, some_entries


def test_the_newest_entry_of_a_kind_is_found_and_only_from_where_it_is_looked_for(
    database_url: str,
) -> None:
    with closing(SqlStore.connect(database_url, **LOG)) as store:
        store.load()
        _check_marks(store)


def _check_marks(store: SqlStore) -> None:
    store.commit([], some_entries("backup_begun", "one", "backup_begun", "two"))
    last = store.newest_entry("backup_begun", start=0)
    assert last is not None
    assert store.newest_entry("backup_begun", start=2) == last
    assert store.newest_entry("backup_begun", start=3) is None
    assert store.newest_entry("log_verified", start=0) is None
