"""Means by weight: what is used where nobody is hostile, or trust has done the work."""

from __future__ import annotations

from matl_coordinator.core.robust.gram import Gram
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.preaggregation import clip_to_median_norm
from matl_coordinator.core.robust.rules import check_rows, compose, mixture_of, shares_of


def weighted_mean(gram: Gram) -> Plan:
    """Σ w_i x_i / Σ w_i, FedAvg (McMahan et al., AISTATS 2017).

    Needs n > 0. Tolerates no hostile update.

    Raises:
        AggregationError: no update, no positive weight, or a value is not finite.
    """
    check_rows(gram, minimum=1, rule="weighted mean")
    return mixture_of(gram, shares_of(gram, rule="weighted mean"))


def clipped_weighted_mean(gram: Gram, *, factor: float = 1.5) -> Plan:
    """Weighted mean of updates clipped to ``factor`` times their median norm.

    Norm bounding (Sun et al., arXiv 1911.07963) with a bound of the round's own. Needs
    n > 2f to bound the length of f hostile updates; their direction stays free.

    Raises:
        AggregationError: as ``weighted_mean``.
    """
    return compose(gram, lambda rows: clip_to_median_norm(rows, factor=factor), weighted_mean)
