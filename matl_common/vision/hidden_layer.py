"""A public hidden layer below the linear head: the tutorial's 2048 → 512 → 5, first half frozen.

    z = s · unit(relu(weight · (feature - mean)) - centre)

Everything here is public: the layer is drawn from a published seed over the principal
directions of public images, and ``centre`` is the mean of its activations on them. Rows have
norm s (``linear_head``), so the gradients of the trained half need no clipping. Numpy only;
nothing here draws noise or reads a file.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matl_common.vision.linear_head import (
    INPUT_NORM,
    Float32Array,
    Float64Array,
    Projection,
)


@dataclass(frozen=True, slots=True)
class HiddenLayer:
    """``mean`` of shape (d,), ``weight`` of (width, d), ``centre`` of (width,)."""

    mean: Float32Array
    weight: Float32Array
    centre: Float32Array


def hidden_layer_of(
    features: NDArray[np.floating], projection: Projection, *, drawn: NDArray[np.floating]
) -> HiddenLayer:
    """Random features over a public projection (Rahimi & Recht, NIPS 2007; Huang et al., 2006).

    Args:
        features: of public images only, shape ``(n, d)``; the layer is centred on them.
        projection: what the units see of a feature, fitted on public images too.
        drawn: standard normal, shape ``(width, k)``; 512 wide in the tutorial. Published with
            the model, and no secret.
    """
    mixing = drawn.astype(np.float64) / math.sqrt(len(projection.components))
    weight = mixing @ projection.components.astype(np.float64)
    activations = _activations(features, projection.mean, weight)
    return HiddenLayer(
        projection.mean,
        weight.astype(np.float32),
        activations.mean(axis=0).astype(np.float32),
    )


def hidden_inputs(features: NDArray[np.floating], layer: HiddenLayer) -> Float64Array:
    """Rows of features ``(n, d)`` to inputs of the head ``(n, width)``, each of norm s (or 0)."""
    rows = _activations(features, layer.mean, layer.weight) - layer.centre.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Float64Array = INPUT_NORM * rows / np.where(norms > 0.0, norms, 1.0)
    return scaled


def _activations(
    features: NDArray[np.floating], mean: NDArray[np.floating], weight: NDArray[np.floating]
) -> Float64Array:
    centred = features.astype(np.float64) - mean.astype(np.float64)
    activations: Float64Array = np.maximum(centred @ weight.T.astype(np.float64), 0.0)
    return activations
