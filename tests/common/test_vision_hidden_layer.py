import numpy as np
import pytest

from matl_common.vision.hidden_layer import HiddenLayer, hidden_inputs, hidden_layer_of
from matl_common.vision.linear_head import INPUT_NORM, clipped_gradient_sum, fit_projection

pytestmark = pytest.mark.privacy

PUBLIC = np.random.default_rng(3).normal(size=(60, 20)) * np.linspace(3.0, 0.5, 20)


def layer(*, seed: int = 1) -> HiddenLayer:
    projection = fit_projection(PUBLIC, dimensions=8, whitening=0.5)
    drawn = np.random.default_rng(seed).normal(size=(32, 8))
    return hidden_layer_of(PUBLIC, projection, drawn=drawn)


def test_rows_have_one_norm_whatever_the_image() -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=(50, 20)) * np.exp(rng.normal(scale=5.0, size=(50, 1)))
    rows = hidden_inputs(features, layer())
    assert rows.shape == (50, 32)
    assert np.allclose(np.linalg.norm(rows, axis=1), INPUT_NORM)


def test_gradients_need_no_clipping_for_any_weights() -> None:
    rng = np.random.default_rng(5)
    inputs, labels = hidden_inputs(10.0 * rng.normal(size=(200, 20)), layer()), np.arange(200) % 5
    weight, bias = 50.0 * rng.normal(size=(5, 32)), 50.0 * rng.normal(size=5)
    for row in range(200):
        one = slice(row, row + 1)
        free, bound = (
            clipped_gradient_sum(inputs[one], labels[one], weight, bias, max_grad_norm=norm)
            for norm in (1e9, 1.0)
        )
        assert np.allclose(free[0], bound[0], rtol=1e-12)
        assert np.allclose(free[1], bound[1], rtol=1e-12)


def test_the_layer_is_not_linear_and_its_activations_are_centred_on_public_images() -> None:
    drawn = layer()
    # For a linear map opposite features would have opposite activations.
    offsets = PUBLIC[:5] - drawn.mean
    there = hidden_inputs(drawn.mean + offsets, drawn)
    opposite = hidden_inputs(drawn.mean - offsets, drawn)
    assert np.abs(there + opposite).max() > 0.05
    weights = drawn.weight.astype(np.float64)
    activations = np.maximum((PUBLIC - drawn.mean) @ weights.T, 0.0)
    assert np.allclose(activations.mean(axis=0), drawn.centre, atol=1e-5)


def test_the_published_draws_and_the_public_images_give_the_layer() -> None:
    assert np.array_equal(layer().weight, layer().weight)
    assert not np.allclose(layer().weight, layer(seed=2).weight)
