"""Centres of the round found by iteration: geometric median and centred clipping."""

from __future__ import annotations

import numpy as np

from matl_coordinator.core.robust.gram import (
    PREVIOUS_AGGREGATE,
    AggregationError,
    Float64Array,
    Gram,
)
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.rules import check_rows, mixture_of, shares_of


def geometric_median(gram: Gram, *, f: int = 0, steps: int = 100, smoothing: float = 1e-6) -> Plan:
    """argmin_z Σ w_i ‖z − x_i‖, RFA (Pillutla et al., IEEE TSP 2022), by Weiszfeld's steps.

    Needs n > 2f; what is hostile must hold less than half of the weight.

    Args:
        gram: the round; its weights count.
        f: hostile updates.
        steps: at most so many; fewer where nothing changes any more.
        smoothing: distances below this part of the median distance from the start count
            as that part.

    Raises:
        AggregationError: ``n <= 2 * f``, no positive weight, or a value is not finite.
    """
    check_rows(gram, minimum=2 * f + 1, rule=f"geometric median with f = {f}")
    shares = shares_of(gram, rule="geometric median")
    start = central_start(gram, shares)
    floor = smoothing * float(np.median(gram.distances_to(start)[shares > 0]))
    return mixture_of(gram, weiszfeld(gram, shares, start=start, steps=steps, floor=floor))


def weiszfeld(
    gram: Gram, shares: Float64Array, *, start: Float64Array, steps: int, floor: float
) -> Float64Array:
    """Weiszfeld's steps z ← Σ (w_i/d_i) x_i / Σ (w_i/d_i), d_i = max(floor, ‖x_i − z‖).

    Args:
        gram: the round.
        shares: weights of the updates, summing to 1.
        start: coefficients of the first z over all rows.
        steps: at most so many.
        floor: keeps a step finite where z meets an update; at least 0.

    Returns:
        Coefficients of the last z over all rows.
    """
    z = start
    for _ in range(steps):
        distances = gram.distances_to(z)
        met = distances <= floor
        if floor == 0.0 and met.any():
            # Only where more than half of the updates are one point, and so is the start.
            return z
        pull = shares / np.where(met, floor, distances)
        following = np.zeros_like(z)
        following[: gram.n] = pull / pull.sum()
        if np.abs(following - z).max() <= 1e-15:
            return following
        z = following
    return z


def central_start(gram: Gram, shares: Float64Array) -> Float64Array:
    """The mean of the nearest updates around the medoid that hold more than half of the weight.

    The medoid is the update of least Σ w_j ‖x_i − x_j‖. Unlike the mean it stays among the
    honest updates whatever a minority sends, and unlike 0 it moves with the updates. The
    result is on an update only where that holds more than half of the weight.

    Returns:
        Coefficients over all rows.
    """
    distances = np.sqrt(gram.squared_distances())
    counted = np.flatnonzero(shares > 0)
    medoid = counted[np.argmin((distances @ shares)[counted])]
    around = distances[medoid, counted]
    order = np.argsort(around, kind="stable")
    half = int(np.searchsorted(np.cumsum(shares[counted[order]]), 0.5 * (1.0 + 1e-9)))
    # Updates as far as the last that is needed come in too, so that their order says nothing.
    nearest = counted[around <= around[order[half]]]
    start = np.zeros(gram.matrix.shape[0])
    start[nearest] = shares[nearest]
    start /= start.sum()
    return start


def centered_clipping(gram: Gram, *, tau: float = 0.0, steps: int = 1) -> Plan:
    """Steps around the last aggregate, centred clipping (Karimireddy et al., ICML 2021).

    v ← v + (1/n) Σ (x_i − v) min(1, τ/‖x_i − v‖), from v = the last aggregate, or 0 where
    the round has none. Proven for f/n below about a tenth. Needs n > 0; ignores weights.

    Args:
        gram: the round; ``PREVIOUS_AGGREGATE`` among its extra rows is where v starts.
        tau: clipping radius, in the norm of the updates; 0 takes the median distance
            from v, anew in each step.
        steps: how many.

    Raises:
        AggregationError: no update, or a value is not finite.
    """
    check_rows(gram, minimum=1, rule="centred clipping")
    v = np.zeros(len(gram.row_names))
    if PREVIOUS_AGGREGATE in gram.extras:
        row = gram.n + gram.extras.index(PREVIOUS_AGGREGATE)
        if gram.facts[row].non_finite:
            raise AggregationError("centred clipping: the previous aggregate is not finite")
        v[row] = 1.0
    shares = np.full(gram.n, 1.0 / gram.n)
    for _ in range(steps):
        distances = gram.distances_to(v)
        v = clipping_step(gram, shares, v, radius=tau or float(np.median(distances)))
    return mixture_of(gram, v)


def clipping_step(
    gram: Gram, shares: Float64Array, v: Float64Array, *, radius: float
) -> Float64Array:
    """v + Σ w_i (x_i − v) min(1, radius/‖x_i − v‖), as coefficients over all rows."""
    distances = gram.distances_to(v)
    kept = np.divide(radius, distances, out=np.ones_like(distances), where=distances > radius)
    parts = shares * kept
    moved: Float64Array = v * (1.0 - parts.sum())
    moved[: gram.n] += parts
    return moved
