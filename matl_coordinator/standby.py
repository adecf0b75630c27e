"""One daemon leads and another waits: when this one may lead, and when it may no more.

Whoever has the database's lock leads. It is confirmed all the time; once the last confirmation is
older than the lease, this daemon stops leading by itself, for by then the server may have given the
lock to the other. Even where it notices too late, nothing can be written twice: taking over raises
the epoch, without which the database refuses (``store.leadership``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Protocol, TypeVar

import structlog

from matl_coordinator.ports import StaleReaderError, StoreError

log = structlog.get_logger(__name__)

_Value = TypeVar("_Value")


class LeadershipLostError(StoreError):
    """Another daemon may lead by now."""


class Lock(Protocol):
    """What only one process holds at a time. Blocking, and for one thread."""

    def take(self) -> bool:
        """Whether it is held now. Raises StoreError."""
        ...

    def confirm(self) -> None:
        """See that it is held still. Raises StoreError."""
        ...

    def holder(self) -> str:
        """Who holds it; empty for nobody. Raises StoreError."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class Leadership:
    """Waits for the lock, and watches over it. Runs on one event loop."""

    def __init__(
        self,
        lock: Lock,
        *,
        poll_seconds: float,
        lease_seconds: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Ask nothing yet.

        Args:
            lock: to be held.
            poll_seconds: how often it is asked for, or confirmed.
            lease_seconds: how old a confirmation may be; the lock's own lease is as long and
                begins later.
            clock: seconds that never go back.
        """
        self._lock = lock
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._clock = clock
        # Until when this daemon leads. Read from other threads.
        self._until = clock()
        self._see_reign: Callable[[], object] = lambda: None
        # A thread of its own: a confirmation must not wait behind others' work.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="leadership")

    def is_ours(self) -> bool:
        """Whether nobody else can have the lock."""
        return self._clock() < self._until

    def go_by(self, see_reign: Callable[[], object]) -> None:
        """Have this asked whenever the lock was lost and taken again.

        It blocks, and raises ``StaleReaderError`` where another daemon led in between.
        """
        self._see_reign = see_reign

    async def win(self) -> None:
        """Return once this daemon may lead, however long that takes."""
        told = ""
        while True:
            try:
                if await self._taken():
                    return
                why = f"{await self._call(self._lock.holder) or 'another daemon'} leads"
            except StoreError as error:
                why = str(error)
            if why != told:
                log.info("coordinator_standing_by", reason=why, asks_every=self._poll_seconds)
                told = why
            await asyncio.sleep(self._poll_seconds)

    async def keep(self) -> None:
        """Confirm the lock, or take it once more where it got lost, until the lease is over.

        Raises:
            LeadershipLostError: it is over.
        """
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self._confirmed()
            except StoreError as error:
                await self._take_again(error)

    async def _take_again(self, lost: StoreError) -> None:
        """A database that restarts takes every lock with it; often it is still to be had."""
        log.warning("leadership_in_doubt", reason=str(lost), seconds_left=self._seconds_left())
        reason: object = lost
        while self.is_ours():
            try:
                if await self._taken():
                    # Only now: from here on nobody can take over.
                    await self._call(self._see_reign)
                    log.info("leadership_confirmed")
                    return
                reason = f"{await self._call(self._lock.holder) or 'another daemon'} leads"
            except StaleReaderError as error:
                raise LeadershipLostError(str(error)) from error
            except StoreError as error:
                reason = error
            await asyncio.sleep(min(self._poll_seconds, max(0.0, self._seconds_left())))
        raise LeadershipLostError(
            f"the lock could not be confirmed for {self._lease_seconds:g} s: {reason}"
        )

    async def close(self) -> None:
        """Give the lock back."""
        self._until = self._clock()
        await self._call(self._lock.close)
        self._thread.shutdown(wait=False)

    async def _taken(self) -> bool:
        asked_at = self._clock()
        taken = await self._call(self._lock.take)
        if taken:
            self._until = asked_at + self._lease_seconds
        return taken

    async def _confirmed(self) -> None:
        asked_at = self._clock()
        await self._call(self._lock.confirm)
        if not self.is_ours():
            # The process was stopped: the server may have given the lock away and got it back.
            raise LeadershipLostError(
                f"the lock was last confirmed more than {self._lease_seconds:g} s ago"
            )
        self._until = asked_at + self._lease_seconds

    async def _call(self, function: Callable[[], _Value]) -> _Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _seconds_left(self) -> float:
        return self._until - self._clock()
