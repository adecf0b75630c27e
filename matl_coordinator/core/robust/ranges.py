"""Where a pass over all coordinates may be cut, and how finely.

Nothing here reads a row. Cuts are no part of the results: every sum over coordinates is
grouped by ``GROUP_ELEMENTS`` and added in the order of the groups, whoever computed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matl_common.tensors import CHUNK_BYTES, ELEMENT_BYTES

GROUP_ELEMENTS: Final = 16_384
"""Sums over coordinates are grouped by this many. Part of the results, unlike the cuts."""
VERIFIED_ELEMENTS: Final = CHUNK_BYTES // ELEMENT_BYTES
"""Coordinates of a chunk with a declared hash; whole groups."""

# A thread asks for the interpreter's lock once a row and chunk: short chunks would queue for it,
# and long ones leave the cache between reading and use. Where one row is held at a time, it and
# its sum stay there at four times the length.
_LONGEST_CHUNK: Final = 4 * GROUP_ELEMENTS
LONGEST_STREAM: Final = 16 * GROUP_ELEMENTS
# Of all threads' chunks together, unless single groups of the rows need more.
_BUFFER_BYTES: Final = 16 << 20
# What one task elsewhere reads: enough that handing it over costs little, and not more than so
# many chunks, so that a lost one costs little, too.
_TASK_BYTES: Final = 16 << 20
_TASK_CHUNKS: Final = 64


@dataclass(frozen=True, slots=True)
class Stretch:
    """Coordinates from ``start`` to ``stop - 1``."""

    start: int
    stop: int

    @property
    def elements(self) -> int:
        return self.stop - self.start


def cut(stretch: Stretch, *, longest: int) -> Sequence[Stretch]:
    """The stretch in pieces of ``longest`` coordinates, in order; the last may be shorter."""
    return [
        Stretch(start, min(start + longest, stretch.stop))
        for start in range(stretch.start, stretch.stop, longest)
    ]


def chunk_elements(rows: int, *, threads: int) -> int:
    """Coordinates of a chunk: whole groups, such that the buffers stay within their bound."""
    wanted = _BUFFER_BYTES // (threads * rows * ELEMENT_BYTES * GROUP_ELEMENTS)
    return min(_LONGEST_CHUNK, max(1, wanted) * GROUP_ELEMENTS)


def task_elements(rows: int) -> int:
    """Coordinates of one task for a worker elsewhere: whole chunks with a declared hash."""
    chunks = _TASK_BYTES // (rows * CHUNK_BYTES)
    return min(_TASK_CHUNKS, max(1, chunks)) * VERIFIED_ELEMENTS
