"""The composite trust score of MATL's paper, for comparison with the holdout test.

    0.4 · PoGQ + 0.3 · TCDM + 0.3 · entropy

It is reported for every update and decides only where the policy says so: two of its
three parts reward irregular hours, which a daemon that trains on a schedule does not keep.
Nothing here reads a clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

POGQ_SHARE, TCDM_SHARE, ENTROPY_SHARE = 0.4, 0.3, 0.3
INTERNAL_SHARE, TEMPORAL_SHARE = 0.6, 0.4
_HOURS = 24


@dataclass(frozen=True, slots=True)
class Activity:
    """When a hospital sends its updates, as the composite sees it."""

    temporal_correlation: float
    """Pearson correlation of its times with the federation's, -1 to 1. Times only grow, so
    it is near 1 for whoever takes part regularly, hostile or not."""
    entropy: float
    """Shannon entropy of the hours of the day it sends at, over log2 24; 0 to 1."""


SCHEDULED = Activity(temporal_correlation=1.0, entropy=0.0)
"""A daemon that answers every round when it opens, at the same hour."""


@dataclass(frozen=True, slots=True)
class Composite:
    """The score and its parts, each 0 to 1."""

    pogq: float
    tcdm: float
    entropy: float

    @property
    def score(self) -> float:
        """0.4 · PoGQ + 0.3 · TCDM + 0.3 · entropy."""
        return POGQ_SHARE * self.pogq + TCDM_SHARE * self.tcdm + ENTROPY_SHARE * self.entropy


def composite_of(*, pogq: float, clones: int, n: int, activity: Activity = SCHEDULED) -> Composite:
    """Score one update.

    TCDM, the temporal and community diversity metric, is
    1 - 0.6 · internal rate - 0.4 · |temporal correlation|. The paper's internal rate counts
    validations inside a social cluster; there being none here, it is the share of the other
    updates that are clones of this one.

    Args:
        pogq: proof of gradient quality, 0 to 1.
        clones: other updates nearly identical to this one.
        n: updates in the round.
        activity: of the hospital.
    """
    internal = clones / (n - 1) if n > 1 else 0.0
    diversity = 1.0 - INTERNAL_SHARE * internal
    diversity -= TEMPORAL_SHARE * abs(activity.temporal_correlation)
    return Composite(pogq, min(1.0, max(0.0, diversity)), activity.entropy)


def activity_of(own: Sequence[datetime], network: Sequence[datetime]) -> Activity:
    """The activity behind a hospital's times, round by round beside the federation's.

    Without variation there is no correlation to compute; a hospital that keeps the
    federation's own times then counts as fully correlated.

    Args:
        own: when each of its updates came, timezone-aware.
        network: the mean time of all updates of the same rounds.
    """
    hours = Counter(moment.hour for moment in own)
    total = sum(hours.values())
    entropy = -math.fsum(
        count / total * math.log2(count / total) for _, count in sorted(hours.items())
    )
    first = np.array([moment.timestamp() for moment in own])
    second = np.array([moment.timestamp() for moment in network])
    correlation = 1.0
    if len(first) > 1 and first.std() > 0.0 and second.std() > 0.0:
        correlation = float(np.clip(np.corrcoef(first, second)[0, 1], -1.0, 1.0))
    return Activity(correlation, abs(entropy) / math.log2(_HOURS))
