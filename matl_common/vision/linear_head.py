"""The linear head over a public projection: what the ``head`` recipe trains.

    z = s · unit(components · (feature - mean)),   logits = weight · z + β · bias

``mean`` and ``components`` come from public images and are frozen. With s² + β² = 1/2 the
softmax cross-entropy gradient of one patient, (p - y) ⊗ (z, β), has norm at most 1 for any
image and any weights, because ‖p - y‖² ≤ 2: full-batch training needs no clipping and has
no clipping bias. Numpy only; nothing here draws noise or reads a file.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import InvalidInputError
from matl_common.tensors import ModelSchema, TensorSpec, parse_schema

BIAS_INPUT = 0.2
"""β, the constant input that ``head.bias`` multiplies."""

INPUT_NORM = math.sqrt(0.5 - BIAS_INPUT**2)
"""s, the norm of every projected feature vector."""

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Projection:
    """A public affine map of features: ``mean`` of shape (d,), ``components`` of (k, d)."""

    mean: Float32Array
    components: Float32Array


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A projection with the trainable ``weight`` (classes, k) and ``bias`` (classes,)."""

    projection: Projection
    weight: Float32Array
    bias: Float32Array


@dataclass(frozen=True, slots=True)
class PublicSpectrum:
    """Principal directions of public features, from which projections are made.

    ``mean`` has shape (d,), ``singular`` (r,) in falling order, ``directions`` (r, d).
    """

    mean: Float64Array
    singular: Float64Array
    directions: Float64Array


def public_spectrum(features: NDArray[np.floating]) -> PublicSpectrum:
    """Decompose *public* features, shape ``(n, d)``; directions without variance are left out."""
    rows = features.astype(np.float64)
    mean = rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    rank = int((singular > singular[0] * 1e-6).sum()) if singular[0] > 0.0 else 0
    # An eigenvector's sign is arbitrary; fixed here, so that one data set gives one model.
    kept = directions[:rank]
    kept = kept * np.sign(kept[np.arange(rank), np.abs(kept).argmax(axis=1)])[:, None]
    return PublicSpectrum(mean, singular[:rank], kept)


def project_onto(spectrum: PublicSpectrum, *, dimensions: int, whitening: float) -> Projection:
    """The projection on the first directions of a spectrum.

    Args:
        spectrum: of public images.
        dimensions: k, how many directions to keep.
        whitening: direction i is divided by its singular value to this power; 0 keeps the
            variances, 1 makes them equal.

    Raises:
        InvalidInputError: fewer directions than ``dimensions``.
    """
    if not 1 <= dimensions <= len(spectrum.singular):
        raise InvalidInputError(
            f"dimensions is {dimensions}, and the public images span {len(spectrum.singular)}; "
            "use fewer dimensions or more public images"
        )
    scale = (spectrum.singular[:dimensions] / spectrum.singular[0]) ** -whitening
    components = spectrum.directions[:dimensions] * scale[:, None]
    return Projection(spectrum.mean.astype(np.float32), components.astype(np.float32))


def fit_projection(
    features: NDArray[np.floating], *, dimensions: int, whitening: float
) -> Projection:
    """``project_onto`` the spectrum of these public features, shape ``(n, d)``.

    Their statistics are published with the model.

    Raises:
        InvalidInputError: as ``project_onto``.
    """
    return project_onto(public_spectrum(features), dimensions=dimensions, whitening=whitening)


def initial_head(projection: Projection, *, classes: int) -> LinearHead:
    """The untrained head: all zero, so that it favours no class."""
    dimensions = len(projection.components)
    return LinearHead(
        projection,
        np.zeros((classes, dimensions), dtype=np.float32),
        np.zeros(classes, dtype=np.float32),
    )


def head_schema(*, feature_dim: int, dimensions: int, classes: int) -> ModelSchema:
    """The schema of a head as a model; the projection travels frozen."""
    return parse_schema(
        (
            TensorSpec("projection.mean", (feature_dim,), trainable=False),
            TensorSpec("projection.components", (dimensions, feature_dim), trainable=False),
            TensorSpec("head.weight", (classes, dimensions)),
            TensorSpec("head.bias", (classes,)),
        )
    )


def head_tensors(head: LinearHead) -> Mapping[str, Float32Array]:
    """The head's tensors by name, in the order of ``head_schema``."""
    return {
        "projection.mean": head.projection.mean,
        "projection.components": head.projection.components,
        "head.weight": head.weight,
        "head.bias": head.bias,
    }


def parse_head(schema: ModelSchema, tensors: Mapping[str, Float32Array]) -> LinearHead:
    """Take a model's tensors as a head.

    Raises:
        InvalidInputError: the schema is not that of a head, or a value is not finite.
    """
    shapes = {spec.name: spec.shape for spec in schema.tensors}
    classes, dimensions = shapes.get("head.weight", (0, 0))[:2]
    feature_dim = shapes.get("projection.mean", (0,))[0]
    if not classes or schema != head_schema(
        feature_dim=feature_dim, dimensions=dimensions, classes=classes
    ):
        raise InvalidInputError("the model is not a linear head over a projection")
    if not all(np.isfinite(values).all() for values in tensors.values()):
        raise InvalidInputError("the model holds a value that is not finite")
    projection = Projection(tensors["projection.mean"], tensors["projection.components"])
    return LinearHead(projection, tensors["head.weight"], tensors["head.bias"])


def project(features: NDArray[np.floating], projection: Projection) -> Float64Array:
    """Rows of features ``(n, d)`` to inputs of the head, ``(n, k)``, each of norm s (or 0)."""
    centred = features.astype(np.float64) - projection.mean.astype(np.float64)
    rows = centred @ projection.components.astype(np.float64).T
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Float64Array = INPUT_NORM * rows / np.where(norms > 0.0, norms, 1.0)
    return scaled


def head_logits(
    inputs: Float64Array, weight: NDArray[np.floating], bias: NDArray[np.floating]
) -> Float64Array:
    """Logits ``(n, classes)`` of projected rows ``(n, k)``."""
    logits: Float64Array = inputs @ weight.T.astype(np.float64) + BIAS_INPUT * bias
    return logits


def predict(features: NDArray[np.floating], head: LinearHead) -> Labels:
    """The likeliest class of each row of features, shape ``(n,)``."""
    logits = head_logits(project(features, head.projection), head.weight, head.bias)
    classes: Labels = np.argmax(logits, axis=1).astype(np.int64)
    return classes


def residuals(logits: Float64Array, labels: Labels) -> Float64Array:
    """p - y: softmax probabilities less the one-hot labels, shape ``(n, classes)``."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    difference: Float64Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    difference[np.arange(len(labels)), labels] -= 1.0
    return difference


def clipped_gradient_sum(
    inputs: Float64Array,
    labels: Labels,
    weight: Float64Array,
    bias: Float64Array,
    *,
    max_grad_norm: float,
    on_left_out: Callable[[int], None] | None = None,
) -> tuple[Float64Array, Float64Array]:
    """The sum over rows of cross-entropy gradients, each of norm at most ``max_grad_norm``.

    With ``max_grad_norm`` at least 1 nothing is clipped. A row whose gradient is not finite
    contributes nothing; one alone would otherwise make the whole sum NaN, and so tell of
    itself through any noise.

    Args:
        inputs: projected rows ``(n, k)``.
        labels: ``(n,)``.
        weight: ``(classes, k)``.
        bias: ``(classes,)``.
        max_grad_norm: C.
        on_left_out: told how many rows contribute nothing, if any; for this site only.

    Returns:
        The gradient for ``weight`` ``(classes, k)`` and for ``bias`` ``(classes,)``.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        errors = residuals(head_logits(inputs, weight, bias), labels)
        input_norms = np.sqrt(np.einsum("ij,ij->i", inputs, inputs) + BIAS_INPUT**2)
        norms = np.linalg.norm(errors, axis=1) * input_norms
    finite = np.isfinite(norms)
    if not finite.all():
        # Left out, not multiplied by zero: zero times NaN is still NaN.
        errors, inputs, norms = errors[finite], inputs[finite], norms[finite]
        if on_left_out is not None:
            on_left_out(int((~finite).sum()))
    factors = max_grad_norm / np.maximum(norms, max_grad_norm)
    clipped = errors * factors[:, None]
    return clipped.T @ inputs, BIAS_INPUT * clipped.sum(axis=0)


def public_descent(
    inputs: Float64Array,
    labels: Labels,
    weight: Float32Array,
    bias: Float32Array,
    *,
    steps: int,
    learning_rate: float,
) -> tuple[Float32Array, Float32Array]:
    """Weight and bias after full-batch steps on *public* images and labels, without noise.

    Args:
        inputs: projected rows ``(n, k)``.
        labels: ``(n,)``.
        weight: ``(classes, k)``, where the descent starts.
        bias: ``(classes,)``.
        steps: 0 leaves both as they are.
        learning_rate: on the mean gradient.
    """
    moved_weight, moved_bias = weight.astype(np.float64), bias.astype(np.float64)
    for _ in range(steps):
        for_weight, for_bias = clipped_gradient_sum(
            inputs, labels, moved_weight, moved_bias, max_grad_norm=1.0
        )
        moved_weight -= learning_rate / len(labels) * for_weight
        moved_bias -= learning_rate / len(labels) * for_bias
    return moved_weight.astype(np.float32), moved_bias.astype(np.float32)
