"""Asks a coordinator for everything that a snapshot has, again and again.

One watcher serves every view: however many look, the coordinator is asked no more often.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from matl.dashboard.log_watching import LogWatcher
from matl.dashboard.snapshot import Snapshot
from matl.log.sources import CoordinatorSource
from matl.log.verification import Believed
from matl.operations import OperationsClient, Round

_FINAL = frozenset({"released", "aborted"})


class Watcher:
    """Reads one coordinator. Safe to share between threads."""

    def __init__(
        self,
        client: OperationsClient,
        believed: Believed | None,
        *,
        clock: Callable[[], datetime],
        fresh_for: timedelta = timedelta(seconds=1),
    ) -> None:
        """Ask at most once in ``fresh_for``; ``believed`` says whose signatures count."""
        self._client = client
        self._log = LogWatcher(CoordinatorSource(client.audit), believed)
        self._clock = clock
        self._fresh_for = fresh_for
        # Guards everything below, and the log watcher.
        self._lock = threading.Lock()
        self._over: tuple[Round, ...] = ()
        self._last: Snapshot | None = None

    @property
    def last(self) -> Snapshot | None:
        """The last snapshot that could be taken."""
        return self._last

    def look(self) -> Snapshot:
        """What the federation is doing now.

        Raises:
            OperationsError: the coordinator does not answer, or refuses.
        """
        # Held while it asks: others then take what comes of it rather than ask as well.
        with self._lock:
            now, last = self._clock(), self._last
            if last is None or now - last.at >= self._fresh_for:
                last = self._ask(now)
                self._last = last
            return last

    def _ask(self, now: datetime) -> Snapshot:
        status = self._client.status()
        participants = self._client.participants()
        # A round that is over does not change any more.
        after = self._over[-1].round_id if self._over else 0
        newer = self._client.rounds(after=after)
        over = [each for each in newer if each.phase in _FINAL]
        rounds = (*self._over, *newer)
        self._over = (*self._over, *over)
        log, entries, alarms = self._log.look()
        return Snapshot(
            at=now,
            status=status,
            rounds=rounds,
            participants=participants,
            entries=entries,
            log=log,
            alarms=alarms,
        )
