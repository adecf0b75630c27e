"""How much of a round's step the holdout set bears.

Whoever holds half of the weight or more decides how long an update is by the median, and sends
ten times an honest one: it helps the holdout set at first, so no test of direction is against it,
and the model is thrown far beyond where the loss rises again. So the step is tried on the
validation part before it is taken, and halved where that rises: a backtracking line search
(Armijo, Pacific J. Math. 1966) that leaves steps alone which only fail to descend, because on a
finite holdout set those of honest hospitals now and then do.

It is done twice in a round: with the hospitals' common step, before they are scored along it, and
with the change to the new model itself, once that is made.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from matl_common.tensors import Float32Vector

Float64Array = NDArray[np.float64]

RISE_BORNE: Final = 0.1
"""Nats of mean cross-entropy that a step may cost: a tenth of the true labels' likelihood."""
ERRORS_BORNE: Final = 2.0
"""Standard errors, over images, within which a rise may be the holdout set's chance."""
CHANCE_BORNE: Final = 1.0
"""Nats beyond which no rise is: a few images with enormous losses make the errors as large."""
HALVINGS: Final = 5
"""After which the least of the steps that were tried is taken, whatever it costs."""
LOOKAHEAD: Final = 2.0
"""Updates are scored along so many times what is taken, where the common step is as long: a step
that is cut for all would hide whose harm shows only behind the cut."""

Losses = Callable[[Float32Vector], Float64Array]
"""Of each validation image at the base model plus a change; finite."""


def try_step(
    step: Float32Vector | None, *, before: Float64Array, losses: Losses
) -> tuple[float, Float32Vector | None]:
    """How much of the common step to take, and along what of it to score.

    Args:
        step: as of ``scoring.path``; ``None`` for none, which is taken whole.
        before: loss of each validation image at the base model, finite.
        losses: after a change.
    """
    if step is None:
        return 1.0, None
    reach = try_change(step, before=before, losses=losses)
    share = min(1.0, LOOKAHEAD * reach)
    return reach, step if share == 1.0 else np.float32(share) * step


def try_change(change: Float32Vector, *, before: Float64Array, losses: Losses) -> float:
    """How much of a change of the model to take; arguments as those of ``try_step``."""
    # A hostile one may overflow; its losses then count as the worst there are.
    with np.errstate(over="ignore", invalid="ignore"):
        return reach_of(before, lambda share: losses(np.float32(share) * change))


def reach_of(before: Float64Array, after: Callable[[float], Float64Array]) -> float:
    """How much of a step to take: all of it, or the power of ½ after which the loss is least.

    Args:
        before: loss of each validation image at the base model, finite.
        after: the same images' after that much of the step, finite.

    Returns:
        1, unless the whole step costs more than ``RISE_BORNE`` and more than ``ERRORS_BORNE``
        standard errors of the difference, or more than ``CHANCE_BORNE``; at least 2 to the power
        of minus ``HALVINGS``.
    """
    rise = after(1.0) - before
    error = float(rise.std()) / math.sqrt(len(rise))
    chance = min(CHANCE_BORNE, ERRORS_BORNE * error)
    if float(rise.mean()) <= max(RISE_BORNE, chance):
        return 1.0
    shorter = [0.5**halvings for halvings in range(1, HALVINGS + 1)]
    # The first of several equal ones, and so the longest.
    return min(shorter, key=lambda share: float(after(share).mean()))
