"""How much of a round's step the holdout set bears.

Whoever holds half of the weight or more decides how long an update is by the median, and sends
ten times an honest one: it helps the holdout set at first, so no test of direction is against it,
and the model is thrown far beyond where the loss rises again. So the step is tried on the
validation part before it is taken, and halved where that rises: a backtracking line search
(Armijo, Pacific J. Math. 1966) that leaves steps alone which only fail to descend, because on a
finite holdout set those of honest hospitals now and then do.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

RISE_BORNE: Final = 0.1
"""Nats of mean cross-entropy that a step may cost: a tenth of the true labels' likelihood."""
ERRORS_BORNE: Final = 2.0
"""Standard errors, over images, within which a rise may be the holdout set's chance."""
HALVINGS: Final = 5
"""After which the least of the steps that were tried is taken, whatever it costs."""


def reach_of(before: Float64Array, after: Callable[[float], Float64Array]) -> float:
    """How much of a step to take: all of it, or the power of ½ after which the loss is least.

    Args:
        before: loss of each validation image at the base model, finite.
        after: the same images' after that much of the step, finite.

    Returns:
        1, unless the whole step costs more than ``RISE_BORNE`` and more than ``ERRORS_BORNE``
        standard errors of the difference; at least 2 to the power of minus ``HALVINGS``.
    """
    rise = after(1.0) - before
    error = float(rise.std()) / math.sqrt(len(rise))
    if float(rise.mean()) <= max(RISE_BORNE, ERRORS_BORNE * error):
        return 1.0
    shorter = [0.5**halvings for halvings in range(1, HALVINGS + 1)]
    # The first of several equal ones, and so the longest.
    return min(shorter, key=lambda share: float(after(share).mean()))
