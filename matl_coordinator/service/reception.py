"""One update's chunks coming in, from any number of connections one after another.

Chunks are checked against the hashes the hospital declared before they are written.
Nothing here judges an update or writes a log entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from matl_common.errors import MatlError
from matl_coordinator.core.admission import chunk_count
from matl_coordinator.ports import Spool, SpoolError, UpdateRecord, UpdateSink, UpdateStatus

T = TypeVar("T")


class SupersededError(MatlError):
    """The same node opened another stream for the same update."""


class Reception:
    """One update's chunks coming in. Owned by the stream that began it last."""

    def __init__(self, record: UpdateRecord, *, spool: Spool) -> None:
        self.record = record
        self._spool = spool
        self._sink: UpdateSink | None = None
        # Guards the sink: an older stream may still be writing when a newer takes over.
        self._lock = asyncio.Lock()

    async def begin(self) -> None:
        """Open the update where its last durable chunk ends."""
        if self.record.status is UpdateStatus.RECEIVING:
            await asyncio.shield(asyncio.create_task(self._open()))

    async def _open(self) -> None:
        async with self._lock:
            self._sink = await asyncio.to_thread(
                self._spool.open,
                self.record.round_id,
                self.record.node_id,
                byte_count=self.record.byte_count,
                chunk_hashes=self.record.chunk_hashes,
            )

    @property
    def is_complete(self) -> bool:
        return self.fraction >= 1.0

    @property
    def fraction(self) -> float:
        if self.record.status is UpdateStatus.ADMITTED:
            return 1.0
        received = 0 if self._sink is None else self._sink.received_chunks
        return received / chunk_count(self.record.byte_count)

    async def take(self, index: int, data: bytes | memoryview) -> None:
        """Take the next chunk, checked against its hash.

        Raises:
            ChunkRefusedError: not the next chunk, or its bytes differ from what was declared.
            SpoolError: the disk failed.
            SupersededError: a newer stream took over.
        """
        await self._with_sink(lambda sink: sink.append(index, data))

    async def durable_chunks(self) -> int:
        return await self._with_sink(lambda sink: sink.sync())

    async def finish(self) -> Path:
        return await self._with_sink(lambda sink: sink.finish())

    async def end(self) -> None:
        """Make what was taken durable and let go of the file.

        Where that fails (the disk, or the round's files are discarded already), only the
        disk knows what is durable, and the next one to open the update asks it.
        """
        with suppress(SupersededError, SpoolError):
            await self._with_sink(_sync_and_close)
        self._sink = None

    async def _with_sink(self, use: Callable[[UpdateSink], T]) -> T:
        """Use the sink in a thread; finished even if the caller is cancelled."""

        async def run() -> T:
            async with self._lock:
                if self._sink is None:
                    raise SupersededError("a newer stream took over this update")
                return await asyncio.to_thread(use, self._sink)

        return await asyncio.shield(asyncio.create_task(run()))


def _sync_and_close(sink: UpdateSink) -> None:
    try:
        sink.sync()
    finally:
        sink.close()
