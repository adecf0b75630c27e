"""Turns at having a chunk in memory, so that it does not matter how many hospitals send at once.

A stream that nobody reads holds some tens of kilobytes, one that is read a chunk and its copies.
Whoever is not done within a moment is slow, and gives its turn back as it is: slow hospitals
keep nobody waiting, and what they send comes in as slowly as they send it. Nothing here knows
what a chunk is.
"""

from __future__ import annotations

import asyncio
from typing import Final

TURNS: Final = 8
"""More than a machine's cores, and few enough chunks to forget about."""
TURN_SECONDS: Final = 0.1
"""Ten times what a chunk takes on a network of a gigabit a second."""


class Turn:
    """One of so many; given back once, or taken away."""

    def __init__(self, free: asyncio.Semaphore, *, seconds: float) -> None:
        """Begin a turn that ``free`` was asked for."""
        self._free: asyncio.Semaphore | None = free
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end)

    def end(self) -> None:
        """Give it back, if that was not done."""
        self._timer.cancel()
        free, self._free = self._free, None
        if free is not None:
            free.release()


class Turns:
    """Hands out turns in the order in which they are asked for. Runs on one event loop."""

    def __init__(self, *, most: int = TURNS, seconds: float = TURN_SECONDS) -> None:
        """Let so many be out at once, each so long."""
        self._free = asyncio.Semaphore(most)
        self._seconds = seconds

    async def one(self) -> Turn:
        """Wait for a turn, which its holder ends."""
        await self._free.acquire()
        return Turn(self._free, seconds=self._seconds)
