"""How good a classification of retinopathy is. Numpy only; no model, no data."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import InvalidInputError

Labels = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Agreement of predictions with labels on one data set.

    Attributes:
        images: how many were judged.
        accuracy: share that is right.
        balanced_accuracy: mean recall over the classes that occur.
        quadratic_weighted_kappa: chance-corrected agreement, far errors costing more.
        recall: per class; NaN for a class that does not occur.
    """

    images: int
    accuracy: float
    balanced_accuracy: float
    quadratic_weighted_kappa: float
    recall: tuple[float, ...]


def evaluate(labels: Labels, predictions: Labels, *, classes: int = 5) -> Evaluation:
    """Compare two integer vectors of shape ``(n,)``.

    Raises:
        InvalidInputError: different or empty shapes, or a value outside ``[0, classes)``.
    """
    table = confusion_matrix(labels, predictions, classes=classes)
    present = table.sum(axis=1)
    recall = np.divide(np.diag(table), present, out=np.full(classes, np.nan), where=present > 0)
    return Evaluation(
        images=int(present.sum()),
        accuracy=float(np.trace(table) / present.sum()),
        balanced_accuracy=float(np.nanmean(recall)),
        quadratic_weighted_kappa=_quadratic_weighted_kappa(table),
        recall=tuple(float(value) for value in recall),
    )


def confusion_matrix(
    labels: Labels, predictions: Labels, *, classes: int = 5
) -> NDArray[np.float64]:
    """Counts of shape ``(classes, classes)``: true class by row, predicted by column."""
    if labels.shape != predictions.shape or labels.ndim != 1 or labels.size == 0:
        raise InvalidInputError(
            f"labels {labels.shape} and predictions {predictions.shape} must be two non-empty "
            "vectors of one length"
        )
    for values in (labels, predictions):
        if values.min() < 0 or values.max() >= classes:
            raise InvalidInputError(f"a class is outside 0 to {classes - 1}")
    cells = labels.astype(np.int64) * classes + predictions.astype(np.int64)
    counts = np.bincount(cells, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.float64)


def cohen_kappa(table: NDArray[np.float64]) -> float:
    """Cohen's kappa (1960) of counts ``(classes, classes)``; 1 when nothing could disagree."""
    total = table.sum()
    by_chance = float(table.sum(axis=0) @ table.sum(axis=1)) / total**2
    agreed = float(np.trace(table)) / total
    return 1.0 if by_chance == 1.0 else (agreed - by_chance) / (1 - by_chance)


def _quadratic_weighted_kappa(table: NDArray[np.float64]) -> float:
    """Cohen's weighted kappa (1968) with weights (i - j)²; 1 when nothing could disagree."""
    classes = np.arange(len(table))
    weights = (classes[:, None] - classes[None, :]) ** 2
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    expected = float((weights * by_chance).sum())
    observed = float((weights * table).sum())
    return 1.0 if expected == 0.0 else 1.0 - observed / expected
