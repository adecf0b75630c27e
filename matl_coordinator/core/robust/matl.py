"""MATL's own rule: clip, find the centre, and take one clipped step from it."""

from __future__ import annotations

import math

import numpy as np

from matl_coordinator.core.robust.centres import central_start, clipping_step, weiszfeld
from matl_coordinator.core.robust.gram import Float64Array, Gram
from matl_coordinator.core.robust.means import weighted_mean
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.preaggregation import scaled_down
from matl_coordinator.core.robust.rules import (
    Rule,
    check_rows,
    compose,
    mixture_of,
    shares_of,
)

_SMOOTHING = 1e-6


def matl(gram: Gram, *, clip: float = 1.5, steps: int = 5, tau: float = 2.0) -> Plan:
    """The combining step behind trust: needs n > 0, and weights that trust has set.

    1. Updates longer than ``clip`` times the median are scaled down to that.
    2. v = their weighted geometric median, by ``steps`` steps of Weiszfeld's.
    3. v + Σ w_i (x_i − v) min(1, τ/‖x_i − v‖), τ = ``tau`` times the median of the
       distances, by weight or by number, whichever is larger.

    What is hostile must be less than half, by weight and by number: trust takes the weight
    of hospitals that go against the root set, and this rule bounds what is left of them.
    Either median is then at most the distance of an honest update. That by weight alone is
    zero where one update holds half of it, as when few are left, and v is that update: the
    others would not count at all.

    Under differential privacy an honest update is as long as its noise makes it: with
    σ ∝ 1/N that of a hospital a tenth the size is ten times longer, and a bound on its
    whole length would scale its signal down again, after its weight has. So step 1 takes
    the noise that the policy promises for an update, dσ_i², off its squared length, and
    bounds what remains by ``clip`` times the median, or the longest signal there can be.
    Weight times bound is then about the same for every hospital, as w_i ∝ N_i. Where the
    noise of the median update is longer than any signal, distances say how noisy an
    update is and not whose it is, so steps 2 and 3 are left out. Weights stay those of
    the round: w ∝ N lies between equal ones and the N² of least variance, which would
    hand the aggregate to the largest hospitals.

    Args:
        gram: the round; updates of weight 0 have no part in anything.
        clip: longest update, in medians.
        steps: of the geometric median.
        tau: radius of the last step, in medians of the distance.

    Raises:
        AggregationError: no update, no positive weight, or a value is not finite.
    """
    check_rows(gram, minimum=1, rule="matl")
    shares_of(gram, rule="matl")
    trim = weighted_mean if _noise_dominates(gram) else _trimmed(steps, tau)
    return compose(gram, lambda rows: scaled_down(rows, _bounds(rows, clip)), trim)


def _trimmed(steps: int, tau: float) -> Rule:
    def rule(gram: Gram) -> Plan:
        shares = shares_of(gram, rule="matl")
        start = central_start(gram, shares)
        floor = _SMOOTHING * float(np.median(gram.distances_to(start)[shares > 0]))
        v = weiszfeld(gram, shares, start=start, steps=steps, floor=floor)
        distances = gram.distances_to(v)
        by_number = float(np.median(distances[shares > 0]))
        radius = tau * max(weighted_median(distances, shares), by_number)
        return mixture_of(gram, clipping_step(gram, shares, v, radius=radius))

    return rule


def _bounds(gram: Gram, clip: float) -> Float64Array:
    """The longest that each update may be."""
    counted = gram.weights > 0
    if gram.noise is None:
        return np.full(gram.n, clip * float(np.median(gram.norms[counted])))
    noise = gram.elements * gram.noise.std**2
    # Unbiased for the squared length of the signal; may fall below 0 by the noise's chance.
    signal = max(0.0, float(np.median((gram.norms**2 - noise)[counted])))
    return np.sqrt(min(clip**2 * signal, gram.noise.signal_bound**2) + noise)


def _noise_dominates(gram: Gram) -> bool:
    if gram.noise is None:
        return False
    lengths = gram.noise.std[gram.weights > 0] * math.sqrt(gram.elements)
    return float(np.median(lengths)) > gram.noise.signal_bound


def weighted_median(values: Float64Array, shares: Float64Array) -> float:
    """The least value at or below which half of the weight lies."""
    order = np.argsort(values, kind="stable")
    half = np.searchsorted(np.cumsum(shares[order]), 0.5 * shares.sum() * (1.0 - 1e-9))
    return float(values[order[half]])
