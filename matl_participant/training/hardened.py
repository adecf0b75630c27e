"""The hardened release of the ``head`` recipe: from each patient's gradient to integers.

The mechanism's bound is on one patient's part in a sum of integers. So that rounding cannot
break it, each gradient is computed alone, in arrays whose shape does not depend on the
number of patients: a product over all rows at once may round one patient's differently
when another is left out. That holds from the features on; in the last digits of float32,
an image's features may depend on the others in its batch, which is not covered.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from matl_common.privacy.discrete import discrete_noised_sum
from matl_common.vision.linear_head import (
    Float64Array,
    Labels,
    Projection,
    clipped_gradient_sum,
    project,
)

_BLOCK_ROWS = 1024
"""Bounds the memory of gradients; sums of integers are the same in any blocks."""


def project_alone(features: NDArray[np.floating], projection: Projection) -> Float64Array:
    """As ``project``, row by row."""
    inputs = np.empty((len(features), len(projection.components)), dtype=np.float64)
    for row in range(len(features)):
        inputs[row] = project(features[[row]], projection)
    return inputs


def gradients_alone(
    inputs: Float64Array,
    labels: Labels,
    weight: Float64Array,
    bias: Float64Array,
    *,
    max_grad_norm: float,
    images_per_patient: int,
    on_left_out: Callable[[int], None] | None = None,
) -> Iterator[Float64Array]:
    """Clipped gradients, each computed alone, in blocks of shape ``(rows, d)``.

    Arguments as in ``hardened_gradient``.
    """

    def alone(row: int) -> Float64Array:
        gradients = clipped_gradient_sum(
            inputs[[row]],
            labels[[row]],
            weight,
            bias,
            max_grad_norm=max_grad_norm,
            on_left_out=on_left_out,
        )
        flat: Float64Array = np.concatenate([gradients[0].ravel(), gradients[1]])
        return flat / images_per_patient

    for start in range(0, len(inputs), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(inputs))
        yield np.stack([alone(row) for row in range(start, stop)])


def hardened_gradient(
    inputs: Float64Array,
    labels: Labels,
    weight: Float64Array,
    bias: Float64Array,
    *,
    noise_multiplier: float,
    max_grad_norm: float,
    images_per_patient: int = 1,
    on_left_out: Callable[[int], None] | None = None,
) -> Float64Array:
    """The noised sum of clipped gradients, flat, on the grid of ``discrete.gradient_grid``.

    Args:
        inputs: from ``project_alone``, ``(n, k)``.
        labels: ``(n,)``.
        weight: ``(classes, k)``.
        bias: ``(classes,)``.
        noise_multiplier: s.
        max_grad_norm: C.
        images_per_patient: the most rows that can belong to one patient.
        on_left_out: as in ``clipped_gradient_sum``.
    """
    gradients = gradients_alone(
        inputs,
        labels,
        weight,
        bias,
        max_grad_norm=max_grad_norm,
        images_per_patient=images_per_patient,
        on_left_out=on_left_out,
    )
    return discrete_noised_sum(
        gradients,
        dimensions=weight.size + bias.size,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        rows_per_patient=images_per_patient,
    )
