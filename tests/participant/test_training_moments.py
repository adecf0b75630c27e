import numpy as np
import pytest
from scipy import stats

from matl_common.privacy.budget import Budget, calibrate_noise, would_exceed
from matl_common.privacy.noise import public_grid
from matl_common.vision.linear_head import INPUT_NORM, Float64Array, Labels
from matl_common.vision.moments import moment_sums, solve_ridge, unpack_moments
from matl_participant.training.moments import moments_event, release_moments

pytestmark = pytest.mark.privacy

CENTRES = np.random.default_rng(8).normal(size=(5, 8))


def patients(count: int, *, seed: int) -> tuple[Float64Array, Labels]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    drawn = CENTRES[labels] + 0.3 * rng.normal(size=(count, 8))
    return INPUT_NORM * drawn / np.linalg.norm(drawn, axis=1, keepdims=True), labels


def test_without_noise_the_release_is_the_sum_and_a_head_learns_from_it() -> None:
    inputs, labels = patients(300, seed=1)
    released = release_moments(inputs, labels, classes=5, gram_share=0.3, noise_multiplier=0.0)
    assert np.array_equal(released, moment_sums(inputs, labels, classes=5, gram_share=0.3))
    moments = unpack_moments(released, dimensions=8, classes=5, gram_share=0.3)
    assert moments.gram is not None
    weight, bias = solve_ridge(moments.gram, moments.cross, ridge=1.0)
    test, answers = patients(300, seed=2)
    assert np.mean((test @ weight.T + 0.2 * bias).argmax(axis=1) == answers) > 0.9


def test_with_no_patients_the_release_is_noise_of_the_stated_variance_on_the_public_grid() -> None:
    nobody = np.zeros((0, 8)), np.zeros(0, dtype=np.int64)
    draws = np.concatenate(
        [
            release_moments(*nobody, classes=5, gram_share=0.3, noise_multiplier=3.7)
            for _ in range(1200)
        ]
    )
    assert draws.size >= 100_000
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], df=draws.size)
    assert low < np.square(draws / 3.7).sum() < high
    steps = draws / public_grid(3.7)
    assert np.array_equal(steps, np.rint(steps))


def test_two_releases_differ_even_when_every_generator_is_seeded() -> None:
    data, releases = patients(50, seed=1), []
    for _ in range(2):
        np.random.seed(1)  # noqa: NPY002 - the global generator is what is tested
        releases.append(release_moments(*data, classes=5, gram_share=0.0, noise_multiplier=1.0))
    assert not (releases[0] == releases[1]).any()


def test_a_patient_with_several_images_counts_as_one() -> None:
    inputs, labels = patients(3, seed=1)
    thrice = release_moments(
        np.repeat(inputs[:1], 3, axis=0),
        np.repeat(labels[:1], 3),
        classes=5,
        gram_share=0.3,
        noise_multiplier=0.0,
        images_per_patient=3,
    )
    assert np.linalg.norm(thrice) == pytest.approx(1.0)


def test_the_whole_budget_pays_for_one_release_and_for_no_second() -> None:
    budget = Budget(1.0, 1e-5)
    event = moments_event(calibrate_noise(1.0, 1e-5, steps=1))
    assert event.steps == 1
    assert not would_exceed(budget, [], event)
    assert would_exceed(budget, [event], event)
