import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from matl_common.errors import InvalidInputError
from matl_common.privacy.noise import public_grid
from matl_common.vision.linear_head import LinearHead, fit_projection, initial_head, predict
from matl_participant.training.head import HeadTraining, train_head
from matl_participant.training.noising import noised_sum

pytestmark = pytest.mark.privacy

RNG = np.random.default_rng(8)
CENTRES = 3.0 * RNG.normal(size=(5, 24))
Features = NDArray[np.float64]
Labels = NDArray[np.int64]


def patients(count: int, seed: int = 0) -> tuple[Features, Labels]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    return CENTRES[labels] + rng.normal(size=(count, 24)), labels


def head(dimensions: int = 12) -> LinearHead:
    return initial_head(
        fit_projection(patients(100, seed=99)[0], dimensions=dimensions, whitening=0.5), classes=5
    )


def training(
    *,
    steps: int = 1,
    noise: float = 0.0,
    patients: int = 200,
    rate: float = 20.0,
    norm: float = 1.0,
) -> HeadTraining:
    return HeadTraining(
        steps=steps,
        learning_rate=rate,
        noise_multiplier=noise,
        max_grad_norm=norm,
        declared_patients=patients,
    )


def trained(base: LinearHead, update: NDArray[np.float32]) -> LinearHead:
    weight, bias = np.split(update, [base.weight.size])
    return LinearHead(base.projection, base.weight + weight.reshape(base.weight.shape), bias)


def test_without_noise_the_head_learns_its_classes() -> None:
    base = head()
    update = train_head(base, *patients(200), training=training(steps=30))
    features, labels = patients(300, seed=1)
    assert update.dtype == np.float32
    assert update.shape == (5 * 12 + 5,)
    assert np.mean(predict(features, trained(base, update)) == labels) > 0.9


def test_steps_compose_to_the_same_model_as_one_round() -> None:
    base, data = head(), patients(100)
    whole = trained(base, train_head(base, *data, training=training(steps=4)))
    half = trained(base, train_head(base, *data, training=training(steps=2)))
    rest = train_head(half, *data, training=training(steps=2))
    assert np.allclose(half.weight + rest[:60].reshape(5, 12), whole.weight, atol=1e-5)


@pytest.mark.parametrize("norm", [1.0, 0.25])
def test_one_patient_more_moves_one_step_by_at_most_the_clipping_norm(norm: float) -> None:
    base = head()
    base = LinearHead(base.projection, RNG.normal(size=(5, 12)).astype(np.float32) * 5, base.bias)
    features, labels = patients(40)
    features[-1] *= 1e6
    # A learning rate of N makes the update the negative gradient sum itself.
    one_step = training(rate=200.0, patients=200, norm=norm)
    with_all = train_head(base, features, labels, training=one_step)
    for missing in range(40):
        kept = np.arange(40) != missing
        without = train_head(base, features[kept], labels[kept], training=one_step)
        shift = np.linalg.norm(with_all.astype(np.float64) - without)
        assert 0.0 < shift <= norm * (1.0 + 1e-5)


def test_the_true_number_of_patients_is_not_used() -> None:
    base = head()
    features, labels = patients(40)
    twice = train_head(
        base, np.vstack([features, features]), np.tile(labels, 2), training=training()
    )
    once = train_head(base, features, labels, training=training())
    assert np.allclose(twice, 2.0 * once, rtol=1e-5)


def test_with_no_patients_the_update_is_noise_of_the_stated_variance() -> None:
    base = head(dimensions=20)
    empty = (np.zeros((0, 24)), np.zeros(0, dtype=np.int64))
    settings = training(steps=3, noise=7.0, rate=2.0, patients=50, norm=0.5)
    draws = np.concatenate(
        [train_head(base, *empty, training=settings) for _ in range(1000)]
    ).astype(np.float64)
    assert draws.size >= 100_000
    stddev = 7.0 * 0.5 * np.sqrt(3) * 2.0 / 50
    statistic = np.square(draws / stddev).sum()
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], df=draws.size)
    assert low < statistic < high


def test_two_runs_differ_by_noise_even_when_every_generator_is_seeded() -> None:
    base, data, updates = head(), patients(50), []
    for _ in range(2):
        np.random.seed(1)  # noqa: NPY002 - the global generator is what is tested
        torch.manual_seed(1)
        updates.append(train_head(base, *data, training=training(noise=5.0)))
    assert not np.any(updates[0] == updates[1])


def test_the_gradient_is_taken_at_the_noised_parameters() -> None:
    # Were noise only added at the end, two steps from the origin would differ by noise alone.
    base, data = head(), patients(200)
    quiet = train_head(base, *data, training=training(steps=1))
    second = training(steps=2, noise=400.0, rate=200.0)
    spread = [train_head(base, *data, training=second) for _ in range(200)]
    assert np.var(spread) > 0
    assert not np.allclose(np.mean(spread, axis=0), 2 * 10 * quiet, rtol=0.2, atol=1.0)


def test_no_steps_give_a_zero_update_and_progress_counts_steps_only() -> None:
    base = head()
    told: list[int] = []
    assert not train_head(base, *patients(20), training=training(steps=0, noise=1.0)).any()
    train_head(base, *patients(20), training=training(steps=3, noise=1.0), on_step=told.append)
    assert told == [1, 2, 3]


def test_the_base_model_is_left_as_it_was() -> None:
    base = head()
    train_head(base, *patients(20), training=training(steps=2, noise=1.0))
    assert not base.weight.any()
    assert not base.bias.any()


def test_a_release_lies_on_the_public_grid_and_hides_the_low_bits_of_the_sum() -> None:
    total = RNG.normal(size=1000)
    released = noised_sum(total, noise_multiplier=3.0, max_grad_norm=0.5)
    grid = public_grid(1.5)
    assert np.array_equal(released / grid, np.rint(released / grid))
    assert np.array_equal(noised_sum(total, noise_multiplier=0.0, max_grad_norm=1.0), total)


def test_data_that_does_not_fit_the_model_is_refused() -> None:
    base = head()
    features, labels = patients(10)
    for bad in (
        (features[:, :5], labels),
        (features[:5], labels),
        (features.ravel(), labels),
        (features, labels + 5),
        (features, labels - 5),
    ):
        with pytest.raises(InvalidInputError):
            train_head(base, *bad, training=training())


def test_a_patient_with_several_ungrouped_images_still_moves_a_step_by_the_clipping_norm() -> None:
    base = head()
    features, labels = patients(40)
    # Three images of one patient, as alike as can be, which the hospital cannot tell apart.
    features[:3], labels[:3] = features[0], labels[0]
    step = HeadTraining(1, 200.0, 0.0, 0.5, 200, images_per_patient=3)
    whole = train_head(base, features, labels, training=step).astype(np.float64)
    without = train_head(base, features[3:], labels[3:], training=step).astype(np.float64)
    assert np.linalg.norm(whole - without) == pytest.approx(0.5, rel=1e-5)
    one_missing = train_head(base, features[1:], labels[1:], training=step).astype(np.float64)
    assert np.linalg.norm(whole - one_missing) == pytest.approx(0.5 / 3, rel=1e-5)


def test_ungrouped_images_do_not_lessen_the_noise() -> None:
    base = head(dimensions=20)
    empty = (np.zeros((0, 24)), np.zeros(0, dtype=np.int64))
    settings = HeadTraining(1, 1.0, 7.0, 0.5, 1, images_per_patient=4)
    draws = np.concatenate([train_head(base, *empty, training=settings) for _ in range(1000)])
    statistic = np.square(draws.astype(np.float64) / (7.0 * 0.5)).sum()
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], df=draws.size)
    assert low < statistic < high


def test_a_damaged_row_is_left_out_at_every_step_and_the_update_stays_finite() -> None:
    base = head()
    features, labels = patients(30)
    features[4] = np.nan
    counted: list[int] = []
    update = train_head(
        base, features, labels, training=training(steps=3), on_left_out=counted.append
    )
    assert counted == [1, 1, 1]
    kept = np.arange(30) != 4
    assert np.array_equal(
        update, train_head(base, features[kept], labels[kept], training=training(steps=3))
    )
