"""When a daemon may lead, and when it may no more, with a lock that a test holds."""

import asyncio
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from matl_common.durable import FolderInUseError
from matl_common.ids import digest_of
from matl_coordinator.config import Standby
from matl_coordinator.ports import LogHead, StaleReaderError, StoreError
from matl_coordinator.standby import Leadership, LeadershipLostError
from matl_coordinator.stopped import stopped
from matl_coordinator.store.anchor import log_anchor
from matl_coordinator.store.lock import LeaderLock
from tests.coordinator.harness import make_site
from tests.logs import a_note

POLL, LEASE = 0.01, 10.0


@dataclass
class SomeLock:
    """Held by nobody, by this daemon, or by another; or in a database that is away."""

    other: str = ""
    away: bool = False
    held: bool = False
    asked: int = 0

    def take(self) -> bool:
        self._ask()
        self.held = not self.other
        return self.held

    def confirm(self) -> None:
        self._ask()
        if not self.held:
            raise StoreError("the session has ended")

    def holder(self) -> str:
        self._ask()
        return self.other

    def close(self) -> None:
        self.held = False

    def _ask(self) -> None:
        self.asked += 1
        if self.away:
            self.held = False
            raise StoreError("the database is away")


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def leading(lock: SomeLock, clock: Clock) -> Leadership:
    return Leadership(lock, poll_seconds=POLL, lease_seconds=LEASE, clock=clock)


async def asked_more(lock: SomeLock, times: int = 3) -> None:
    before = lock.asked
    # Asked from another thread.
    while lock.asked < before + times:  # noqa: ASYNC110
        await asyncio.sleep(POLL)


async def test_it_leads_once_nobody_else_does() -> None:
    lock, clock = SomeLock(other="first"), Clock()
    leadership = leading(lock, clock)
    winning = asyncio.create_task(leadership.win())
    await asked_more(lock)
    assert not winning.done()
    assert not leadership.is_ours()
    lock.away = True
    await asked_more(lock)
    assert not winning.done()
    lock.away, lock.other = False, ""
    await winning
    assert leadership.is_ours()
    await leadership.close()
    assert not leadership.is_ours()
    assert not lock.held


async def test_it_leads_for_a_lease_beyond_the_last_confirmation() -> None:
    lock, clock = SomeLock(), Clock()
    leadership = leading(lock, clock)
    await leadership.win()
    clock.now += 0.9 * LEASE
    keeping = asyncio.create_task(leadership.keep())
    await asked_more(lock)
    clock.now += 0.9 * LEASE
    assert leadership.is_ours()
    lock.away = True
    await asked_more(lock)
    assert leadership.is_ours()
    clock.now += 0.2 * LEASE
    assert not leadership.is_ours()
    with pytest.raises(LeadershipLostError, match="the database is away"):
        await keeping
    await leadership.close()


async def test_a_daemon_that_was_stopped_for_longer_than_its_lease_leads_no_more() -> None:
    lock, clock = SomeLock(), Clock()
    leadership = leading(lock, clock)
    await leadership.win()
    # The session may have been another's in between, and be there again.
    clock.now += 1.1 * LEASE
    with pytest.raises(LeadershipLostError):
        await leadership.keep()
    await leadership.close()


async def test_a_lock_that_a_restart_of_the_database_took_is_taken_again_in_time() -> None:
    lock, clock = SomeLock(), Clock()
    leadership = leading(lock, clock)
    seen: list[bool] = []
    leadership.go_by(lambda: seen.append(lock.held))
    await leadership.win()
    keeping = asyncio.create_task(leadership.keep())
    lock.away = True
    await asked_more(lock)
    clock.now += 0.5 * LEASE
    lock.away = False
    await asked_more(lock, times=5)
    assert not keeping.done()
    assert seen == [True]
    clock.now += 0.9 * LEASE
    assert leadership.is_ours()
    keeping.cancel()
    await leadership.close()


async def test_a_lock_that_another_daemon_got_in_between_is_lost() -> None:
    lock, clock = SomeLock(), Clock()
    leadership = leading(lock, clock)

    def replaced() -> None:
        raise StaleReaderError("another coordinator took over")

    leadership.go_by(replaced)
    await leadership.win()
    lock.held = False
    with pytest.raises(LeadershipLostError, match="took over"):
        await leadership.keep()
    await leadership.close()


async def test_a_lock_that_another_daemon_has_is_lost_with_the_lease() -> None:
    lock, clock = SomeLock(), Clock()
    leadership = leading(lock, clock)
    await leadership.win()
    lock.other, lock.held = "second", False
    keeping = asyncio.create_task(leadership.keep())
    await asked_more(lock, times=4)
    clock.now += LEASE
    with pytest.raises(LeadershipLostError, match="second leads"):
        await keeping
    await leadership.close()


def test_of_two_daemons_the_larger_checkpoint_counts_however_late_the_other_writes(
    tmp_path: Path,
) -> None:
    first, second = log_anchor(tmp_path, daemon="first"), log_anchor(tmp_path, daemon="second")
    assert first.read() is None
    # From before there was a standby.
    log_anchor(tmp_path).write(a_note(head(1)))
    first.write(a_note(head(5)))
    second.write(a_note(head(9)))
    first.write(a_note(head(6)))
    for anchor in (first, second, log_anchor(tmp_path)):
        assert anchor.read() == a_note(head(9))


def head(size: int) -> LogHead:
    return LogHead(size, digest_of(b"%d" % size))


@pytest.mark.postgres
def test_what_takes_a_stopped_coordinator_is_refused_while_one_of_two_daemons_leads(
    tmp_path: Path, postgres_database: str
) -> None:
    config = make_site(tmp_path).config.model_copy(
        update={"database": postgres_database, "standby": Standby(name="first")}
    )
    with closing(LeaderLock(postgres_database, name="second", lease_seconds=60.0)) as lock:
        assert lock.take()
        with pytest.raises(FolderInUseError, match="second leads; stop both"), stopped(config):
            pass
    with stopped(config):
        again = LeaderLock(postgres_database, name="second", lease_seconds=60.0)
        with closing(again):
            assert not again.take()
            assert again.holder() == "upkeep"
