"""The directories of a TIFF file, and of EXIF, which is one (TIFF 6.0; BigTIFF; CIPA DC-008).

Reads structure only, under limits, and follows no offset twice. What the tags mean is said
in ``exif.py``.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from matl_common.errors import InvalidInputError

MAX_DIRECTORIES: Final = 64
MAX_ENTRIES: Final = 4_096
MAX_LISTED: Final = 64
EXIF, GPS, INTEROPERABILITY, SUB_DIRECTORIES = 0x8769, 0x8825, 0xA005, 0x014A
POINTERS: Final = {EXIF: "EXIF", GPS: "GPS", INTEROPERABILITY: "interoperability",
                   SUB_DIRECTORIES: "sub-directory"}  # fmt: skip
ASCII, UNDEFINED, BYTE = 2, 7, 1
_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8,
                 13: 4, 16: 8, 17: 8, 18: 8}  # fmt: skip
_INTEGERS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class TiffDamagedError(InvalidInputError):
    """The bytes are not the directories of a TIFF file."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How numbers and offsets are written."""

    order: str
    is_big: bool

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.is_big else "I")

    @property
    def offset_bytes(self) -> int:
        return 8 if self.is_big else 4

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.is_big else "H")

    @property
    def entry_bytes(self) -> int:
        return 20 if self.is_big else 12


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag: where it stands, and where its value does."""

    tag: int
    kind: int
    count: int
    at: int
    start: int
    end: int

    def value(self, data: bytes) -> bytes:
        return data[self.start : self.end]

    def numbers(self, data: bytes, layout: Layout, *, limit: int = MAX_LISTED) -> tuple[int, ...]:
        """The value as whole numbers, ``limit`` at most; none of another kind."""
        form = _INTEGERS.get(self.kind)
        if form is None:
            return ()
        count = min(self.count, limit)
        return struct.unpack_from(f"{layout.order}{count}{form}", data, self.start)


@dataclass(frozen=True, slots=True)
class Directory:
    """An image file directory."""

    name: str
    at: int
    end: int
    next_at: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """Every directory of a file, the first one first."""

    layout: Layout
    directories: tuple[Directory, ...]


def read_tree(data: bytes) -> Tree:
    """Find the directories of a TIFF file or of EXIF.

    Raises:
        TiffDamagedError: there are none, or their structure is wrong or too large.
    """
    layout, first = _header(data)
    directories: list[Directory] = []
    waiting = [("IFD0", first)]
    seen: set[int] = set()
    entries = 0
    while waiting:
        name, at = waiting.pop(0)
        if at in seen:
            raise TiffDamagedError("its directories form a circle")
        seen.add(at)
        directory = _directory(data, layout, name, at)
        directories.append(directory)
        entries += len(directory.entries)
        if len(directories) > MAX_DIRECTORIES or entries > MAX_ENTRIES:
            raise TiffDamagedError("it has too many directories or tags")
        waiting += _following(data, layout, directory)
    return Tree(layout, tuple(directories))


def _header(data: bytes) -> tuple[Layout, int]:
    orders = {b"II": "<", b"MM": ">"}
    order = orders.get(data[:2])
    if order is None or len(data) < 8:
        raise TiffDamagedError("it has no TIFF header")
    (magic,) = struct.unpack_from(order + "H", data, 2)
    if magic == 42:
        return Layout(order, False), struct.unpack_from(order + "I", data, 4)[0]
    if magic == 43 and len(data) >= 16 and struct.unpack_from(order + "HH", data, 4) == (8, 0):
        return Layout(order, True), struct.unpack_from(order + "Q", data, 8)[0]
    raise TiffDamagedError("it has no TIFF header")


def _directory(data: bytes, layout: Layout, name: str, at: int) -> Directory:
    if at > len(data):
        # BigTIFF's offsets may be larger than any that struct takes.
        raise TiffDamagedError("a directory is outside of the file")
    try:
        (count,) = struct.unpack_from(layout.count, data, at)
        start = at + struct.calcsize(layout.count)
        next_at = start + count * layout.entry_bytes
        if count > MAX_ENTRIES or next_at > len(data):
            raise TiffDamagedError("a directory is longer than the file")
        entries = tuple(
            _entry(data, layout, start + number * layout.entry_bytes) for number in range(count)
        )
    except struct.error as error:
        raise TiffDamagedError("a directory is outside of the file") from error
    end = min(len(data), next_at + layout.offset_bytes)
    return Directory(name, at, end, next_at, entries)


def _entry(data: bytes, layout: Layout, at: int) -> Entry:
    tag, kind = struct.unpack_from(layout.order + "HH", data, at)
    (count,) = struct.unpack_from(layout.offset, data, at + 4)
    length = _SIZES.get(kind, 1) * count
    inline = at + layout.entry_bytes - layout.offset_bytes
    start = inline
    if length > layout.offset_bytes:
        (start,) = struct.unpack_from(layout.offset, data, inline)
    if start + length > len(data):
        raise TiffDamagedError("a value is outside of the file")
    return Entry(tag, kind, count, at, start, start + length)


def _following(data: bytes, layout: Layout, directory: Directory) -> Iterator[tuple[str, int]]:
    for entry in directory.entries:
        if name := POINTERS.get(entry.tag):
            yield from ((name, at) for at in entry.numbers(data, layout) if at)
    if directory.next_at + layout.offset_bytes <= len(data):
        (following,) = struct.unpack_from(layout.offset, data, directory.next_at)
        if following and directory.name.startswith("IFD"):
            yield f"IFD{int(directory.name[3:]) + 1}", following
