"""Rules that choose updates by their distances from one another. They ignore weights.

Scores tie: Krum's of two updates that are each other's only neighbour, MDA's of two subsets
with the same farthest pair. Then the one with less distance in all is better, so that the
order in which updates came decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice
from math import comb

import numpy as np
from numpy.typing import NDArray

from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Gram
from matl_coordinator.core.robust.plan import MeanAroundMedian, Plan
from matl_coordinator.core.robust.rules import check_rows, mean_of, unmixed

MDA_MOST_PAIRS = 100_000_000
"""Distances MDA may look at; some seconds."""

# Of the products or distances within subsets: 32 MB.
_NUMBERS_AT_ONCE = 4_000_000


def krum(gram: Gram, *, f: int, extra_neighbours: int = 0) -> Plan:
    """The update nearest its neighbours, Krum (Blanchard et al., NeurIPS 2017).

    argmin_i Σ ‖x_i − x_j‖² over the n − f − 2 other updates j nearest i. Needs n > 2f + 2.

    Args:
        gram: the round.
        f: hostile updates.
        extra_neighbours: neighbours counted beyond the paper's; 1 gives ByzFL's n − f − 1.

    Raises:
        AggregationError: ``n <= 2 * f + 2``, or a value is not finite.
    """
    best = _krum_order(gram, f=f, extra_neighbours=extra_neighbours, rule="Krum")
    chosen = np.zeros(gram.n)
    chosen[best[0]] = 1.0
    return mean_of(gram, chosen)


def multi_krum(gram: Gram, *, f: int, extra_neighbours: int = 0) -> Plan:
    """The mean of the n − f updates with the best Krum scores (Blanchard et al., 2017).

    Needs n > 2f + 2.

    Raises:
        AggregationError: ``n <= 2 * f + 2``, or a value is not finite.
    """
    best = _krum_order(gram, f=f, extra_neighbours=extra_neighbours, rule="Multi-Krum")
    chosen = np.zeros(gram.n)
    chosen[best[: gram.n - f]] = 1.0
    return mean_of(gram, chosen)


def mda(gram: Gram, *, f: int) -> Plan:
    """Minimum-diameter averaging, MDA (El Mhamdi et al., ICML 2018). Needs n > 2f.

    The mean of the n − f updates whose largest distance from one another is least. Looks
    at every subset, so n is bounded; see ``mda_most_n``.

    Raises:
        AggregationError: ``n <= 2 * f``, too many subsets, or a value is not finite.
    """
    check_rows(gram, minimum=2 * f + 1, rule=f"MDA with f = {f}")
    if gram.n > (most := mda_most_n(f)):
        raise AggregationError(
            f"MDA with f = {f} handles at most {most} updates; {gram.n} were admitted"
        )
    squared = gram.squared_distances()
    best, least = np.arange(gram.n - f), (np.inf, np.inf)
    for subsets in subsets_of(gram.n, leaving_out=f):
        within = squared[subsets[:, :, None], subsets[:, None, :]]
        diameters, sums = within.max(axis=(1, 2)), within.sum(axis=(1, 2))
        first = int(np.lexsort((sums, diameters))[0])
        if (found := (float(diameters[first]), float(sums[first]))) < least:
            best, least = subsets[first], found
    chosen = np.zeros(gram.n)
    chosen[best] = 1.0
    return mean_of(gram, chosen)


def mda_most_n(f: int) -> int:
    """The most updates of which MDA will search all subsets."""
    return most_searchable(f, limit=MDA_MOST_PAIRS, power=2)


def bulyan(gram: Gram, *, f: int) -> Plan:
    """Krum's choices, then the mean around the median, Bulyan (El Mhamdi et al., ICML 2018).

    Krum chooses one update after another among those left until θ = n − 2f are chosen; in
    each coordinate, the mean of the θ − 2f of their values nearest the median. Needs
    n > 4f + 2.

    Raises:
        AggregationError: ``n <= 4 * f + 2``, or a value is not finite.
    """
    check_rows(gram, minimum=4 * f + 3, rule=f"Bulyan with f = {f}")
    squared = gram.squared_distances()
    left = list(range(gram.n))
    chosen: list[int] = []
    for _ in range(gram.n - 2 * f):
        # So few are left at the end that Krum's count of neighbours would be 0.
        neighbours = max(1, len(left) - f - 2)
        best = _by_nearness(squared[np.ix_(left, left)], neighbours)
        chosen.append(left.pop(int(best[0])))
    return Plan(gram.row_names, unmixed(gram)[sorted(chosen)], MeanAroundMedian(gram.n - 4 * f))


def subsets_of(n: int, *, leaving_out: int) -> Iterator[NDArray[np.int64]]:
    """All subsets of ``n - leaving_out`` of n indices in lexicographic order, some at a time."""
    size = n - leaving_out
    every = combinations(range(n), size)
    while some := list(islice(every, max(1, _NUMBERS_AT_ONCE // size**2))):
        yield np.array(some, dtype=np.int64).reshape(len(some), size)


def most_searchable(f: int, *, limit: int, power: int) -> int:
    """The largest n above 2f with C(n, f) (n − f)^power ≤ limit; 2f where there is none."""
    n = 2 * f
    # Without a hostile update there is one subset, whatever the limit on many.
    while comb(n + 1, f) * (n + 1 - f) ** power <= limit:
        n += 1
    return n


def _krum_order(gram: Gram, *, f: int, extra_neighbours: int, rule: str) -> NDArray[np.intp]:
    check_rows(gram, minimum=2 * f + 3, rule=f"{rule} with f = {f}")
    return _by_nearness(gram.squared_distances(), gram.n - f - 2 + extra_neighbours)


def _by_nearness(squared: Float64Array, neighbours: int) -> NDArray[np.intp]:
    """Indices by the sum of squared distances from the nearest others, least first."""
    others = squared.copy()
    np.fill_diagonal(others, np.inf)
    # The diagonal comes last; a lone update has nothing before it.
    nearest = np.sort(others, axis=1)[:, : len(squared) - 1]
    return np.lexsort((nearest.sum(axis=1), nearest[:, :neighbours].sum(axis=1)))
