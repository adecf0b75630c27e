"""One hospital's round of training, for an engine that knows nothing of ours; numpy alone.

What ``matl.simulation.learners`` does for many hospitals at once, for a single one: the same
steps over the same number of images, which a test compares. Runs in Flower's environment too, and
imports nothing of this project for that.
"""

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Layers = list[Float32Array]
BIAS_INPUT = 0.2


def network_round(
    start: Layers, values: Float32Array, labels: Integers, batches: Integers, *, rate: float
) -> Layers:
    """The parameters after gradient steps of a network with one hidden layer.

    Args:
        start: weight ``(pixels, hidden)``, bias ``(hidden,)``, weight ``(hidden, classes)`` and
            bias ``(classes,)``.
        values: all images ``(m, pixels)``.
        labels: ``(m,)``.
        batches: rows of ``values``, ``(steps, batch)``.
        rate: of learning.
    """
    layers = [layer.copy() for layer in start]
    for rows in batches:
        inputs, truth = values[rows], labels[rows]
        hidden = np.maximum(inputs @ layers[0] + layers[1], np.float32(0))
        logits = (hidden @ layers[2] + layers[3]).astype(np.float64)
        error = (_residuals(logits, truth) / len(rows)).astype(np.float32)
        back = error @ layers[2].T
        back[hidden <= 0] = 0
        gradients = (inputs.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0))
        for layer, gradient in zip(layers, gradients, strict=True):
            np.subtract(layer, np.float32(rate) * gradient, out=layer)
    return layers


def head_round(
    start: list[Float64Array],
    inputs: Float64Array,
    labels: Integers,
    noise: list[Float64Array],
    *,
    rate: float,
    patients: int,
) -> list[Float64Array]:
    """The parameters after noisy full-batch steps of a linear head whose gradients are clipped.

    Args:
        start: weight ``(classes, k)`` and bias ``(classes,)``.
        inputs: projected images ``(m, k)``.
        labels: ``(m,)``.
        noise: for weight and bias, ``(steps, ...)`` each.
        rate: of learning.
        patients: that the hospital stands for.
    """
    weight, bias = start
    times = patients / len(labels)
    for weight_noise, bias_noise in zip(*noise, strict=True):
        errors = _residuals(inputs @ weight.T + BIAS_INPUT * bias, labels)
        lengths = np.sqrt(np.einsum("ij,ij->i", inputs, inputs) + BIAS_INPUT**2)
        norms = np.linalg.norm(errors, axis=1) * lengths
        clipped = errors * (1.0 / np.maximum(norms, 1.0))[:, None]
        weight = weight - rate / patients * (times * (clipped.T @ inputs) + weight_noise)
        bias = bias - rate / patients * (times * BIAS_INPUT * clipped.sum(axis=0) + bias_noise)
    return [weight, bias]


def _residuals(logits: Float64Array, labels: Integers) -> Float64Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    difference: Float64Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    difference[np.arange(len(labels)), labels] -= 1.0
    return difference
