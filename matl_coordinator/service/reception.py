"""One update's chunks coming in, from any number of connections one after another.

Chunks are checked against the hashes the hospital declared before they are written, in a thread,
each while the next is on its way.
Nothing here judges an update or writes a log entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from matl_common.errors import MatlError
from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.admission import Contents, chunk_count
from matl_coordinator.ports import SpoolError, UpdateSink, UpdateStatus
from matl_coordinator.service.contents import Scan

T = TypeVar("T")


class Receivable(Protocol):
    """What has to be known of an update to receive it."""

    @property
    def round_id(self) -> RoundId: ...
    @property
    def node_id(self) -> NodeId: ...
    @property
    def byte_count(self) -> int: ...
    @property
    def chunk_hashes(self) -> bytes: ...
    @property
    def status(self) -> UpdateStatus: ...


class Sinks(Protocol):
    """Where it is received; a ``ports.Spool`` is one."""

    def open(
        self, round_id: RoundId, node_id: NodeId, *, byte_count: int, chunk_hashes: bytes
    ) -> UpdateSink: ...


RecordT = TypeVar("RecordT", bound=Receivable)


class SupersededError(MatlError):
    """The same node opened another stream for the same update."""


class Reception(Generic[RecordT]):
    """One update's chunks coming in. Owned by the stream that began it last."""

    def __init__(self, record: RecordT, *, spool: Sinks, looks: bool = True) -> None:
        """``looks`` says whether anybody asks for ``contents``."""
        self.record = record
        self._spool = spool
        self._looks = looks
        self._sink: UpdateSink | None = None
        # Guards the sink: an older stream may still be writing when a newer takes over.
        self._lock = asyncio.Lock()
        # The chunk that is being checked and written.
        self._writing: asyncio.Future[None] | None = None
        # Of all chunks, if they come here from the first on.
        self._scan: Scan | None = None

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
            if self._looks and not self._sink.received_chunks:
                self._scan = Scan()

    @property
    def is_complete(self) -> bool:
        return self.fraction >= 1.0

    @property
    def fraction(self) -> float:
        if self.record.status is UpdateStatus.ADMITTED:
            return 1.0
        return self.received_chunks / chunk_count(self.record.byte_count)

    @property
    def received_chunks(self) -> int:
        """Chunks taken so far."""
        return 0 if self._sink is None else self._sink.received_chunks

    @property
    def contents(self) -> Contents | None:
        """What a complete update holds, unless some of it came to another reception."""
        return None if self._scan is None else self._scan.contents

    async def take(self, index: int, data: bytes | memoryview) -> asyncio.Future[None]:
        """Begin to take the next chunk, once the one before is taken; see ``settle``.

        Returns:
            When it is taken, or is not.

        Raises:
            ChunkRefusedError: the one before was refused.
            SpoolError: the disk failed.
            SupersededError: a newer stream took over.
        """
        await self.settle()
        if self._sink is None:
            raise _superseded()
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._append, self._sink, index, data)
        return self._writing

    async def settle(self) -> None:
        """Wait until the last chunk is taken.

        Raises:
            ChunkRefusedError: it is not the next chunk, or its bytes differ from what was declared.
            SpoolError: the disk failed.
        """
        writing = self._writing
        if writing is not None:
            # Not cancelled with who waits: a thread goes on anyway.
            await asyncio.wait({writing})
            if self._writing is writing:
                self._writing = None
            writing.result()

    def _append(self, sink: UpdateSink, index: int, data: bytes | memoryview) -> None:
        sink.append(index, data)
        if self._scan is not None:
            self._scan.add(data)

    async def durable_chunks(self) -> int:
        await self.settle()
        return await self._with_sink(lambda sink: sink.sync())

    async def finish(self) -> Path:
        await self.settle()
        return await self._with_sink(lambda sink: sink.finish())

    async def end(self) -> None:
        """Make what was taken durable and let go of the file.

        Where that fails (the disk, or the round's files are discarded already), only the
        disk knows what is durable, and the next one to open the update asks it.
        """
        await asyncio.shield(asyncio.create_task(self._end()))

    async def _end(self) -> None:
        async with self._lock:
            # Nothing is taken from here on.
            sink, self._sink = self._sink, None
            if self._writing is not None:
                # What came of it is for its own stream to say.
                await asyncio.wait({self._writing})
            if sink is not None:
                with suppress(SpoolError):
                    await asyncio.to_thread(_sync_and_close, sink)

    async def _with_sink(self, use: Callable[[UpdateSink], T]) -> T:
        """Use the sink in a thread; finished even if the caller is cancelled."""

        async def run() -> T:
            async with self._lock:
                if self._sink is None:
                    raise _superseded()
                return await asyncio.to_thread(use, self._sink)

        return await asyncio.shield(asyncio.create_task(run()))


def _superseded() -> SupersededError:
    return SupersededError("a newer stream took over this update")


def _sync_and_close(sink: UpdateSink) -> None:
    try:
        sink.sync()
    finally:
        sink.close()
