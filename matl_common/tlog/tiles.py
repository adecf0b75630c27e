"""A log as static files that others' tools read: hash tiles and entry bundles.

A tile holds up to 256 neighbouring hashes of every eighth level, a bundle up to 256
entries; the last of each kind may be partial and has its width in its name. Which folder
or server they lie on, and what compresses them, is the caller's.

Format: https://c2sp.org/tlog-tiles.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matl_common.errors import InvalidInputError
from matl_common.tlog.merkle import HASH_BYTES, MAX_TREE_SIZE, ReadNode, merkle_root

CHECKPOINT_PATH = "checkpoint"
TILE_WIDTH = 256
TILE_LEVELS = 8
MAX_TILE_LEVEL = 63
MAX_BUNDLED_BYTES = (1 << 16) - 1

_PATH = re.compile(
    r"tile/(?P<level>entries|[0-9]{1,2})/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})"
    r"(?:\.p/(?P<width>[0-9]{1,3}))?"
)
_LENGTH_BYTES = 2


@dataclass(frozen=True, slots=True)
class HashTile:
    """Hashes ``256 * index`` to ``256 * index + width - 1`` of tree level ``8 * level``."""

    level: int
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        if not 0 <= self.level <= MAX_TILE_LEVEL:
            raise InvalidInputError(f"there are no tiles of level {self.level}")
        _check_place(self.index, self.width)

    @property
    def path(self) -> str:
        """Where the tile lies under the log's prefix."""
        return f"tile/{self.level}/{_encode_index(self.index, self.width)}"


@dataclass(frozen=True, slots=True)
class EntryBundle:
    """Entries ``256 * index`` to ``256 * index + width - 1``."""

    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        _check_place(self.index, self.width)

    @property
    def path(self) -> str:
        """Where the bundle lies under the log's prefix."""
        return f"tile/entries/{_encode_index(self.index, self.width)}"


def parse_path(path: str) -> HashTile | EntryBundle:
    """Parse the path of a tile or a bundle.

    Raises:
        InvalidInputError: it is neither, or not in its one canonical form.
    """
    if parts := _PATH.fullmatch(path):
        index = int("".join(filter(str.isdigit, parts["index"])))
        width = int(parts["width"] or TILE_WIDTH)
        bundled = parts["level"] == "entries"
        tile = EntryBundle(index, width) if bundled else HashTile(int(parts["level"]), index, width)
        if tile.path == path:
            return tile
    raise InvalidInputError(f"{path[:80]!r} is not the path of a tile")


def hash_tiles(size: int, *, since: int = 0) -> Iterator[HashTile]:
    """The tiles of a tree of ``size`` leaves that one of ``since`` leaves does not have."""
    level = 0
    while size >> level * TILE_LEVELS:
        shift = level * TILE_LEVELS
        for index, width in _places(size >> shift, since >> shift):
            yield HashTile(level, index, width)
        level += 1


def entry_bundles(size: int, *, since: int = 0) -> Iterator[EntryBundle]:
    """The bundles of a log of ``size`` entries that one of ``since`` entries does not have."""
    return (EntryBundle(index, width) for index, width in _places(size, since))


def encode_tile(tile: HashTile, read_node: ReadNode) -> bytes:
    """A tile's content, out of a stored tree."""
    first = tile.index * TILE_WIDTH
    level = tile.level * TILE_LEVELS
    return b"".join(read_node(level, index) for index in range(first, first + tile.width))


def parse_tile(data: bytes, *, width: int) -> tuple[bytes, ...]:
    """The hashes in a tile's content.

    Raises:
        InvalidInputError: it does not have ``width`` hashes.
    """
    if len(data) != width * HASH_BYTES:
        raise InvalidInputError(
            f"a tile of {width} hashes has {width * HASH_BYTES} bytes, not {len(data)}"
        )
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def tree_in_tiles(size: int, read_tile: Callable[[HashTile], bytes]) -> ReadNode:
    """Read the nodes of a tree of ``size`` leaves out of its tiles, for roots and proofs.

    Nodes between the levels of tiles are computed from those below. What comes of it is
    to be checked against a checkpoint's root; tiles prove nothing.
    """

    def read_node(level: int, index: int) -> bytes:
        tile_level, rise = divmod(level, TILE_LEVELS)
        tile_index, first = divmod(index << rise, TILE_WIDTH)
        width = min(TILE_WIDTH, (size >> tile_level * TILE_LEVELS) - tile_index * TILE_WIDTH)
        if first + (1 << rise) > width:
            raise InvalidInputError(f"a tree of {size} leaves has no node {(level, index)}")
        data = read_tile(HashTile(tile_level, tile_index, width))
        return merkle_root(parse_tile(data, width=width)[first : first + (1 << rise)])

    return read_node


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """A bundle's content: every entry after its length in two bytes.

    Raises:
        InvalidInputError: there are more than 256 entries, or one is too long.
    """
    if len(entries) > TILE_WIDTH or any(len(entry) > MAX_BUNDLED_BYTES for entry in entries):
        raise InvalidInputError(
            f"a bundle holds {TILE_WIDTH} entries of up to {MAX_BUNDLED_BYTES} bytes"
        )
    return b"".join(len(entry).to_bytes(_LENGTH_BYTES) + entry for entry in entries)


def parse_bundle(data: bytes, *, width: int) -> tuple[bytes, ...]:
    """The entries in a bundle's content.

    Raises:
        InvalidInputError: it does not hold ``width`` whole entries and nothing more.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(data[at:begin])
        if at > len(data):
            raise InvalidInputError("the bundle is cut short")
        entries.append(data[begin:at])
    if len(entries) != width:
        raise InvalidInputError(f"the bundle holds {len(entries)} entries, not {width}")
    return tuple(entries)


def _places(count: int, since: int) -> Iterator[tuple[int, int]]:
    """Index and width of what holds ``count`` things and changed since there were ``since``."""
    if count > since:
        full, partial = divmod(count, TILE_WIDTH)
        yield from ((index, TILE_WIDTH) for index in range(since // TILE_WIDTH, full))
        if partial:
            yield full, partial


def _check_place(index: int, width: int) -> None:
    if not 0 <= index <= MAX_TREE_SIZE // TILE_WIDTH or not 1 <= width <= TILE_WIDTH:
        raise InvalidInputError(f"there is no tile {index} of width {width}")


def _encode_index(index: int, width: int) -> str:
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    *leading, last = (digits[at : at + 3] for at in range(0, len(digits), 3))
    suffix = "" if width == TILE_WIDTH else f".p/{width}"
    return "".join(f"x{part}/" for part in leading) + last + suffix
