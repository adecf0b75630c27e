"""What a rule and a pre-aggregation are, how they compose, and what every rule refuses.

``n`` is the number of updates and ``f`` the number of them that may be hostile.
Every rule states the ``n`` it needs, refuses fewer, and refuses a round with a value
that is not finite. The rules stand in ``means``, ``coordinatewise``, ``distances``,
``centres``, ``spectral``, ``rooted``, ``similarity`` and ``matl``, the pre-aggregations
in ``preaggregation``. None of them knows about trust, files or models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from matl_common.ids import NodeId
from matl_coordinator.core.robust.gram import (
    AggregationError,
    Float64Array,
    Gram,
    PrivacyNoise,
    RowFacts,
)
from matl_coordinator.core.robust.plan import Identity, Plan

Rule = Callable[[Gram], Plan]
PreAggregation = Callable[[Gram], Float64Array]
"""Returns a matrix of shape ``(n', n + q)``: each new row as a mixture of the old ones."""


def compose(gram: Gram, pre: PreAggregation, rule: Rule) -> Plan:
    """Apply ``rule`` to the rows ``pre`` makes, as one plan over the original rows.

    Mixed rows keep nodes, weights and history when there are as many as before; otherwise
    they are anonymous, weigh the same and have no history. Extra rows pass unchanged.
    """
    check_rows(gram, minimum=1, rule="pre-aggregation")
    mixing = pre(gram)
    plan = rule(_mixed(gram, mixing))
    return Plan(gram.row_names, plan.mixing @ _lifted(gram, mixing), plan.reduction)


def check_rows(gram: Gram, *, minimum: int, rule: str) -> None:
    """Refuse what no rule may aggregate.

    Raises:
        AggregationError: fewer than ``minimum`` updates, or a value that is not finite.
    """
    if gram.n < minimum:
        raise AggregationError(f"{rule} needs at least {minimum} updates; {gram.n} were admitted")
    if bad := gram.non_finite_nodes():
        raise AggregationError(f"{rule}: the update of {', '.join(bad)} is not finite; exclude it")
    if not np.isfinite(gram.matrix).all():
        raise AggregationError(f"{rule}: the Gram matrix is not finite")


def shares_of(gram: Gram, *, rule: str) -> Float64Array:
    """The weights of the updates, scaled to sum to 1.

    Raises:
        AggregationError: every weight is 0.
    """
    total = gram.weights.sum()
    if not total > 0:
        raise AggregationError(f"{rule}: every update has weight 0; hold the round")
    shares: Float64Array = gram.weights / total
    return shares


def mean_of(gram: Gram, chosen: Float64Array) -> Plan:
    """The mean of the updates with these weights, shape ``(n,)``, which are not all 0."""
    return mixture_of(gram, chosen / chosen.sum())


def mixture_of(gram: Gram, coefficients: Float64Array) -> Plan:
    """One mixed row; coefficients over the updates, or over all rows."""
    mixing = np.zeros((1, len(gram.row_names)))
    mixing[0, : len(coefficients)] = coefficients
    return Plan(gram.row_names, mixing, Identity())


def unmixed(gram: Gram) -> Float64Array:
    """The mixing matrix that leaves every update as it is."""
    return np.eye(gram.n, len(gram.row_names))


def _lifted(gram: Gram, mixing: Float64Array) -> Float64Array:
    return np.vstack([mixing, np.eye(len(gram.row_names))[gram.n :]])


def _mixed(gram: Gram, mixing: Float64Array) -> Gram:
    rows = mixing.shape[0]
    lifted = _lifted(gram, mixing)
    return replace(
        gram,
        matrix=lifted @ gram.matrix @ lifted.T,
        # Bad facts were refused; how a mixture's coordinates are distributed is not known.
        facts=(RowFacts(),) * rows + gram.facts[gram.n :],
        reference=_mixed_reference(gram, rows),
        noise=_mixed_noise(gram, mixing),
        subsets=tuple(lifted @ each @ lifted.T for each in gram.subsets),
        # History tells which hospitals act alike, whatever becomes of this round's rows.
        nodes=gram.nodes if rows == gram.n else _anonymous(rows),
        weights=gram.weights if rows == gram.n else np.ones(rows),
        history=gram.history if rows == gram.n else None,
    )


def _anonymous(rows: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(f"mixed-{row}") for row in range(rows))


def _mixed_reference(gram: Gram, rows: int) -> Float64Array | None:
    """The reference over the new rows; None where it cannot be expressed in them.

    Root gradients are extra rows and pass unchanged. A reference that uses updates does not.
    """
    if gram.reference is None or gram.reference[: gram.n].any():
        return None
    return np.concatenate([np.zeros(rows), gram.reference[gram.n :]])


def _mixed_noise(gram: Gram, mixing: Float64Array) -> PrivacyNoise | None:
    """Independent noises add in variance, signals at most in length."""
    if gram.noise is None:
        return None
    own = np.abs(mixing[:, : gram.n])
    return PrivacyNoise(
        std=np.sqrt(own**2 @ gram.noise.std**2),
        signal_bound=gram.noise.signal_bound * float(own.sum(axis=1).max()),
    )
