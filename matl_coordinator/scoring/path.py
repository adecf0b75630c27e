"""What each update does to the holdout loss along the step that a round may take.

The gradient at the base model alone tells what an update does to first order, and an attacker
may hide behind it whatever shows only further on. The mean of the gradients at both ends of the
hospitals' common step divides the holdout loss that this step gains or costs among them: by the
trapezoidal rule, to second order,

    L(θ) - L(θ + Σ w x) ≈ Σ w ⟨x, r̄⟩,   r̄ = -½ (∇L(θ) + ∇L(θ + Σ w x)).

This is the Aumann-Shapley value of each update (Aumann & Shapley, "Values of Non-Atomic Games",
1974; for networks: Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks", ICML 2017).
What harms the holdout set on the way is somebody's, whatever it looks like at the start.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from matl_common.ids import NodeId
from matl_common.tensors import Float32Vector

_BLOCK: Final = 1 << 20
_TINY: Final = 1e-300


def common_step(
    read: Callable[[NodeId], Float32Vector], weights: Mapping[NodeId, float]
) -> Float32Vector | None:
    """The weighted mean of a round's updates, none of which is longer than the median one.

    Values that are not finite count as 0. The sum is taken in the order of the names.

    Args:
        read: the update of a hospital, all of one length; asked twice for each, and only one is
            held at a time.
        weights: what each counts for, at least 0.

    Returns:
        ``None`` where nobody counts.
    """
    counted = sorted(node for node, weight in weights.items() if weight > 0.0)
    if not counted:
        return None
    total = sum(weights[node] for node in counted)
    norms = {node: _norm(read(node)) for node in counted}
    longest = float(np.median(list(norms.values())))
    step: NDArray[np.float64] | None = None
    for node in counted:
        update = read(node)
        factor = weights[node] / total * (longest / max(longest, norms[node], _TINY))
        step = np.zeros(len(update)) if step is None else step
        for block in blocks_of(len(update)):
            step[block] += factor * _finite(update[block])
    assert step is not None, "somebody counts"
    return step.astype(np.float32)


Descent = Callable[[Float32Vector | None], Float32Vector]
"""Minus the gradient over some part of the holdout set, at the base model plus an update, or at the
base model."""


def descent_along(descent: Descent, step: Float32Vector | None) -> Float32Vector:
    """The mean of minus the gradients at both ends of a step.

    Args:
        descent: of one part of the holdout set.
        step: ``None`` for none.

    Returns:
        Of the base model alone, where a step leads so far that the gradient is not finite.
    """
    start = descent(None)
    if step is None:
        return start
    with np.errstate(over="ignore", invalid="ignore"):
        end = descent(step)
    if not np.isfinite(end).all():
        return start
    mean: Float32Vector = ((start.astype(np.float64) + end) / 2.0).astype(np.float32)
    return mean


def _norm(update: Float32Vector) -> float:
    squares = (float(np.square(_finite(update[block])).sum()) for block in blocks_of(len(update)))
    return math.sqrt(math.fsum(squares))


def blocks_of(elements: int) -> Iterator[slice]:
    """An update of a large network need not be held twice."""
    for start in range(0, elements, _BLOCK):
        yield slice(start, start + _BLOCK)


def _finite(values: Float32Vector) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    wide[~np.isfinite(wide)] = 0.0
    return wide
