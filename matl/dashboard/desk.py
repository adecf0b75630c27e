"""What the page's server holds for every session: who reads, and the door.

The page's script is run anew for every session and every click; what it shares is here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from matl.dashboard.gate import Verdict, gate_for, knock
from matl.dashboard.node_watching import NodeWatcher
from matl.dashboard.watching import Watcher


class Door:
    """Lets people in, one for each token. Safe to share between threads."""

    def __init__(
        self,
        *,
        draw_token: Callable[[], str],
        announce: Callable[[str], None],
        clock: Callable[[], datetime],
    ) -> None:
        """``announce`` tells the person at the terminal which token opens the door next."""
        self._draw_token = draw_token
        self._announce = announce
        self._clock = clock
        # Guards the gate.
        self._lock = threading.Lock()
        first = draw_token()
        self._gate = gate_for(first)
        announce(first)

    def knock(self, offered: str) -> Verdict:
        """Try a token; one that opens is worth nothing any more, and the next is announced."""
        with self._lock:
            fresh = self._draw_token()
            self._gate, verdict = knock(self._gate, offered, fresh=fresh, now=self._clock())
            if verdict is Verdict.OPENED:
                self._announce(fresh)
            return verdict


@dataclass(frozen=True, slots=True)
class Desk:
    """Everything that sessions share.

    Attributes:
        federation: reads the coordinator; ``None`` without an operator's certificate.
        node: reads this hospital's state; ``None`` where it is none.
        door: lets people in.
        idle_after: how long a session lasts without a click or a key.
        every: how often a page asks again.
        clock: the time.
    """

    federation: Watcher | None
    node: NodeWatcher | None
    door: Door
    idle_after: timedelta
    every: timedelta
    clock: Callable[[], datetime]


_shared: list[Desk] = []


def share(desk: Desk) -> None:
    """Make a desk that of every session of this process."""
    _shared[:] = [desk]


def shared_desk() -> Desk:
    """The desk of this process."""
    return _shared[0]
