"""Aggregation rules: from the geometry of a round to a plan for its coordinates.

``n`` is the number of updates and ``f`` the number of them that may be hostile.
Every rule states the ``n`` it needs, refuses fewer, and refuses a round with a
value that is not finite. Nothing here knows about trust, files or models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from matl_common.ids import NodeId
from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Gram, RowFacts
from matl_coordinator.core.robust.plan import (
    CoordinateMedian,
    CoordinateTrimmedMean,
    Identity,
    Plan,
)

Rule = Callable[[Gram], Plan]
PreAggregation = Callable[[Gram], Float64Array]
"""Returns a matrix of shape ``(n', n + q)``: each new row as a mixture of the old ones."""


def weighted_mean(gram: Gram) -> Plan:
    """Mean with the weights of the Gram value, FedAvg (McMahan et al., AISTATS 2017).

    Needs n > 0. Tolerates no hostile update.

    Raises:
        AggregationError: no update, no positive weight, or a value is not finite.
    """
    _check_rows(gram, minimum=1, rule="weighted mean")
    total = gram.weights.sum()
    if not total > 0:
        raise AggregationError("weighted mean: every update has weight 0; hold the round")
    mixing = np.zeros((1, len(gram.row_names)))
    mixing[0, : gram.n] = gram.weights / total
    return Plan(gram.row_names, mixing, Identity())


def clip_to_median_norm(gram: Gram, *, factor: float) -> Float64Array:
    """Pre-aggregation: scale every update down to ``factor`` times the median norm.

    Needs n > 0; bounds what one update can add while fewer than half are hostile. Only
    updates of positive weight count for the median, so that an excluded one cannot
    move the bound.
    """
    _check_rows(gram, minimum=1, rule="clipping")
    counted = gram.norms[gram.weights > 0]
    bound = factor * float(np.median(counted)) if counted.size else 0.0
    norms = gram.norms
    scale = np.minimum(1.0, np.divide(bound, norms, out=np.ones_like(norms), where=norms > 0))
    mixing = np.zeros((gram.n, len(gram.row_names)))
    np.fill_diagonal(mixing, scale)
    return mixing


def clipped_weighted_mean(gram: Gram, *, factor: float) -> Plan:
    """Weighted mean of updates clipped to ``factor`` times their median norm.

    Needs n > 2f to bound the length of f hostile updates; their direction stays free.

    Raises:
        AggregationError: as ``weighted_mean``.
    """
    return compose(gram, lambda rows: clip_to_median_norm(rows, factor=factor), weighted_mean)


def coordinate_median(gram: Gram) -> Plan:
    """Coordinate-wise median (Yin et al., ICML 2018). Needs n > 2f; ignores weights.

    Raises:
        AggregationError: no update, or a value is not finite.
    """
    _check_rows(gram, minimum=1, rule="coordinate median")
    return Plan(gram.row_names, _unmixed(gram), CoordinateMedian())


def trimmed_mean(gram: Gram, *, f: int) -> Plan:
    """Coordinate-wise trimmed mean, TrMean (Yin et al., ICML 2018). Needs n > 2f.

    Ignores weights.

    Raises:
        AggregationError: ``n <= 2 * f``, or a value is not finite.
    """
    _check_rows(gram, minimum=2 * f + 1, rule=f"trimmed mean with f = {f}")
    return Plan(gram.row_names, _unmixed(gram), CoordinateTrimmedMean(f))


def compose(gram: Gram, pre: PreAggregation, rule: Rule) -> Plan:
    """Apply ``rule`` to the rows ``pre`` makes, as one plan over the original rows.

    The mixed rows keep nodes and weights when there are as many as before; otherwise
    they are anonymous and weigh the same. Extra rows pass through unchanged.
    """
    _check_rows(gram, minimum=1, rule="pre-aggregation")
    mixing = pre(gram)
    lifted = np.vstack([mixing, np.eye(len(gram.row_names))[gram.n :]])
    plan = rule(_mixed(gram, lifted, rows=mixing.shape[0]))
    return Plan(gram.row_names, plan.mixing @ lifted, plan.reduction)


def _mixed(gram: Gram, lifted: Float64Array, *, rows: int) -> Gram:
    matrix = lifted @ gram.matrix @ lifted.T
    if rows == gram.n:
        return replace(gram, matrix=matrix)
    # Facts were refused above if they were bad; a mixture of sound rows is sound.
    return replace(
        gram,
        matrix=matrix,
        nodes=tuple(NodeId(f"mixed-{row}") for row in range(rows)),
        weights=np.ones(rows),
        facts=(RowFacts(),) * lifted.shape[0],
    )


def _unmixed(gram: Gram) -> Float64Array:
    return np.eye(gram.n, len(gram.row_names))


def _check_rows(gram: Gram, *, minimum: int, rule: str) -> None:
    if gram.n < minimum:
        raise AggregationError(f"{rule} needs at least {minimum} updates; {gram.n} were admitted")
    if bad := gram.non_finite_nodes():
        raise AggregationError(f"{rule}: the update of {', '.join(bad)} is not finite; exclude it")
    if not np.isfinite(gram.matrix).all():
        raise AggregationError(f"{rule}: the Gram matrix is not finite")
