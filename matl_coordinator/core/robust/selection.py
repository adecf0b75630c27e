"""Selection networks: order statistics over the rows of a block, coordinate by coordinate.

A network of minima and maxima has no branches, so numpy runs it at memory speed
where sorting each column does not. Pruned to the ranks a reduction reads. Values
must be finite; nothing here checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

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


def median(rows: list[Float32Array]) -> Float32Array:
    """Coordinate-wise median of the rows, which are overwritten; even counts average.

    Args:
        rows: at least one array; all of the same shape ``(b,)``, none sharing memory.
    """
    m = len(rows)
    return mean_of_ranks(rows, first=(m - 1) // 2, last=m // 2)


def mean_of_ranks(rows: list[Float32Array], *, first: int, last: int) -> Float32Array:
    """Mean of the coordinate-wise order statistics ``first`` to ``last``, both included.

    The rows are overwritten. Sums are taken in float64.

    Raises:
        AggregationError: not ``0 <= first <= last < len(rows)``.
    """
    if not 0 <= first <= last < len(rows):
        raise AggregationError(f"no ranks {first} to {last} among {len(rows)} rows")
    _run(rows, selection_network(len(rows), first, last))
    if first == last:
        # Adding 0 copies, and makes -0 and 0 (equal to the network) the same bytes.
        return rows[first] + np.float32(0)
    total = np.add(rows[first], rows[first + 1], dtype=np.float64)
    for row in rows[first + 2 : last + 1]:
        total += row
    total /= last - first + 1
    return total.astype(np.float32)


def _run(rows: list[Float32Array], network: tuple[Comparator, ...]) -> None:
    spare = np.empty_like(rows[0])
    for step in network:
        low, high = rows[step.low], rows[step.high]
        if step.keep_low and step.keep_high:
            np.minimum(low, high, out=spare)
            np.maximum(low, high, out=high)
            # Swap instead of copying: the old array becomes the spare one.
            rows[step.low], spare = spare, low
        elif step.keep_low:
            np.minimum(low, high, out=low)
        else:
            np.maximum(low, high, out=high)


@cache
def selection_network(m: int, first: int, last: int) -> tuple[Comparator, ...]:
    """Comparators that leave the sum of ranks ``first`` to ``last`` in those rows.

    Batcher's odd-even merge sort (AFIPS 1968), walked backwards: a comparator neither
    output of which is read is dropped, and so is one whose two outputs are only
    added up, because it does not change their sum.
    """
    summed = set(range(first, last + 1))
    ordered: set[int] = set()
    kept: list[Comparator] = []
    for low, high in reversed(_batcher(m)):
        read = summed | ordered
        if low not in read and high not in read:
            continue
        if low in summed and high in summed:
            continue
        kept.append(Comparator(low, high, keep_low=low in read, keep_high=high in read))
        summed -= {low, high}
        ordered |= {low, high}
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
