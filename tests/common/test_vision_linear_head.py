import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from matl_common.tensors import parse_schema
from matl_common.vision.linear_head import (
    BIAS_INPUT,
    INPUT_NORM,
    LinearHead,
    clipped_gradient_sum,
    fit_projection,
    head_logits,
    head_schema,
    head_tensors,
    initial_head,
    parse_head,
    predict,
    project,
    public_descent,
    residuals,
)

RNG = np.random.default_rng(3)
PUBLIC = RNG.normal(size=(60, 20)) * np.linspace(3.0, 0.1, 20)


@pytest.mark.privacy
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    feature_scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    weight_scale=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_a_patient_moves_the_sum_by_at_most_one_without_clipping(
    seed: int, feature_scale: float, weight_scale: float
) -> None:
    rng = np.random.default_rng(seed)
    projection = fit_projection(PUBLIC, dimensions=8, whitening=0.5)
    inputs = project(feature_scale * rng.normal(size=(1, 20)), projection)
    weight, bias = weight_scale * rng.normal(size=(5, 8)), weight_scale * rng.normal(size=5)
    label = rng.integers(0, 5, 1)
    unclipped = clipped_gradient_sum(inputs, label, weight, bias, max_grad_norm=1e9)
    norm = np.hypot(np.linalg.norm(unclipped[0]), np.linalg.norm(unclipped[1]))
    assert norm <= 1.0 + 1e-12
    clipped = clipped_gradient_sum(inputs, label, weight, bias, max_grad_norm=1.0)
    assert np.allclose(clipped[0], unclipped[0], rtol=1e-12, atol=0)
    tight = clipped_gradient_sum(inputs, label, weight, bias, max_grad_norm=0.1)
    assert np.hypot(np.linalg.norm(tight[0]), np.linalg.norm(tight[1])) <= 0.1 + 1e-12


@pytest.mark.privacy
def test_the_bound_of_one_is_reached_by_a_confident_mistake() -> None:
    projection = fit_projection(PUBLIC, dimensions=8, whitening=0.5)
    inputs = project(RNG.normal(size=(1, 20)), projection)
    weight = np.zeros((5, 8))
    weight[1] = 1e6 * inputs[0]
    gradients = clipped_gradient_sum(inputs, np.array([0]), weight, np.zeros(5), max_grad_norm=1e9)
    norm = np.hypot(np.linalg.norm(gradients[0]), np.linalg.norm(gradients[1]))
    assert norm == pytest.approx(1.0, abs=1e-9)
    assert pytest.approx(0.5) == INPUT_NORM**2 + BIAS_INPUT**2


def test_the_gradient_is_that_of_cross_entropy() -> None:
    inputs, labels = RNG.normal(size=(7, 8)), RNG.integers(0, 5, 7)
    weight = torch.tensor(RNG.normal(size=(5, 8)), requires_grad=True)
    bias = torch.tensor(RNG.normal(size=5), requires_grad=True)
    logits = torch.tensor(inputs) @ weight.T + BIAS_INPUT * bias
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum")
    torch.autograd.backward(loss)
    found = clipped_gradient_sum(
        inputs, labels, weight.detach().numpy(), bias.detach().numpy(), max_grad_norm=1e9
    )
    assert weight.grad is not None
    assert bias.grad is not None
    assert np.allclose(found[0], weight.grad.numpy())
    assert np.allclose(found[1], bias.grad.numpy())


def test_clipping_is_per_patient() -> None:
    inputs, labels = RNG.normal(size=(6, 8)), RNG.integers(0, 5, 6)
    weight, bias = RNG.normal(size=(5, 8)), RNG.normal(size=5)
    whole = clipped_gradient_sum(inputs, labels, weight, bias, max_grad_norm=0.3)
    single = [
        clipped_gradient_sum(inputs[i : i + 1], labels[i : i + 1], weight, bias, max_grad_norm=0.3)
        for i in range(6)
    ]
    assert np.allclose(whole[0], sum(part[0] for part in single))
    assert np.allclose(whole[1], sum(part[1] for part in single))


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_projection_whitens_to_the_power_asked_for(whitening: float) -> None:
    projection = fit_projection(PUBLIC, dimensions=6, whitening=whitening)
    rows = (PUBLIC - projection.mean) @ projection.components.T.astype(np.float64)
    singular = np.linalg.svd(PUBLIC - PUBLIC.mean(axis=0), compute_uv=False)[:6]
    spread = np.linalg.norm(rows, axis=0)
    assert np.allclose(spread, singular * (singular / singular[0]) ** -whitening, rtol=1e-4)
    cosines = (rows.T @ rows) / np.outer(spread, spread)
    assert np.allclose(cosines, np.eye(6), atol=1e-4)


def test_projection_is_a_function_of_the_set_of_images() -> None:
    one = fit_projection(PUBLIC, dimensions=6, whitening=0.5)
    other = fit_projection(PUBLIC[::-1], dimensions=6, whitening=0.5)
    assert np.allclose(one.components, other.components, atol=1e-5)


@pytest.mark.parametrize("dimensions", [0, 21])
def test_more_dimensions_than_the_public_images_span_are_refused(dimensions: int) -> None:
    with pytest.raises(InvalidInputError, match="dimensions"):
        fit_projection(PUBLIC, dimensions=dimensions, whitening=0.5)


def test_projected_rows_have_one_norm_and_the_mean_maps_to_zero() -> None:
    projection = fit_projection(PUBLIC, dimensions=6, whitening=0.5)
    rows = project(RNG.normal(size=(9, 20)), projection)
    assert np.allclose(np.linalg.norm(rows, axis=1), INPUT_NORM)
    assert np.array_equal(project(projection.mean[None], projection), np.zeros((1, 6)))


def test_an_initial_head_favours_no_class_and_survives_its_schema() -> None:
    head = initial_head(fit_projection(PUBLIC, dimensions=6, whitening=0.5), classes=5)
    schema = head_schema(feature_dim=20, dimensions=6, classes=5)
    tensors = head_tensors(head)
    assert [(s.name, s.shape) for s in schema.tensors] == [(n, t.shape) for n, t in tensors.items()]
    assert [s.name for s in schema.trainable] == ["head.weight", "head.bias"]
    assert schema.update_elements == 5 * 6 + 5
    parsed = parse_head(schema, tensors)
    rows = project(RNG.normal(size=(2, 20)), parsed.projection)
    assert np.array_equal(head_logits(rows, parsed.weight, parsed.bias), np.zeros((2, 5)))
    assert np.allclose(residuals(np.zeros((1, 5)), np.array([1])), [[0.2, -0.8, 0.2, 0.2, 0.2]])


def test_a_descent_on_public_labels_follows_the_mean_gradient_step_by_step() -> None:
    rows = project(PUBLIC, fit_projection(PUBLIC, dimensions=6, whitening=0.5))
    labels = np.arange(len(rows), dtype=np.int64) % 5
    weight, bias = np.zeros((5, 6), np.float32), np.zeros(5, np.float32)
    expected_weight, expected_bias = weight.astype(np.float64), bias.astype(np.float64)
    for _ in range(3):
        errors = residuals(head_logits(rows, expected_weight, expected_bias), labels)
        expected_weight = expected_weight - 8.0 * errors.T @ rows / len(rows)
        expected_bias = expected_bias - 8.0 * BIAS_INPUT * errors.mean(axis=0)
    found = public_descent(rows, labels, weight, bias, steps=3, learning_rate=8.0)
    assert np.allclose(found[0], expected_weight, atol=1e-6)
    assert np.allclose(found[1], expected_bias, atol=1e-6)
    assert not weight.any(), "the start is left as it was"


def test_prediction_takes_the_largest_logit() -> None:
    projection = fit_projection(PUBLIC, dimensions=6, whitening=0.5)
    head = LinearHead(
        projection, np.zeros((5, 6), np.float32), np.array([0, 0, 1, 0, 0], np.float32)
    )
    assert list(predict(PUBLIC[:3], head)) == [2, 2, 2]


def test_a_model_that_is_no_head_or_is_not_finite_is_refused() -> None:
    schema = head_schema(feature_dim=20, dimensions=6, classes=5)
    tensors = dict(
        head_tensors(initial_head(fit_projection(PUBLIC, dimensions=6, whitening=0.5), classes=5))
    )
    with pytest.raises(InvalidInputError, match="not a linear head"):
        parse_head(parse_schema(schema.tensors[:3]), tensors)
    with pytest.raises(InvalidInputError, match="not a linear head"):
        parse_head(parse_schema(schema.tensors[:2] + schema.tensors[3:]), tensors)
    tensors["head.bias"] = np.full(5, np.nan, np.float32)
    with pytest.raises(InvalidInputError, match="not finite"):
        parse_head(schema, tensors)


@pytest.mark.privacy
@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf, 1e308])
def test_a_row_whose_gradient_is_not_finite_contributes_nothing_and_is_counted(
    damage: float,
) -> None:
    rng = np.random.default_rng(3)
    inputs, labels = rng.normal(size=(20, 6)), rng.integers(0, 5, 20)
    weight, bias = 10.0 * rng.normal(size=(5, 6)), np.zeros(5)
    sound = clipped_gradient_sum(inputs[2:], labels[2:], weight, bias, max_grad_norm=1.0)
    inputs[0], inputs[1, 3] = damage, damage
    counted: list[int] = []
    found = clipped_gradient_sum(
        inputs, labels, weight, bias, max_grad_norm=1.0, on_left_out=counted.append
    )
    assert counted == [2]
    assert np.array_equal(found[0], sound[0])
    assert np.array_equal(found[1], sound[1])


def test_finite_gradients_are_not_counted() -> None:
    rng = np.random.default_rng(3)
    counted: list[int] = []
    clipped_gradient_sum(
        rng.normal(size=(9, 6)),
        rng.integers(0, 5, 9),
        rng.normal(size=(5, 6)),
        np.zeros(5),
        max_grad_norm=0.1,
        on_left_out=counted.append,
    )
    assert counted == []
