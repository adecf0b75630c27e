"""Asks a coordinator for everything that a snapshot has, again and again.

One watcher serves every view: however many look, the coordinator is asked no more often.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime, timedelta

from matl.calls import OperationsError
from matl.dashboard.log_watching import LogWatcher
from matl.dashboard.snapshot import Snapshot
from matl.log.sources import CoordinatorSource
from matl.log.verification import Believed
from matl.operations import OperationsClient, Round
from matl_common.errors import ConfigurationError

_FINAL = frozenset({"released", "aborted"})


class Watcher:
    """Reads one coordinator, whichever of its daemons leads. Safe to share between threads."""

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[OperationsClient]],
        believed: Believed | None,
        *,
        clock: Callable[[], datetime],
        fresh_for: timedelta = timedelta(seconds=1),
    ) -> None:
        """Connect, and ask at most once in ``fresh_for``.

        Args:
            connect: opens a connection to whoever leads; used again when that one fails.
            believed: whose signatures count.
            clock: the time.
            fresh_for: how long an answer is good.

        Raises:
            ConfigurationError: a key or certificate file does not work.
        """
        self._connect = connect
        self._connection = ExitStack()
        self._client = self._connection.enter_context(connect())
        self._log = LogWatcher(CoordinatorSource(self._client.audit), believed)
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
                try:
                    last = self._ask(now)
                except OperationsError:
                    # A standby may lead by now.
                    self._connect_anew()
                    last = self._ask(now)
                self._last = last
            return last

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def _connect_anew(self) -> None:
        self._connection.close()
        try:
            self._client = self._connection.enter_context(self._connect())
        except ConfigurationError as error:
            raise OperationsError(str(error)) from error
        # What was seen of the log stays: another daemon has to go on with the same one.
        self._log.read_from(CoordinatorSource(self._client.audit))

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
