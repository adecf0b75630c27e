"""A model file as messages, read once for all hospitals that fetch it at about the same time.

The blocks read last are kept for whoever comes next, some tens of megabytes whatever the number of
hospitals. Whoever is ahead lets those catch up who would fall behind that, for a moment: one that
is slow falls behind, and has its blocks read again. Nothing here knows which model is wanted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from matl_common.errors import InvalidInputError
from matl_common.tensors import CHUNK_BYTES
from matl_common.wire.chunks import format_block

BLOCKS_KEPT: Final = 32
LOOK_EVERY_SECONDS: Final = 0.005
LOOKS: Final = 20
"""So often a stream looks, at each block, whether those behind it have caught up."""

_Key = tuple[Path, int]


class Stream:
    """How far one hospital has come."""

    def __init__(self, streams: Set[Stream], *, within: int) -> None:
        """One of ``streams``, which are to stay ``within`` so many blocks."""
        self._streams = streams
        self._within = within
        self._path: Path | None = None
        self._block = 0

    async def reach(self, path: Path, offset: int) -> None:
        """Come to a block, and let those catch up who are about to fall too far behind."""
        self._path, self._block = path, offset // CHUNK_BYTES
        for _ in range(LOOKS):
            if not self._leaves_others():
                break
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    def _leaves_others(self) -> bool:
        return any(
            self._within // 2 <= self._block - other._block < self._within
            for other in self._streams
            if other._path == self._path
        )


class ModelBlocks:
    """Blocks of model files, which never change. Runs on one event loop."""

    def __init__(self, *, kept: int = BLOCKS_KEPT) -> None:
        """Keep the last ``kept`` blocks."""
        self._kept = kept
        # Under way or done, the one asked for last at the end.
        self._blocks: OrderedDict[_Key, asyncio.Task[bytes]] = OrderedDict()
        self._streams: set[Stream] = set()

    @contextmanager
    def in_use(self) -> Iterator[Stream]:
        """Keep blocks while this or another hospital fetches; between rounds none are."""
        stream = Stream(self._streams, within=self._kept)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._blocks.clear()

    async def at(self, path: Path, offset: int) -> bytes:
        """What the file holds from ``offset`` to the end of the block that it lies in.

        Returns:
            The message, made once for everybody.

        Raises:
            OSError: the file cannot be read.
        """
        if offset % CHUNK_BYTES:
            # Where somebody goes on; nobody else does just there.
            return await asyncio.to_thread(_read, path, offset)
        return await self._whole(path, offset)

    async def _whole(self, path: Path, offset: int) -> bytes:
        key = (path, offset)
        reading = self._blocks.get(key)
        if reading is None:
            reading = self._blocks[key] = asyncio.create_task(asyncio.to_thread(_read, *key))
            while len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        try:
            # A caller that is cancelled leaves the block to the others.
            return await asyncio.shield(reading)
        except OSError:
            self._blocks.pop(key, None)
            raise


def block_end(offset: int) -> int:
    """Where the block ends that ``offset`` lies in, unless the file does before."""
    return (offset // CHUNK_BYTES + 1) * CHUNK_BYTES


def check_offset(path: Path, offset: int) -> int:
    """The size of the file, which must not be smaller than ``offset``.

    Raises:
        InvalidInputError: it is.
        OSError: there is no such file.
    """
    size = path.stat().st_size
    if offset > size:
        raise InvalidInputError(f"the model has {size} bytes, fewer than the offset {offset}")
    return size


def _read(path: Path, offset: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        return format_block(offset, file.read(block_end(offset) - offset))
