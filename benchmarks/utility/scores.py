"""How good classifications are, over draws of noise and splits, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.utility.extraction import Labels
from matl_common.vision.metrics import cohen_kappa, confusion_matrix, evaluate

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Scores:
    """One model on the test images, as fractions.

    ``kappa`` is Cohen's: weighted by squared distance where classes are ordered.
    """

    accuracy: float
    balanced_accuracy: float
    kappa: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval over independent runs (Student's t)."""

    mean: float
    half_width: float


def score(labels: Labels, guesses: Labels, *, classes: int, ordered: bool) -> Scores:
    """Judge guesses ``(n,)``."""
    found = evaluate(labels, guesses, classes=classes)
    kappa = (
        found.quadratic_weighted_kappa
        if ordered
        else cohen_kappa(confusion_matrix(labels, guesses, classes=classes))
    )
    return Scores(found.accuracy, found.balanced_accuracy, kappa)


def interval(values: Sequence[float]) -> Interval:
    """Of one value the half width is 0: nothing is known of its spread."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, 0.0)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    quantile = float(stats.t.ppf((1.0 + CONFIDENCE) / 2.0, df=len(values) - 1))
    return Interval(mean, quantile * error)
