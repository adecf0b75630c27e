"""Vectors on disk or in a shared store, and the stretches of them that a pass is made of.

Files are read rather than mapped: mapped pages would count as this process's memory, and a
disk error would kill it. Nothing here knows what the values mean, or who does the work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from matl_common.errors import IntegrityError
from matl_common.tensors import ELEMENT_BYTES
from matl_coordinator.aggregation.stored import StoredObject, StoredRows
from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.ranges import (
    GROUP_ELEMENTS,
    LONGEST_STREAM,
    Stretch,
    chunk_elements,
)
from matl_coordinator.core.robust.selection import Float32Array

__all__ = [
    "GROUP_ELEMENTS",
    "Chunk",
    "ChunkWork",
    "OpenRows",
    "Row",
    "StreamWork",
    "Work",
    "chunk_elements",
    "opened",
    "read_into",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One vector: flat little-endian float32, nothing else."""

    name: str
    path: Path
    """On the coordinator's own disk, which is believed."""
    stored: StoredObject | None = None
    """In a store that is shared, and is not: where passes read the row if it is there."""

    def part(self, stretch: Stretch) -> Row:
        """The same row, with no more about it than this stretch needs."""
        if self.stored is None:
            return self
        return replace(self, stored=self.stored.part(stretch))


@dataclass(frozen=True, slots=True)
class Chunk:
    """The same stretch of coordinates of every row."""

    start: int
    """Its first coordinate, a multiple of ``GROUP_ELEMENTS``."""
    values: Float32Array
    """Shape ``(rows + 1, length)``; the last row is 0. Overwritten when the chunk is done."""


class OpenRows(Protocol):
    """Rows that are open for reading. Safe to call from several threads."""

    @property
    def longest(self) -> int | None:
        """The one length of stretch that suits them, if there is one."""
        ...

    def fill(self, buffer: Float32Array, start: int) -> None:
        """Write each row's values from coordinate ``start`` on into its row of ``buffer``."""
        ...

    def each(self, row: Float32Array, start: int) -> Iterator[Float32Array]:
        """Each row's values from ``start`` on, one after the other in the same place."""
        ...


class FileRows:
    """Rows in files of this machine."""

    longest = None

    def __init__(self, files: Sequence[FileIO]) -> None:
        self._files = files

    def fill(self, buffer: Float32Array, start: int) -> None:
        for file, row in zip(self._files, buffer, strict=True):
            read_into(file, row, start)

    def each(self, row: Float32Array, start: int) -> Iterator[Float32Array]:
        for file in self._files:
            read_into(file, row, start)
            yield row


class Work(Protocol[T_co]):
    """One pass over rows. Its stretches may be done anywhere, in any order.

    What a stretch comes to depends on nothing but its values: frozen, and told in full by its
    fields, so that another process can do it.
    """

    @property
    def rows(self) -> tuple[Row, ...]: ...

    @property
    def elements(self) -> int:
        """Coordinates of a row."""
        ...

    @property
    def held(self) -> int:
        """Rows of the buffer that a stretch is read into."""
        ...

    def longest(self, *, threads: int) -> int:
        """Coordinates of a stretch of files on this machine, ``threads`` worked on at once."""
        ...

    def do(self, rows: OpenRows, buffer: Float32Array, start: int) -> T_co:
        """What the stretch that begins at coordinate ``start`` comes to."""
        ...

    def part(self, stretch: Stretch) -> Self:
        """The same work with no more about its rows than this stretch needs."""
        ...


@dataclass(frozen=True, slots=True)
class ChunkWork(Generic[T]):
    """``function`` of every chunk."""

    rows: tuple[Row, ...]
    elements: int
    function: Callable[[Chunk], T]

    @property
    def held(self) -> int:
        return len(self.rows) + 1

    def longest(self, *, threads: int) -> int:
        return chunk_elements(len(self.rows), threads=threads)

    def do(self, rows: OpenRows, buffer: Float32Array, start: int) -> T:
        rows.fill(buffer[:-1], start)
        return self.function(Chunk(start, buffer))

    def part(self, stretch: Stretch) -> Self:
        return replace(self, rows=tuple(row.part(stretch) for row in self.rows))


@dataclass(frozen=True, slots=True)
class StreamWork(Generic[T]):
    """``function`` of every stretch, which is told its rows one by one.

    Every row comes in the same buffer, so that memory does not grow with their number.
    """

    rows: tuple[Row, ...]
    elements: int
    function: Callable[[Iterator[Float32Array]], T]

    @property
    def held(self) -> int:
        return 1

    def longest(self, *, threads: int) -> int:
        return LONGEST_STREAM

    def do(self, rows: OpenRows, buffer: Float32Array, start: int) -> T:
        return self.function(rows.each(buffer[0], start))

    def part(self, stretch: Stretch) -> Self:
        return replace(self, rows=tuple(row.part(stretch) for row in self.rows))


@contextmanager
def opened(rows: Sequence[Row], elements: int) -> Iterator[OpenRows]:
    """The rows, checked for their size.

    Raises:
        AggregationError: no row, a row of another size, or rows in several places.
    """
    if not rows:
        raise AggregationError("no update to aggregate")
    expected = elements * ELEMENT_BYTES
    objects = [row.stored for row in rows if row.stored is not None]
    if objects:
        if len(objects) < len(rows):
            raise AggregationError("some rows of a pass lie in a shared store, and some do not")
        for row, each in zip(rows, objects, strict=True):
            _check_size(row, each.byte_count, expected)
        yield StoredRows([row.name for row in rows], objects)
        return
    with opened_files(rows, elements) as files:
        yield FileRows(files)


@contextmanager
def opened_files(rows: Sequence[Row], elements: int) -> Iterator[list[FileIO]]:
    """The rows' files on the coordinator's disk, checked for their size.

    Raises:
        AggregationError: no row, or a file of another size.
    """
    if not rows:
        raise AggregationError("no update to aggregate")
    expected = elements * ELEMENT_BYTES
    with ExitStack() as stack:
        files = [stack.enter_context(FileIO(row.path)) for row in rows]
        for row, file in zip(rows, files, strict=True):
            _check_size(row, os.fstat(file.fileno()).st_size, expected)
        yield files


def _check_size(row: Row, size: int, expected: int) -> None:
    if size != expected:
        raise AggregationError(f"row {row.name} has {size} bytes, not {expected}")


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
