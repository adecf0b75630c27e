"""How much a hospital's size may count, so that a few large ones do not decide alone."""

from __future__ import annotations

from collections.abc import Sequence

from matl_coordinator.core.robust.gram import AggregationError


def size_cap(patients: Sequence[int], *, f: int) -> int:
    """The largest cap on a hospital's size that keeps the ``f`` largest at half the weight.

    Portnoy et al., arXiv 2004.04986: the largest U with
    Σ_{largest f} min(N, U) ≤ ½ Σ min(N, U). With f = 0 nothing is capped.

    Raises:
        AggregationError: ``2 * f >= n``, or a size below 1.
    """
    if not patients or min(patients) < 1:
        raise AggregationError("every enrolled hospital needs at least one patient")
    if not 0 <= 2 * f < len(patients):
        raise AggregationError(f"f = {f} of {len(patients)} hospitals; use less than half of them")
    largest = sorted(patients, reverse=True)

    def holds(cap: int) -> bool:
        sizes = [min(size, cap) for size in largest]
        return 2 * sum(sizes[:f]) <= sum(sizes)

    low, high = 1, largest[0]
    # ``holds`` is true up to the cap sought and false beyond it.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
