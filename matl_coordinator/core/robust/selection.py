"""Selection networks: order statistics over the rows of a block, coordinate by coordinate.

A network of minima and maxima has no branches, so a processor runs it on many
coordinates at once, where sorting each column would take them one by one. Pruned to the
ranks a reduction reads; ``compiled`` runs it. Values must be finite; nothing here checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from matl_coordinator.core.robust.compiled import compiled_loops
from matl_coordinator.core.robust.gram import AggregationError

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparator:
    """Puts the smaller of two rows in ``low`` and the larger in ``high``.

    An output nobody reads is not computed.
    """

    low: int
    high: int
    keep_low: bool
    keep_high: bool


def median(rows: Float32Array) -> Float32Array:
    """Coordinate-wise median of the rows, which are overwritten; even counts average.

    Args:
        rows: shape ``(m, b)``, at least one row, each contiguous.
    """
    m = len(rows)
    return mean_of_ranks(rows, first=(m - 1) // 2, last=m // 2)


def mean_of_ranks(rows: Float32Array, *, first: int, last: int) -> Float32Array:
    """Mean of the coordinate-wise order statistics ``first`` to ``last``, both included.

    The rows are overwritten. Sums are taken in float64.

    Raises:
        AggregationError: not ``0 <= first <= last < len(rows)``.
    """
    if not 0 <= first <= last < len(rows):
        raise AggregationError(f"no ranks {first} to {last} among {len(rows)} rows")
    _run(rows, selection_network(len(rows), (tuple(range(first, last + 1)),)))
    return compiled_loops().mean_of_rows(rows[first : last + 1])


def mean_around_median(rows: Float32Array, *, keep: int) -> Float32Array:
    """Coordinate-wise mean of the ``keep`` values nearest the median.

    Of two equally near, the lower counts first; the median of an even number of rows is
    the mean of the two in the middle. In sorted order the nearest are neighbours: a
    window that starts at the lowest value moves up while the next value is nearer than
    the one it leaves. The rows are overwritten; sums are taken in float64.

    Raises:
        AggregationError: not ``1 <= keep <= len(rows)``.
    """
    m = len(rows)
    if not 1 <= keep <= m:
        raise AggregationError(f"cannot keep {keep} of {m} rows around their median")
    if keep == m:
        return mean_of_ranks(rows, first=0, last=m - 1)
    _run(rows, selection_network(m, _sums_around_median(m, keep)))
    twice_median = np.add(rows[(m - 1) // 2], rows[m // 2], dtype=np.float64)
    for left in range(m - keep):
        entered = rows[left + keep]
        # The one is nearer than the other when their mean is below the median.
        nearer = np.add(rows[left], entered, dtype=np.float64) < twice_median
        # One value of every ``keep``-th rank is in the window, wherever it is.
        np.copyto(rows[left % keep], entered, where=nearer)
    return compiled_loops().mean_of_rows(rows[:keep])


@cache
def _sums_around_median(m: int, keep: int) -> tuple[tuple[int, ...], ...]:
    """Ranks a window may leave or enter, each alone; of the others only sums are read."""
    moving = {*range(m - keep), *range(keep, m)}
    middle = {(m - 1) // 2, m // 2} - moving
    always = set(range(m)) - moving - middle
    together = (tuple(sorted(group)) for group in (middle, always) if group)
    return (*together, *((rank,) for rank in sorted(moving)))


def _run(rows: Float32Array, network: tuple[Comparator, ...]) -> None:
    if network:
        compiled_loops().exchange(rows, _table(network))


@cache
def _table(network: tuple[Comparator, ...]) -> NDArray[np.intp]:
    """Columns: the two rows, and what to keep (1: the low one, 2: the high one, 3: both)."""
    return np.array(
        [(each.low, each.high, each.keep_low + 2 * each.keep_high) for each in network],
        dtype=np.intp,
    )


@cache
def selection_network(m: int, sums: tuple[tuple[int, ...], ...]) -> tuple[Comparator, ...]:
    """Comparators that leave, for each of ``sums``, the sum of those ranks in those rows.

    Batcher's odd-even merge sort (AFIPS 1968), walked backwards: a comparator neither
    output of which is read is dropped, and so is one whose two outputs are only
    added up, because it does not change their sum.

    Args:
        m: number of rows.
        sums: disjoint sets of ranks; a rank that is read for itself is a set of its own.
    """
    read = {rank: index for index, ranks in enumerate(sums) for rank in ranks}
    kept: list[Comparator] = []
    for low, high in reversed(_batcher(m)):
        # Neither is read, or both go into one sum.
        if read.get(low) == read.get(high):
            continue
        kept.append(Comparator(low, high, keep_low=low in read, keep_high=high in read))
        # What enters a comparator must be there for itself.
        read[low], read[high] = ~low, ~high
    return tuple(reversed(kept))


def _batcher(m: int) -> list[tuple[int, int]]:
    """Odd-even merge sort of ``m`` rows, any ``m`` (Knuth, TAOCP 3, 5.2.2, algorithm M)."""
    pairs: list[tuple[int, int]] = []
    if m < 2:
        return pairs
    top = 1 << ((m - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs.extend((i, i + d) for i in range(m - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs
