"""An update that a front end receives: what the leader knows of it meanwhile."""

from __future__ import annotations

import asyncio

from matl_coordinator.core.admission import chunk_count
from matl_coordinator.ports import UpdateRecord


class Loan:
    """One update, lent out. It ends when a newer stream takes over. Runs on one event loop."""

    def __init__(self, record: UpdateRecord) -> None:
        self.record = record
        self.token = ""
        """Of the file that it is lent as, into which nobody else writes."""
        self.received_chunks = 0
        """As the front end says."""
        self._ended = asyncio.Event()

    @property
    def fraction(self) -> float:
        """How much of it is there."""
        return min(1.0, self.received_chunks / chunk_count(self.record.byte_count))

    async def end(self) -> None:
        """Have the front end's call end, which need not be waited for: its file is its own."""
        self._ended.set()

    async def ended(self) -> None:
        """Wait until a newer stream takes over."""
        await self._ended.wait()
