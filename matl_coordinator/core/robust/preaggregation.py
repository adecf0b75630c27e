"""What is done to the updates before a rule: clipping, mixing neighbours, bucketing."""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from matl_coordinator.core.robust.gram import Float64Array, Gram
from matl_coordinator.core.robust.rules import check_rows


def clip_to_median_norm(gram: Gram, *, factor: float = 1.5) -> Float64Array:
    """Scale every update down to ``factor`` times the median norm.

    Needs n > 0; bounds what one update can add while fewer than half are hostile. Only
    updates of positive weight count for the median, so that an excluded one cannot
    move the bound.

    Raises:
        AggregationError: no update, or a value is not finite.
    """
    check_rows(gram, minimum=1, rule="clipping")
    counted = gram.norms[gram.weights > 0]
    bound = factor * float(np.median(counted)) if counted.size else 0.0
    return scaled_down(gram, np.full(gram.n, bound))


def arc(gram: Gram, *, f: int) -> Float64Array:
    """Adaptive robust clipping, ARC (Allouah et al., arXiv 2405.14432). Needs n > f.

    The ⌊2 (f/n) (n − f)⌋ longest updates are scaled down to the longest of the others.

    Raises:
        AggregationError: ``n <= f``, or a value is not finite.
    """
    check_rows(gram, minimum=f + 1, rule=f"ARC with f = {f}")
    clipped = 2 * f * (gram.n - f) // gram.n
    bound = float(np.sort(gram.norms)[gram.n - clipped - 1])
    return scaled_down(gram, np.full(gram.n, bound))


def nnm(gram: Gram, *, f: int) -> Float64Array:
    """Nearest-neighbour mixing, NNM (Allouah et al., AISTATS 2023). Needs n > 2f.

    Each update becomes the mean of the n − f nearest to it, itself among them.

    Raises:
        AggregationError: ``n <= 2 * f``, or a value is not finite.
    """
    check_rows(gram, minimum=2 * f + 1, rule=f"NNM with f = {f}")
    nearest = np.argsort(gram.squared_distances(), axis=1, kind="stable")[:, : gram.n - f]
    mixing = np.zeros((gram.n, len(gram.row_names)))
    np.put_along_axis(mixing, nearest, 1.0 / (gram.n - f), axis=1)
    return mixing


def bucketing(gram: Gram, *, size: int = 2, seed: int = 0) -> Float64Array:
    """Means of buckets of ``size`` updates drawn at random (Karimireddy et al., ICLR 2022).

    Needs n > 0. Hostile updates spoil up to f of the ⌈n/size⌉ buckets, so the rule behind
    must bear f among so many. The draw follows from the seed, the nodes and the round's
    norms: the same round gives the same buckets in any order, another round others.

    Raises:
        AggregationError: no update, or a value is not finite.
    """
    check_rows(gram, minimum=1, rule="bucketing")
    salt = sha256(f"{seed}:".encode() + np.sort(gram.norms).tobytes()).digest()
    drawn = sorted(range(gram.n), key=lambda row: sha256(salt + gram.nodes[row].encode()).digest())
    buckets = [drawn[start : start + size] for start in range(0, gram.n, size)]
    mixing = np.zeros((len(buckets), len(gram.row_names)))
    for row, bucket in enumerate(buckets):
        mixing[row, bucket] = 1.0 / len(bucket)
    return mixing


def scaled_down(gram: Gram, bounds: Float64Array) -> Float64Array:
    """The mixing matrix that scales each update down to its bound, shape ``(n,)``."""
    norms = gram.norms
    scale = np.divide(bounds, norms, out=np.ones_like(norms), where=norms > bounds)
    mixing = np.zeros((gram.n, len(gram.row_names)))
    np.fill_diagonal(mixing, scale)
    return mixing
