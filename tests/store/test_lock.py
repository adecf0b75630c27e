"""The lock that decides who leads, on a real PostgreSQL."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from sqlalchemy import make_url

from matl_coordinator.ports import StoreError
from matl_coordinator.store.lock import LeaderLock, LockLostError
from tests.postgres import execute
from tests.store.proxy import Mode, proxied

pytestmark = pytest.mark.postgres
LEASE_SECONDS = 1.0

OpenLock = Callable[..., LeaderLock]


@pytest.fixture
def open_lock(postgres_database: str) -> Iterator[OpenLock]:
    """Makes locks of daemons on one database."""
    with ExitStack() as opened:

        def make(
            name: str, *, url: str = postgres_database, lease_seconds: float = 60.0
        ) -> LeaderLock:
            lock = LeaderLock(url, name=name, lease_seconds=lease_seconds)
            return opened.enter_context(closing(lock))

        yield make


def taken_in_time(lock: LeaderLock) -> bool:
    deadline = time.monotonic() + 60.0
    while not lock.take():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_one_daemon_has_the_lock_and_the_other_sees_which(open_lock: OpenLock) -> None:
    first, second = open_lock("first"), open_lock("second")
    assert second.holder() == ""
    assert first.take()
    assert not second.take()
    assert second.holder() == "first"
    first.confirm()
    first.release()
    assert taken_in_time(second)
    assert first.holder() == "second"


def test_a_lock_that_is_asked_for_twice_is_still_given_back_at_once(open_lock: OpenLock) -> None:
    first, second = open_lock("first"), open_lock("second")
    assert first.take()
    assert first.take()
    first.release()
    assert taken_in_time(second)


def test_the_lock_of_a_holder_that_falls_silent_ends_with_its_lease(open_lock: OpenLock) -> None:
    silent = open_lock("silent", lease_seconds=LEASE_SECONDS)
    waiting = open_lock("waiting")
    assert silent.take()
    assert taken_in_time(waiting)
    with pytest.raises(StoreError):
        silent.confirm()
    # What was lost is asked for anew, on another session.
    assert not silent.take()


def test_a_holder_that_confirms_keeps_it_beyond_its_lease(open_lock: OpenLock) -> None:
    first, second = open_lock("first", lease_seconds=LEASE_SECONDS), open_lock("second")
    assert first.take()
    until = time.monotonic() + 3.0 * LEASE_SECONDS
    while time.monotonic() < until:
        first.confirm()
        assert not second.take()
        time.sleep(LEASE_SECONDS / 20.0)


def test_a_session_that_was_ended_is_told_of(open_lock: OpenLock, postgres_database: str) -> None:
    lock = open_lock("first")
    assert lock.take()
    execute(
        postgres_database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE application_name = 'matl-coordinator first' AND datname = "
        f"'{make_url(postgres_database).database}'",
    )
    with pytest.raises(StoreError):
        lock.confirm()
    assert taken_in_time(lock)


def test_another_session_than_the_locks_confirms_nothing(open_lock: OpenLock) -> None:
    lock = open_lock("first")
    with pytest.raises(LockLostError, match="pooler"):
        lock.confirm()


@pytest.mark.parametrize("mode", [Mode.CUT, Mode.SILENT])
def test_a_database_that_is_away_confirms_nothing_and_is_taken_again_when_it_is_back(
    open_lock: OpenLock, postgres_database: str, mode: Mode
) -> None:
    with proxied(postgres_database) as (url, proxy):
        lock = open_lock("first", url=url, lease_seconds=2.0)
        assert lock.take()
        proxy.mode = mode
        proxy.cut()
        with pytest.raises(StoreError):
            lock.confirm()
        with pytest.raises(StoreError):
            lock.take()
        proxy.mode = Mode.FORWARD
        assert taken_in_time(lock)
        lock.confirm()
