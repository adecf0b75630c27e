"""The noised count: its noise, how far one patient moves it, and what the worker says of it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from matl_common.privacy.mechanisms import Noise
from matl_common.vision.linear_head import LinearHead, Projection
from matl_participant.training.evaluation import correct_rows, correct_rows_alone, noised_correct

pytestmark = pytest.mark.privacy

# Two-sided tails this thin fail by chance once in a million runs.
TAIL = 5e-7
DIMENSIONS, CLASSES = 6, 5
Count = Callable[[LinearHead, NDArray[np.float64], NDArray[np.int64]], int]
NOBODY = (np.zeros((0, DIMENSIONS)), np.zeros(0, dtype=np.int64))


def some_head(seed: int = 3) -> LinearHead:
    draws = np.random.default_rng(seed)
    return LinearHead(
        Projection(np.zeros(DIMENSIONS, dtype=np.float32), np.eye(DIMENSIONS, dtype=np.float32)),
        draws.normal(size=(CLASSES, DIMENSIONS)).astype(np.float32),
        draws.normal(size=CLASSES).astype(np.float32),
    )


def some_patients(count: int, seed: int = 5) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    draws = np.random.default_rng(seed)
    return draws.normal(size=(count, DIMENSIONS)), draws.integers(0, CLASSES, count)


def released(
    noise: Noise, *, count: int, noise_multiplier: float, images_per_patient: int = 1
) -> NDArray[np.float64]:
    return np.array(
        [
            noised_correct(
                some_head(),
                *NOBODY,
                noise_multiplier=noise_multiplier,
                images_per_patient=images_per_patient,
                noise=noise,
            )
            for _ in range(count)
        ]
    )


@pytest.mark.parametrize("noise", Noise)
@pytest.mark.parametrize("images_per_patient", [1, 3])
def test_the_variance_of_a_count_lies_within_chi_squared_limits(
    noise: Noise, images_per_patient: int
) -> None:
    stddev = 12.5
    draws = released(
        noise, count=6000, noise_multiplier=stddev, images_per_patient=images_per_patient
    )
    low, high = stats.chi2.ppf([TAIL, 1.0 - TAIL], df=draws.size)
    assert low < float(np.square(draws / stddev).sum()) < high
    assert abs(draws.mean()) < 5.5 * stddev / math.sqrt(draws.size)
    # Another tenth would be noticed, and so would noise that forgets the images of a patient.
    assert not low < float(np.square(draws / (1.1 * stddev)).sum()) < high
    assert not low < float(np.square(draws / (0.9 * stddev)).sum()) < high


def test_counts_are_drawn_anew_each_time_and_independent_of_one_another() -> None:
    draws = released(Noise.GAUSSIAN, count=4000, noise_multiplier=50.0)
    # Not quite all differ: the public grid is coarse.
    assert len(set(draws)) > 0.99 * len(draws)
    correlation = float(np.corrcoef(draws[:-1], draws[1:])[0, 1])
    assert abs(correlation) < 5.5 / math.sqrt(len(draws))


def test_a_discrete_count_is_a_whole_number_of_rows() -> None:
    whole = released(Noise.DISCRETE_GAUSSIAN, count=50, noise_multiplier=9.0)
    assert (whole == np.rint(whole)).all()
    thirds = released(Noise.DISCRETE_GAUSSIAN, count=50, noise_multiplier=9.0, images_per_patient=3)
    assert np.allclose(3 * thirds, np.rint(3 * thirds))


@pytest.mark.parametrize("count_rows", [correct_rows, correct_rows_alone])
def test_one_patient_moves_the_count_by_one_at_most(count_rows: Count) -> None:
    features, labels = some_patients(60)
    everybody = count_rows(some_head(), features, labels)
    moves = set()
    for absent in range(len(labels)):
        others = np.arange(len(labels)) != absent
        moves.add(everybody - count_rows(some_head(), features[others], labels[others]))
    assert moves == {0, 1}


def test_a_patient_of_several_images_without_a_key_moves_the_count_by_one_at_most() -> None:
    features, labels = some_patients(60)
    head, images = some_head(), 3
    right = [correct_rows(head, features[[row]], labels[[row]]) for row in range(len(labels))]
    for start in range(0, len(labels), images):
        assert sum(right[start : start + images]) / images <= 1.0
    # Noise that drowns in the count: what is left is the count of patients, not of images.
    for noise in Noise:
        found = noised_correct(
            head, features, labels, noise_multiplier=1e-3, images_per_patient=images, noise=noise
        )
        # Discrete noise is of one image at least: six standard deviations.
        assert found == pytest.approx(sum(right) / images, abs=6.0 / images)
        assert abs(found - sum(right)) > 6.0 / images


def test_both_ways_of_counting_agree() -> None:
    features, labels = some_patients(500)
    head = some_head()
    counted = correct_rows(head, features, labels)
    assert 0 < counted < len(labels)
    assert correct_rows_alone(head, features, labels) == counted
    for count_rows in (correct_rows, correct_rows_alone):
        assert count_rows(head, *NOBODY) == 0
