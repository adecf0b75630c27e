"""The head recipe with discrete noise: its sensitivity, its noise, and what it learns."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from matl_common.errors import InvalidInputError
from matl_common.ids import NodeId
from matl_common.privacy.discrete import gradient_grid, sum_on_grid
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import PrivacyTerms, Recipe, TrainingPlan
from matl_common.vision.linear_head import INPUT_NORM, LinearHead, fit_projection, predict, project
from matl_coordinator.core.compliance import quiet_part, refusals
from matl_coordinator.core.robust.gram import Gram, PrivacyNoise
from matl_coordinator.core.robust.root import update_noise_std
from matl_participant.training.hardened import gradients_alone, hardened_gradient, project_alone
from matl_participant.training.head import HeadTraining, train_head
from tests.participant.test_training_head import head, patients, trained

pytestmark = pytest.mark.privacy

UNLIKELY = 1e-6
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def training(*, steps: int = 1, noise: float = 1e-3, patients: int = 200) -> HeadTraining:
    return HeadTraining(
        steps=steps,
        learning_rate=20.0,
        noise_multiplier=noise,
        max_grad_norm=1.0,
        declared_patients=patients,
        noise=Noise.DISCRETE_GAUSSIAN,
    )


def grid_sum(
    inputs: Floats, labels: Integers, weight: Floats, bias: Floats, *, norm: float, images: int
) -> Integers:
    """What the mechanism adds its noise to, in grid units."""
    total = np.zeros(weight.size + bias.size, dtype=np.int64)
    for block in gradients_alone(
        inputs, labels, weight, bias, max_grad_norm=norm, images_per_patient=images
    ):
        total += sum_on_grid(
            block, grid=gradient_grid(norm), max_grad_norm=norm, rows_per_patient=images
        )
    return total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    norm=st.sampled_from([1.0, 0.25, 0.3, 3.0]),
    images=st.integers(1, 5),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
)
def test_one_patient_moves_the_integers_by_at_most_the_claimed_norm(
    seed: int, norm: float, images: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(20, 7))
    # Longer than any projected row may be, so that gradients are clipped.
    inputs *= 4.0 * INPUT_NORM / np.linalg.norm(inputs, axis=1)[:, None]
    labels = rng.integers(0, 5, 20)
    weight, bias = scale * rng.normal(size=(5, 7)), scale * rng.normal(size=5)
    whole = grid_sum(inputs, labels, weight, bias, norm=norm, images=images)
    # A patient is any ``images`` rows.
    kept = rng.permutation(20)[images:]
    rest = grid_sum(inputs[kept], labels[kept], weight, bias, norm=norm, images=images)
    moved = sum(int(value) ** 2 for value in whole - rest)
    assert Fraction(moved) <= (Fraction(norm) / Fraction(gradient_grid(norm))) ** 2


def test_a_single_image_moves_the_integers_nearly_as_far_as_it_may() -> None:
    rng = np.random.default_rng(3)
    longest = 0.0
    for _ in range(200):
        inputs = rng.normal(size=(1, 7))
        inputs *= INPUT_NORM / np.linalg.norm(inputs)
        weight, label = 30.0 * rng.normal(size=(5, 7)), rng.integers(0, 5, 1)
        alone = grid_sum(inputs, label, weight, np.zeros(5), norm=1.0, images=1)
        longest = max(longest, float(np.linalg.norm(alone * gradient_grid(1.0))))
    assert 0.99 < longest <= 1.0


@pytest.mark.parametrize("count", [2, 3, 9, 40])
def test_the_other_patients_part_is_the_same_to_the_bit_when_one_is_left_out(count: int) -> None:
    # Of this size, products over all rows at once do differ in the last digit here.
    rng = np.random.default_rng(count)
    projection = fit_projection(rng.normal(size=(80, 1280)), dimensions=64, whitening=0.5)
    features = rng.normal(size=(count, 1280)).astype(np.float32)
    labels = rng.integers(0, 5, count)
    weight, bias, first = rng.normal(size=(5, 64)), np.zeros(5), np.s_[:1]
    whole, rest = (project_alone(each, projection) for each in (features, features[1:]))
    assert np.array_equal(whole[1:], rest)
    assert np.allclose(whole, project(features, projection), atol=1e-12)
    alone = grid_sum(whole[first], labels[first], weight, bias, norm=1.0, images=1)
    with_it = grid_sum(whole, labels, weight, bias, norm=1.0, images=1)
    without = grid_sum(rest, labels[1:], weight, bias, norm=1.0, images=1)
    assert np.array_equal(with_it - without, alone)


def test_what_is_released_lies_on_the_grid_and_its_noise_passes_chi_squared() -> None:
    none = (np.zeros((0, 20_000)), np.zeros(0, dtype=np.int64))
    weight, bias = np.zeros((5, 20_000)), np.zeros(5)
    released = hardened_gradient(*none, weight, bias, noise_multiplier=49.5, max_grad_norm=0.7)
    assert released.size >= 100_000
    units = released / gradient_grid(0.7)
    assert np.array_equal(units, np.rint(units))
    draws = released / (49.5 * 0.7)
    low, high = stats.chi2.ppf([UNLIKELY / 2, 1 - UNLIKELY / 2], df=draws.size)
    assert low < float(np.square(draws).sum()) < high
    edges = stats.norm.ppf(np.linspace(0.0, 1.0, 101))
    counts = np.histogram(draws, bins=edges)[0]
    assert stats.chisquare(counts).pvalue > UNLIKELY


def test_with_little_noise_it_learns_what_continuous_noise_learns() -> None:
    base = head()
    update = train_head(base, *patients(200), training=training(steps=30))
    features, labels = patients(300, seed=1)
    assert np.mean(predict(features, trained(base, update)) == labels) > 0.9
    continuous = HeadTraining(30, 20.0, 0.0, 1.0, 200)
    assert np.allclose(update, train_head(base, *patients(200), training=continuous), atol=0.02)


def test_no_noise_is_no_mechanism_and_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="noise_multiplier"):
        train_head(head(), *patients(5), training=training(noise=0.0))


def test_a_gradient_that_is_not_finite_contributes_nothing_and_is_counted() -> None:
    base = head()
    features, labels = patients(40)
    features[3] = np.nan
    told: list[int] = []
    update = train_head(base, features, labels, training=training(steps=2), on_left_out=told.append)
    assert np.isfinite(update).all()
    assert sum(told) == 2


@pytest.mark.parametrize(("factor", "is_refused"), [(1.0, False), (0.1, True)])
def test_the_coordinator_finds_the_noise_it_expects(factor: float, is_refused: bool) -> None:  # noqa: FBT001 - a parameter
    node, count, steps, sigma = NodeId("hospital"), 60, 3, 20.0
    base: LinearHead = head(dimensions=20)
    update = train_head(
        base, *patients(count), training=training(steps=steps, noise=factor * sigma, patients=count)
    )
    plan = TrainingPlan(Recipe.HEAD, "resnet50", None, 224, 2, steps, 20.0, 1)
    terms = PrivacyTerms(
        "patient", "add-or-remove-one", 1.0, 1e-5, sigma, 1.0, 1.0, 99, Noise.DISCRETE_GAUSSIAN
    )
    std = update_noise_std(plan, terms, patients=count)
    noise = PrivacyNoise(np.array([std]), signal_bound=20.0 * steps)
    # All but the quiet part is blotted out, so that no other bound can decide.
    gram = replace(Gram.of({node: np.full(update.size, std)}), noise=noise)
    weight, bias = np.split(update, [base.weight.size])
    quiet = {node: quiet_part(weight.reshape(base.weight.shape), bias)}
    assert bool(refusals(gram, steps=steps, quiet=quiet)) == is_refused
