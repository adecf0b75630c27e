"""How much a hospital's size may count, so that a few large ones do not decide alone."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from matl_coordinator.core.robust.gram import AggregationError


def size_cap(patients: Sequence[int], *, f: int) -> int:
    """The largest cap on a hospital's size that keeps the ``f`` largest below half the weight.

    Portnoy et al., arXiv 2004.04986: the largest U with
    Σ_{largest f} min(N, U) ≤ α Σ min(N, U), for an α below ½, where rules that trust the
    heavier half would follow either: 45 %, or halfway between f/n, the least possible, and a
    half where that is more. With f = 0 nothing is capped.

    Raises:
        AggregationError: ``2 * f >= n``, or a size below 1.
    """
    if not patients or min(patients) < 1:
        raise AggregationError("every enrolled hospital needs at least one patient")
    if not 0 <= 2 * f < len(patients):
        raise AggregationError(f"f = {f} of {len(patients)} hospitals; use less than half of them")
    largest = sorted(patients, reverse=True)
    share = max(Fraction(45, 100), (Fraction(f, len(patients)) + Fraction(1, 2)) / 2)

    def holds(cap: int) -> bool:
        sizes = [min(size, cap) for size in largest]
        return sum(sizes[:f]) <= share * sum(sizes)

    low, high = 1, largest[0]
    # ``holds`` is true up to the cap sought and false beyond it.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
