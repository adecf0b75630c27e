"""The ``head`` recipe: full-batch noisy gradient descent on cached features.

Every step uses every patient, so the mechanism is a plain Gaussian one and its budget an
exact sum (``matl_common.privacy.budget``). The true number of patients is never used:
the noised sum is divided by the declared, public one.

A row is a patient: the images of one ``group_key`` were averaged before (``features.py``).
Where nobody knows which images belong together, each row counts for 1/k of a patient who
has at most k images, so that k of them still move the sum by at most C. The noise, which
keeps its size, is k times as large beside each image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import InvalidInputError
from matl_common.privacy.mechanisms import Noise
from matl_common.vision.linear_head import (
    Float32Array,
    Float64Array,
    Labels,
    LinearHead,
    clipped_gradient_sum,
    project,
)
from matl_participant.training.hardened import hardened_gradient, project_alone
from matl_participant.training.noising import noised_sum


@dataclass(frozen=True, slots=True)
class HeadTraining:
    """What one round of the ``head`` recipe does; all of it public.

    Attributes:
        steps: gradient steps this round.
        learning_rate: on the mean gradient.
        noise_multiplier: the noise on a summed gradient, in units of ``max_grad_norm``.
        max_grad_norm: C. At 1 and above nothing is clipped (``linear_head``).
        declared_patients: the public divisor N̄.
        images_per_patient: k, the most rows that can belong to one patient.
        noise: its kind; discrete noise goes another way from gradients to the sum.
    """

    steps: int
    learning_rate: float
    noise_multiplier: float
    max_grad_norm: float
    declared_patients: int
    images_per_patient: int = 1
    noise: Noise = Noise.GAUSSIAN


def train_head(
    head: LinearHead,
    features: NDArray[np.floating],
    labels: Labels,
    *,
    training: HeadTraining,
    on_step: Callable[[int], None] | None = None,
    on_left_out: Callable[[int], None] | None = None,
) -> Float32Array:
    """Train on all patients and return the update of ``head.weight`` and ``head.bias``.

    Args:
        head: the round's base model.
        features: one row per patient, ``(patients, feature_dim)``.
        labels: ``(patients,)``.
        training: the round's parameters.
        on_step: told the number of each finished step.
        on_left_out: told, at a step where any gradient is not finite, how many are not.
            They contribute nothing, and their number must not leave the hospital.

    Returns:
        The flat float32 difference, in schema order.

    Raises:
        InvalidInputError: features, labels and head do not fit together.
    """
    _check_data(features, labels, head)
    projected = project_alone if training.noise is Noise.DISCRETE_GAUSSIAN else project
    return noisy_descent(
        projected(features, head.projection),
        labels,
        head.weight,
        head.bias,
        training=training,
        on_step=on_step,
        on_left_out=on_left_out,
    )


def noisy_descent(
    inputs: Float64Array,
    labels: Labels,
    weight: Float32Array,
    bias: Float32Array,
    *,
    training: HeadTraining,
    on_step: Callable[[int], None] | None = None,
    on_left_out: Callable[[int], None] | None = None,
) -> Float32Array:
    """Full-batch noisy gradient descent of a linear head, whatever made its inputs.

    Args:
        inputs: one row per patient ``(patients, k)``, of norm at most ``INPUT_NORM``: what
            keeps a gradient's norm below 1 without clipping. For discrete noise each must
            have been made alone, see ``hardened``.
        labels: ``(patients,)``.
        weight: ``(classes, k)``, where the descent starts.
        bias: ``(classes,)``.
        training, on_step, on_left_out: as for ``train_head``.

    Returns:
        The flat float32 difference, ``weight`` before ``bias``.
    """
    release = _release(inputs, labels, training, on_left_out)
    base = np.concatenate([weight.ravel(), bias]).astype(np.float64)
    parameters = base.copy()
    for step in range(training.steps):
        moved_weight, moved_bias = np.split(parameters, [weight.size])
        released = release(moved_weight.reshape(weight.shape), moved_bias)
        parameters -= training.learning_rate / training.declared_patients * released
        if on_step is not None:
            on_step(step + 1)
    return (parameters - base).astype(np.float32)


def _release(
    inputs: Float64Array,
    labels: Labels,
    training: HeadTraining,
    on_left_out: Callable[[int], None] | None,
) -> Callable[[Float64Array, Float64Array], Float64Array]:
    """The mechanism: from weight and bias to the noised sum of gradients, flat."""
    match training.noise:
        case Noise.GAUSSIAN:
            return partial(
                _noised_gradient, inputs, labels, training=training, on_left_out=on_left_out
            )
        case Noise.DISCRETE_GAUSSIAN:
            return partial(
                hardened_gradient,
                inputs,
                labels,
                noise_multiplier=training.noise_multiplier,
                max_grad_norm=training.max_grad_norm,
                images_per_patient=training.images_per_patient,
                on_left_out=on_left_out,
            )


def _noised_gradient(
    inputs: Float64Array,
    labels: Labels,
    weight: Float64Array,
    bias: Float64Array,
    *,
    training: HeadTraining,
    on_left_out: Callable[[int], None] | None,
) -> Float64Array:
    gradients = clipped_gradient_sum(
        inputs,
        labels,
        weight,
        bias,
        max_grad_norm=training.max_grad_norm,
        on_left_out=on_left_out,
    )
    return noised_sum(
        np.concatenate([gradients[0].ravel(), gradients[1]]) / training.images_per_patient,
        noise_multiplier=training.noise_multiplier,
        max_grad_norm=training.max_grad_norm,
    )


def _check_data(features: NDArray[np.floating], labels: Labels, head: LinearHead) -> None:
    if features.ndim != 2 or features.shape != (len(labels), len(head.projection.mean)):
        raise InvalidInputError(
            "features, labels and the model's projection do not fit together; the model is for "
            "another backbone"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(head.bias)):
        raise InvalidInputError("a label is outside the model's classes")
