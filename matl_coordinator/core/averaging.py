"""Which rounds' models a released one is the mean of.

Under noise the last iterate carries that of the last rounds in full; the mean over the second
half of a run takes some of it out and, being computed from what is public already, costs no
privacy (Polyak and Juditsky, SIAM J. Control Optim. 1992; De et al., arXiv 2204.13650). It
also lags behind a model that still learns. Training never goes on from a mean.
"""

from __future__ import annotations


def models_before(rounds_released: int, *, average_from: int) -> int:
    """How many earlier rounds' models the next release averages with its own.

    Rounds that released nothing do not count, so nobody has to know which they were.

    Args:
        rounds_released: up to now.
        average_from: as in the study plan.

    Returns:
        0 where the round's own model is released as it is.
    """
    return max(0, rounds_released + 1 - average_from) if average_from else 0
