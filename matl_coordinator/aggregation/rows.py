"""Vectors on disk, read chunk by chunk into buffers that are used again.

Read rather than mapped: mapped pages would count as this process's memory, and a disk
error would kill it. Nothing here knows what the values mean.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from matl_common.errors import IntegrityError
from matl_common.tensors import ELEMENT_BYTES
from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.selection import Float32Array

GROUP_ELEMENTS: Final = 16_384
"""Sums over coordinates are grouped by this many. Part of the results, unlike the chunks."""

# A thread asks for the interpreter's lock once a row and chunk: short chunks would queue for it,
# and long ones leave the cache between reading and use. Where one row is held at a time, it and
# its sum stay there at four times the length.
_LONGEST_CHUNK: Final = 4 * GROUP_ELEMENTS
_LONGEST_STREAM: Final = 16 * GROUP_ELEMENTS
# Of all threads' chunks together, unless single groups of the rows need more.
_BUFFER_BYTES: Final = 16 << 20

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Row:
    """One vector on disk: flat little-endian float32, nothing else."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Chunk:
    """The same stretch of coordinates of every row."""

    start: int
    """Its first coordinate, a multiple of ``GROUP_ELEMENTS``."""
    values: Float32Array
    """Shape ``(rows + 1, length)``; the last row is 0. Overwritten when the chunk is done."""


def chunk_elements(rows: int, *, threads: int) -> int:
    """Coordinates of a chunk: whole groups, such that the buffers stay within their bound."""
    wanted = _BUFFER_BYTES // (threads * rows * ELEMENT_BYTES * GROUP_ELEMENTS)
    return min(_LONGEST_CHUNK, max(1, wanted) * GROUP_ELEMENTS)


@contextmanager
def opened(rows: Sequence[Row], elements: int) -> Iterator[list[FileIO]]:
    """The rows' files, checked for their size.

    Raises:
        AggregationError: no row, or a file of another size.
    """
    if not rows:
        raise AggregationError("no update to aggregate")
    expected = elements * ELEMENT_BYTES
    with ExitStack() as stack:
        files = [stack.enter_context(FileIO(row.path)) for row in rows]
        for row, file in zip(rows, files, strict=True):
            if (size := os.fstat(file.fileno()).st_size) != expected:
                raise AggregationError(f"row {row.name} has {size} bytes, not {expected}")
        yield files


def map_chunks(
    function: Callable[[Chunk], _T], files: Sequence[FileIO], elements: int, *, threads: int
) -> Iterator[_T]:
    """``function`` of every chunk, in order, with ``threads`` of them worked on at once."""

    def handle(buffer: Float32Array, start: int) -> _T:
        for file, row in zip(files, buffer[:-1], strict=True):
            read_into(file, row, start)
        return function(Chunk(start, buffer))

    longest = chunk_elements(len(files), threads=threads)
    return _map_stretches(handle, len(files) + 1, elements, longest=longest, threads=threads)


def map_streams(
    function: Callable[[Iterator[Float32Array]], _T],
    files: Sequence[FileIO],
    elements: int,
    *,
    threads: int,
) -> Iterator[_T]:
    """``function`` of every stretch of coordinates, which is told its rows one by one.

    Every row comes in the same buffer, so that memory does not grow with their number.
    Results are in order, with ``threads`` of them worked on at once.
    """

    def handle(buffer: Float32Array, start: int) -> _T:
        def rows() -> Iterator[Float32Array]:
            for file in files:
                read_into(file, buffer[0], start)
                yield buffer[0]

        return function(rows())

    return _map_stretches(handle, 1, elements, longest=_LONGEST_STREAM, threads=threads)


def _map_stretches(
    function: Callable[[Float32Array, int], _T],
    rows: int,
    elements: int,
    *,
    longest: int,
    threads: int,
) -> Iterator[_T]:
    """``function`` of a buffer of ``rows`` rows, and of the coordinate it begins at."""
    longest = max(1, min(elements, longest))
    # As many buffers as tasks run at once; taking from and adding to a list is atomic.
    buffers = [
        np.zeros((rows, longest), dtype="<f4") for _ in range(min(threads, -(-elements // longest)))
    ]

    def handle(start: int) -> _T:
        buffer = buffers.pop()
        try:
            return function(buffer[:, : min(longest, elements - start)], start)
        finally:
            buffers.append(buffer)

    return _in_order(handle, range(0, elements, longest), threads=threads)


def _in_order(
    function: Callable[[int], _T], arguments: Sequence[int], *, threads: int
) -> Iterator[_T]:
    if threads == 1 or len(arguments) < 2:
        yield from map(function, arguments)
        return
    with ThreadPoolExecutor(threads) as pool:
        left = iter(arguments)
        # Twice the threads: none is idle while the oldest result is waited for.
        waiting: deque[Future[_T]] = deque(
            pool.submit(function, each) for each in islice(left, 2 * threads)
        )
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, each) for each in islice(left, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def read_into(file: FileIO, row: Float32Array, start: int) -> None:
    """Fill ``row`` with the values of the file from coordinate ``start`` on."""
    # Reads at an offset, because threads share the file.
    view = row.data.cast("B")
    filled = 0
    while filled < len(view):
        count = os.preadv(file.fileno(), [view[filled:]], start * ELEMENT_BYTES + filled)
        if count == 0:
            raise IntegrityError("an update file became shorter while it was read")
        filled += count


def map_rows(function: Callable[[int], _T], count: int, *, threads: int) -> Iterator[_T]:
    """``function`` of the index of every row, in order, ``threads`` at once."""
    return _in_order(function, range(count), threads=threads)
