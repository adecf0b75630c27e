"""Rules that look for the direction in which the updates spread most. They ignore weights.

A covariance is never formed: its eigenvalues are those of the centred Gram matrix.
"""

from __future__ import annotations

import numpy as np

from matl_coordinator.core.robust.distances import most_searchable, subsets_of
from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Gram
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.rules import check_rows, mean_of

SMEA_MOST_PRODUCTS = 1_000_000_000
"""Subsets times the cube of their size that SMEA may solve; some seconds."""

_NEGLIGIBLE = 1e-12


def smea(gram: Gram, *, f: int) -> Plan:
    """Smallest maximum eigenvalue averaging, SMEA (Allouah et al., ICML 2023). Needs n > 2f.

    The mean of the n − f updates whose covariance has the least largest eigenvalue, found
    exactly. Looks at every subset, so n is bounded; see ``smea_most_n``.

    Raises:
        AggregationError: ``n <= 2 * f``, too many subsets, or a value is not finite.
    """
    check_rows(gram, minimum=2 * f + 1, rule=f"SMEA with f = {f}")
    if gram.n > (most := smea_most_n(f)):
        raise AggregationError(
            f"SMEA with f = {f} handles at most {most} updates; {gram.n} were admitted"
        )
    inner = gram.matrix[: gram.n, : gram.n]
    best, least = np.arange(gram.n - f), np.inf
    for subsets in subsets_of(gram.n, leaving_out=f):
        blocks = inner[subsets[:, :, None], subsets[:, None, :]]
        spreads = np.linalg.eigvalsh(_centred(blocks))[:, -1]
        if spreads.min() < least:
            least = float(spreads.min())
            best = subsets[np.argmin(spreads)]
    chosen = np.zeros(gram.n)
    chosen[best] = 1.0
    return mean_of(gram, chosen)


def smea_most_n(f: int) -> int:
    """The most updates of which SMEA will search all subsets."""
    return most_searchable(f, limit=SMEA_MOST_PRODUCTS, power=3)


def caf(gram: Gram, *, f: int) -> Plan:
    """Covariance-bound agnostic filter, CAF (Allouah et al., ICML 2025). Needs n > 2f.

    From c = 1, while Σ c > n − 2f: c_i ← c_i (1 − τ_i / max τ), with τ_i = ⟨x_i − μ_c, v⟩²
    for v the first principal direction around the weighted mean μ_c. The μ_c of least
    variance along its v wins. The maximum runs over updates still counted: one that is
    out already, and may lie anywhere, cannot shield the rest. So each step drops at least
    one update and there are at most n; no variance left ends it too.

    Raises:
        AggregationError: ``n <= 2 * f``, or a value is not finite.
    """
    check_rows(gram, minimum=2 * f + 1, rule=f"CAF with f = {f}")
    inner = gram.matrix[: gram.n, : gram.n]
    counted, best, least = np.ones(gram.n), np.ones(gram.n), np.inf
    while counted.sum() > gram.n - 2 * f:
        shares = counted / counted.sum()
        spread, scores = _principal_scores(inner, shares)
        if spread < least:
            best, least = counted, spread
        # Of what is still counted: a long update that is out must not end the search.
        if spread <= _NEGLIGIBLE * float(shares @ np.diagonal(inner)):
            break
        largest = scores[counted > 0].max()
        counted = counted * np.maximum(0.0, 1.0 - scores / largest)
    return mean_of(gram, best)


def dnc(gram: Gram, *, f: int, iterations: int = 1, filter_factor: float = 1.0) -> Plan:
    """Divide and conquer, DnC (Shejwalkar & Houmansadr, NDSS 2021). Needs n > 2f.

    On each of some sets of coordinates the ``filter_factor`` · f updates that lie farthest
    from the mean along the first principal direction are dropped; the mean of those that
    no set dropped.

    Args:
        gram: the round, with Gram matrices over ``iterations`` sets of coordinates; where
            it has none, all coordinates are the only set.
        f: hostile updates.
        iterations: how many sets.
        filter_factor: c of the paper.

    Raises:
        AggregationError: ``n <= 2 * f``, fewer sets than ``iterations``, no update is
            left, or a value is not finite.
    """
    check_rows(gram, minimum=2 * f + 1, rule=f"DnC with f = {f}")
    subsets = gram.subsets[:iterations] or (gram.matrix,)
    if gram.subsets and len(subsets) < iterations:
        raise AggregationError(
            f"DnC with {iterations} iterations: {len(subsets)} sets of coordinates were measured"
        )
    dropped = min(gram.n, int(filter_factor * f))
    kept = np.ones(gram.n)
    for subset in subsets:
        inner = subset[: gram.n, : gram.n]
        _, scores = _principal_scores(inner, np.full(gram.n, 1.0 / gram.n))
        kept[np.argsort(scores, kind="stable")[gram.n - dropped :]] = 0.0
    if not kept.any():
        raise AggregationError(
            "DnC dropped every update; configure fewer iterations or a smaller filter factor"
        )
    return mean_of(gram, kept)


def _centred(inner: Float64Array) -> Float64Array:
    """Inner products around the mean of the rows; of one matrix or of a stack of them."""
    rows = inner.mean(axis=-1, keepdims=True)
    centred: Float64Array = inner - rows - np.swapaxes(rows, -1, -2)
    centred += inner.mean(axis=(-1, -2), keepdims=True)
    return centred


def _principal_scores(inner: Float64Array, shares: Float64Array) -> tuple[float, Float64Array]:
    """Variance along the first principal direction v, and ⟨x_i − μ, v⟩² for every row.

    Args:
        inner: inner products of the rows, shape ``(n, n)``.
        shares: weights of the rows for mean and covariance, summing to 1.
    """
    products = inner @ shares
    around = inner - products[:, None] - products[None, :] + shares @ products
    root = np.sqrt(shares)
    values, vectors = np.linalg.eigh(root[:, None] * around * root[None, :])
    spread = max(0.0, float(values[-1]))
    if spread == 0.0:
        return 0.0, np.zeros_like(shares)
    return spread, (around @ (root * vectors[:, -1])) ** 2 / spread
