"""Means with their 95 % intervals over independent runs (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

# Quantiles of 0.975 for 1 to 30 degrees of freedom, and for more.
_QUANTILES: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_QUANTILE_OF_MANY: Final = 1.96


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and how far the true one may lie from it; of one run nothing is known."""

    mean: float
    half_width: float | None
    runs: int


def interval(values: Iterable[float | None]) -> Interval | None:
    """Of the values that are known; ``None`` where none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) == 1:
        return Interval(known[0], None, 1)
    freedom = len(known) - 1
    quantile = _QUANTILES[freedom - 1] if freedom <= len(_QUANTILES) else _QUANTILE_OF_MANY
    return Interval(fmean(known), quantile * stdev(known) / math.sqrt(len(known)), len(known))
