"""What hospitals say of a round's base model on their own patients.

Each says how many it gets right, with noise that its privacy ledger was charged for. Nobody can
check that: it is shown to operators and kept in the log, and no decision rests on it, not on
who is trusted, on weights, or on whether an update counts. A number that cannot be what it
says is kept with a doubt in place of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from matl_common.protocol import NoisedCount

NOISE_REACH = 6.0
"""Standard deviations; an honest count is further out once in 10⁹ times."""
ROUNDING = 1.1
"""Enrolled numbers of patients are rounded: how many times as many there may be."""


@dataclass(frozen=True, slots=True)
class HospitalEvaluation:
    """One hospital's noised count of patients whose level the base model tells."""

    correct: float | None
    """With noise, so that it may be negative; ``None`` where it was no possible number."""
    stddev: float
    """Of the noise, in patients."""
    patients: int
    """Enrolled, not what the hospital says."""
    doubt: str = ""
    """Why there is no number."""


def take_evaluation(count: NoisedCount, *, enrolled_patients: int) -> HospitalEvaluation:
    """Keep a count whose noise is the plan's (``admission``), or say why it cannot be one."""
    patients, stddev = max(1, enrolled_patients), count.noise_multiplier
    most = ROUNDING * patients + NOISE_REACH * stddev
    doubt = ""
    if not math.isfinite(count.correct):
        doubt = "the count is no number"
    elif not -NOISE_REACH * stddev <= count.correct <= most:
        doubt = (
            f"{count.correct:.4g} correct of {patients} enrolled patients cannot be with noise of "
            f"standard deviation {stddev:.4g}"
        )
    return HospitalEvaluation(None if doubt else count.correct, stddev, patients, doubt)
