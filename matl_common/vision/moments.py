"""Sums over patients that a head can be solved from: second moments and class moments.

Of a patient with inputs u = √2 · (z, β), so ‖u‖ ≤ 1, and class y of K, with a share g in
[0, 1] of the privacy budget for the first part:

    √g · svec(u uᵀ)    and    √(1 - g) · √(K / (K - 1)) · (e_y - 1/K) ⊗ u

svec lists the upper triangle, off the diagonal times √2, and so ‖svec(A)‖ = ‖A‖ for symmetric
A. Then the squares of the two norms are at most g·‖u‖⁴ and (1 - g)·‖u‖², because
‖e_y - 1/K‖² = (K - 1)/K: together at most g + (1 - g) = 1. One patient more moves the sum of
the pair by at most C = 1, for any image and class. With g = 0 the first part is absent.

Solving comes after the noise and costs nothing. Numpy only; nothing here draws noise.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import InvalidInputError
from matl_common.vision.linear_head import BIAS_INPUT, Float64Array, Labels

SENSITIVITY = 1.0
"""C: the most that one patient moves ``moment_sums``."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over patients, their scaling undone.

    Attributes:
        gram: Σ u uᵀ, shape (k + 1, k + 1), or None where none was released.
        cross: Σ (e_y - 1/K) ⊗ u, shape (classes, k + 1).
    """

    gram: Float64Array | None
    cross: Float64Array


def augmented(inputs: Float64Array) -> Float64Array:
    """Projected rows ``(n, k)`` as u = √2 · (z, β), shape ``(n, k + 1)``."""
    constant = np.full((len(inputs), 1), BIAS_INPUT)
    return math.sqrt(2.0) * np.concatenate([inputs, constant], axis=1)


def moment_sums(
    inputs: Float64Array, labels: Labels, *, classes: int, gram_share: float
) -> Float64Array:
    """The sum over patients as one vector; one patient moves it by at most ``SENSITIVITY``.

    A row whose norm is not finite contributes nothing, and one longer than ``project`` makes them
    is shortened.

    Args:
        inputs: projected rows ``(n, k)``.
        labels: ``(n,)``.
        classes: K.
        gram_share: g.

    Raises:
        InvalidInputError: ``gram_share`` is outside [0, 1), or there are fewer than two classes.
    """
    _check_shape(classes=classes, gram_share=gram_share)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = augmented(inputs)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # Left out, not multiplied by zero: zero times NaN is still NaN.
    finite = np.isfinite(norms[:, 0])
    rows = rows[finite] / np.maximum(norms[finite], 1.0)
    centred = np.eye(classes)[labels[finite]] - 1.0 / classes
    cross = math.sqrt((1.0 - gram_share) * classes / (classes - 1.0)) * (centred.T @ rows)
    if gram_share == 0.0:
        return np.asarray(cross.ravel(), dtype=np.float64)
    upper = np.triu_indices(rows.shape[1])
    gram = math.sqrt(gram_share) * _svec_scale(upper) * (rows.T @ rows)[upper]
    return np.concatenate([gram, cross.ravel()])


def unpack_moments(
    vector: Float64Array, *, dimensions: int, classes: int, gram_share: float
) -> Moments:
    """``moment_sums``, noised or not, as matrices.

    Raises:
        InvalidInputError: the vector has another length.
    """
    _check_shape(classes=classes, gram_share=gram_share)
    side = dimensions + 1
    triangle = side * (side + 1) // 2 if gram_share > 0.0 else 0
    if vector.shape != (triangle + classes * side,):
        raise InvalidInputError(
            f"{vector.size} moments are not those of {classes} classes in {dimensions} dimensions"
        )
    scale = math.sqrt((1.0 - gram_share) * classes / (classes - 1.0))
    cross = vector[triangle:].reshape(classes, side) / scale
    if gram_share == 0.0:
        return Moments(None, cross)
    upper = np.triu_indices(side)
    gram = np.zeros((side, side))
    gram[upper] = vector[:triangle] / (math.sqrt(gram_share) * _svec_scale(upper))
    return Moments(gram + np.triu(gram, 1).T, cross)


def solve_ridge(
    gram: Float64Array, cross: Float64Array, *, ridge: float
) -> tuple[Float64Array, Float64Array]:
    """The linear head that ridge regression on e_y - 1/K gives.

    Noise may leave ``gram`` with negative eigenvalues; they count as zero, since no sum of
    squares has any.

    Args:
        gram: Σ u uᵀ, or an estimate of it, ``(k + 1, k + 1)``, symmetric.
        cross: Σ (e_y - 1/K) ⊗ u, ``(classes, k + 1)``.
        ridge: added to every eigenvalue, above 0; in patients.

    Returns:
        Weight ``(classes, k)`` and bias ``(classes,)`` of a ``LinearHead``.

    Raises:
        InvalidInputError: ``ridge`` is not above 0.
    """
    if not ridge > 0.0:
        raise InvalidInputError(f"ridge is {ridge}; it must be above 0")
    values, directions = np.linalg.eigh(gram)
    inverse = 1.0 / (np.maximum(values, 0.0) + ridge)
    return split_head((cross @ directions) * inverse @ directions.T)


def split_head(coefficients: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Coefficients of u ``(classes, k + 1)`` as a head's weight and bias."""
    scaled = math.sqrt(2.0) * coefficients
    return scaled[:, :-1], scaled[:, -1]


def _svec_scale(upper: tuple[NDArray[np.intp], NDArray[np.intp]]) -> Float64Array:
    return np.where(upper[0] == upper[1], 1.0, math.sqrt(2.0))


def _check_shape(*, classes: int, gram_share: float) -> None:
    if classes < 2:
        raise InvalidInputError(f"classes is {classes}; it takes two to tell them apart")
    if not 0.0 <= gram_share < 1.0:
        raise InvalidInputError(f"gram_share is {gram_share}; it must lie in [0, 1)")
