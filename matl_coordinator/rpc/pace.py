"""How fast the calls of one caller are taken up.

At once, until they come too fast for too long; then one after the other, as the generic cell
rate algorithm has it (ITU-T I.371). Nothing here reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

CALLS_PER_SECOND = 100.0
BURST_CALLS = 500
"""As many are taken up at once after a silence."""

_INTERVAL = 1.0 / CALLS_PER_SECOND


@dataclass(slots=True)
class Pace:
    """The calls of one caller so far. Time is in seconds, from any beginning."""

    # When the last call would have come, had all come at the rate.
    _due: float = float("-inf")

    def wait(self, *, now: float) -> float:
        """For how many seconds a call that comes ``now`` has to wait."""
        return max(0.0, self._due + _INTERVAL - now)

    def take(self, *, now: float) -> None:
        """Count a call that is taken up ``now``."""
        self._due = max(self._due, now - BURST_CALLS * _INTERVAL) + _INTERVAL
