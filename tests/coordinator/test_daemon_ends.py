"""How a coordinator without a standby ends, as whoever starts daemons again sees it."""

from contextlib import closing
from pathlib import Path

import pytest

from matl_coordinator.daemon import EXIT_FAILED, EXIT_REPLACED, end_of
from matl_coordinator.ports import StaleWriterError, StoreError
from tests.coordinator.harness import make_site
from tests.logs import some_entries


def test_of_two_coordinators_the_one_that_was_replaced_ends_with_a_status_of_its_own(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)
    with closing(site.connect_store()) as first, closing(site.connect_store()) as second:
        first.load()
        second.load()
        with pytest.raises(StaleWriterError) as replaced:
            first.commit([], some_entries("late"))
        second.commit([], some_entries("in time"))
    assert end_of(replaced.value) == ("another_coordinator_took_over", EXIT_REPLACED)


def test_a_database_that_fails_is_worth_another_start() -> None:
    assert end_of(StoreError("the database is away")) == ("coordinator_failed", EXIT_FAILED)
