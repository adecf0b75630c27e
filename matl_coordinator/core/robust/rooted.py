"""Rules that compare each update with the root gradient. They ignore weights.

The root gradient points downhill, as updates do. A round in which nobody goes its way
is refused rather than answered with the root gradient alone: a model that follows the
root set for long overfits it, and then every honest update seems to do harm.
"""

from __future__ import annotations

import math

import numpy as np

from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Gram
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.rules import check_rows, mixture_of


def fltrust(gram: Gram, *, step: float = 1.0) -> Plan:
    """Mean by cosine with the root update, FLTrust (Cao et al., NDSS 2021).

    Σ TS_i (‖r‖/‖x_i‖) x_i / Σ TS_i with TS_i = max(0, cos(x_i, r)). Needs a root gradient
    and n > 0; bears any number of hostile updates as far as the root set is clean.

    Args:
        gram: the round, with its reference.
        step: r is this times the root gradient: learning rate × steps gives it the length
            of an update that the coordinator trains itself, as in the paper.

    Raises:
        AggregationError: no reference, no update goes its way, or a value is not finite.
    """
    cosines, length = _compare(gram, rule="FLTrust")
    trust = np.maximum(cosines, 0.0)
    if not trust.sum() > 0:
        raise AggregationError("FLTrust: no update goes along the root gradient; hold the round")
    return mixture_of(gram, trust / trust.sum() * _scale_to(gram, step * length))


def zeno_plus_plus(
    gram: Gram, *, rho: float = 0.05, epsilon: float = 0.0, step: float = 1.0
) -> Plan:
    """The mean of updates that pass a test of descent, Zeno++ (Xie et al., ICML 2020).

    With x̃_i = x_i ‖r‖/‖x_i‖, i passes where ⟨r, x̃_i⟩ − ρ‖x̃_i‖² ≥ −ε‖r‖²: the paper's
    γ⟨r, x̃⟩ − ρ‖x̃‖² ≥ −γε with γ and the length of r taken into ρ and ε. The paper applies
    updates as they come; here those of a round that pass are averaged, as x̃. Needs a
    root gradient and n > 0.

    Args:
        gram: the round, with its reference.
        rho: what a unit of squared length costs.
        epsilon: how much of a loss is let pass.
        step: as in ``fltrust``.

    Raises:
        AggregationError: no reference, no update passes, or a value is not finite.
    """
    cosines, length = _compare(gram, rule="Zeno++")
    passed = ((cosines - rho >= -epsilon) & (gram.norms > 0)).astype(np.float64)
    if not passed.any():
        raise AggregationError("Zeno++: no update passes the test of descent; hold the round")
    return mixture_of(gram, passed / passed.sum() * _scale_to(gram, step * length))


def _compare(gram: Gram, *, rule: str) -> tuple[Float64Array, float]:
    """Cosine of each update with the root gradient, and the length of that."""
    check_rows(gram, minimum=1, rule=rule)
    reference = gram.reference
    if reference is None:
        raise AggregationError(f"{rule} needs a root gradient; configure a holdout set")
    if any(gram.facts[row].non_finite for row in np.flatnonzero(reference)):
        raise AggregationError(f"{rule}: a root gradient is not finite")
    along = gram.matrix @ reference
    length = math.sqrt(max(0.0, float(reference @ along)))
    if not length > 0:
        raise AggregationError(f"{rule}: the root gradient is 0; hold the round")
    products, lengths = along[: gram.n], gram.norms * length
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.clip(cosines, -1.0, 1.0), length


def _scale_to(gram: Gram, length: float) -> Float64Array:
    norms = gram.norms
    return np.divide(length, norms, out=np.zeros_like(norms), where=norms > 0)
