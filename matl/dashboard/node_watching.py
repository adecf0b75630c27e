"""Reads a hospital's own state again and again, for however many look."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from matl.dashboard.node_snapshot import NodeSnapshot, read_node
from matl_participant.config import Config


class NodeWatcher:
    """Reads one hospital's files. Safe to share between threads."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], datetime],
        fresh_for: timedelta = timedelta(seconds=3),
    ) -> None:
        """Read at most once in ``fresh_for``: ledgers and proofs are verified each time."""
        self._config = config
        self._clock = clock
        self._fresh_for = fresh_for
        # Guards what follows.
        self._lock = threading.Lock()
        self._last: NodeSnapshot | None = None

    def look(self) -> NodeSnapshot:
        """What the hospital knows now.

        Raises:
            OSError: a file of its state cannot be read.
        """
        with self._lock:
            now, last = self._clock(), self._last
            if last is None or now - last.at >= self._fresh_for:
                last = read_node(self._config, now=now, previous=last)
                self._last = last
            return last
