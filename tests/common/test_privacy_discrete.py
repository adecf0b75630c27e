import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from matl_common.errors import InvalidInputError
from matl_common.privacy.budget import Budget, calibrate_noise, gaussian_epsilon
from matl_common.privacy.concentrated import zcdp_epsilon, zcdp_rho
from matl_common.privacy.discrete import (
    discrete_gaussian,
    discrete_noised_sum,
    gradient_grid,
    sum_on_grid,
)
from matl_common.privacy.mechanisms import Noise
from matl_common.privacy.noise import Float64Array

pytestmark = pytest.mark.privacy

DELTA = 1e-5
GRID = 2.0**-20
# Tests this unlikely fail by chance once in a million runs.
UNLIKELY = 1e-6


def calibrate_discrete_noise(epsilon: float, delta: float, *, steps: int) -> float:
    return calibrate_noise(epsilon, delta, steps=steps, noise=Noise.DISCRETE_GAUSSIAN)


def masses(variance: Fraction, reach: int) -> Float64Array:
    """Probabilities of -reach … reach."""
    values = np.arange(-reach, reach + 1, dtype=np.float64)
    weights: Float64Array = np.exp(-(values**2) / (2.0 * float(variance)))
    total: float = weights.sum()
    return np.divide(weights, total)


@pytest.mark.parametrize(
    "variance", [Fraction(1, 10), Fraction(1), Fraction(5, 2), Fraction(9), Fraction(101, 4)]
)
def test_draws_have_the_discrete_gaussian_distribution(variance: Fraction) -> None:
    draws = discrete_gaussian(20_000, variance=variance)
    reach = 6 + int(8 * math.sqrt(variance))
    expected = masses(variance, reach) * len(draws)
    observed = np.bincount(draws + reach, minlength=2 * reach + 1)
    common = expected >= 5.0
    left = len(draws) - expected[common].sum()
    observed_left = len(draws) - observed[common].sum()
    statistic = float((np.square(observed[common] - expected[common]) / expected[common]).sum())
    if left >= 5.0:
        statistic += (observed_left - left) ** 2 / left
    assert stats.chi2.sf(statistic, df=int(common.sum())) > UNLIKELY


def test_noise_of_a_fine_grid_has_its_variance_and_is_normal() -> None:
    sigma = 45.691 / GRID
    draws = discrete_gaussian(20_000, variance=Fraction(sigma) ** 2) / sigma
    low, high = stats.chi2.ppf([UNLIKELY / 2, 1 - UNLIKELY / 2], df=draws.size)
    assert low < float(np.square(draws).sum()) < high
    assert stats.kstest(draws, "norm").pvalue > UNLIKELY


def test_two_calls_share_nothing() -> None:
    first, second = (discrete_gaussian(2000, variance=Fraction(10**12)) for _ in range(2))
    assert not np.any(first == second)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5.5 / math.sqrt(len(first))


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(0, 30),
    norm=st.floats(0.1, 8.0),
    scale=st.floats(1e-3, 1e12),
)
def test_one_row_moves_the_integer_sum_by_at_most_the_norm_in_grid_units(
    seed: int, bits: int, norm: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    # The largest power of two up to the norm; log2 would round the norm itself up to one.
    grid = math.ldexp(0.5, math.frexp(norm)[1] - bits)
    if norm / grid > 1 << 30:
        grid *= 2.0
    rows = scale * rng.normal(size=(6, 5))
    clipped = rows * (norm / np.maximum(np.linalg.norm(rows, axis=1), norm))[:, None]
    for each in (rows, clipped):
        whole = sum_on_grid(each, grid=grid, max_grad_norm=norm)
        rest = sum_on_grid(each[1:], grid=grid, max_grad_norm=norm)
        moved = sum(int(value) ** 2 for value in whole - rest)
        assert Fraction(moved) <= (Fraction(norm) / Fraction(grid)) ** 2


def test_clipped_rows_are_summed_to_within_a_grid_step_each() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 40))
    rows /= np.linalg.norm(rows, axis=1)[:, None] * 1.001
    total = sum_on_grid(rows, grid=GRID, max_grad_norm=1.0) * GRID
    assert np.abs(total - rows.sum(axis=0)).max() < 300 * GRID
    rows[7, 3] = np.nan
    rows[8, 1] = np.inf
    kept = np.delete(rows, [7, 8], axis=0)
    damaged = sum_on_grid(rows, grid=GRID, max_grad_norm=1.0)
    assert np.array_equal(damaged, sum_on_grid(kept, grid=GRID, max_grad_norm=1.0))


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    norm=st.floats(0.1, 8.0),
    rows_per_patient=st.integers(1, 7),
)
def test_a_patient_with_many_rows_moves_the_sum_no_further_than_one_with_one(
    seed: int, norm: float, rows_per_patient: int
) -> None:
    rng, grid = np.random.default_rng(seed), gradient_grid(norm)
    direction = rng.normal(size=5)
    # Longer than allowed, by a hair or by much, and all in one direction.
    length = norm / rows_per_patient * rng.choice([1.0, 1.0 + 1e-6, 1.5])
    rows = np.tile(direction * length / np.linalg.norm(direction), (rows_per_patient, 1))
    moved = sum_on_grid(rows, grid=grid, max_grad_norm=norm, rows_per_patient=rows_per_patient)
    squared = sum(int(value) ** 2 for value in moved)
    assert Fraction(squared) <= (Fraction(norm) / Fraction(grid)) ** 2


@pytest.mark.parametrize("norm", [1.0, 0.7, 0.5, 3.0, 1e6, 1e-6])
def test_the_grid_is_a_power_of_two_far_below_the_norm(norm: float) -> None:
    grid = gradient_grid(norm)
    assert math.frexp(grid)[0] == 0.5
    assert 2**24 <= norm / grid < 2**25


def test_a_release_lies_on_the_grid_and_has_the_stated_noise() -> None:
    released = discrete_noised_sum([], dimensions=20_000, noise_multiplier=3.0, max_grad_norm=0.5)
    grid = gradient_grid(0.5)
    assert np.array_equal(released / grid, np.rint(released / grid))
    low, high = stats.chi2.ppf([UNLIKELY / 2, 1 - UNLIKELY / 2], df=released.size)
    assert low < float(np.square(released / 1.5).sum()) < high


def test_rows_come_in_any_blocks_and_not_at_all_without_noise() -> None:
    rows = np.full((7, 3), 0.25)

    def read(_: int) -> Float64Array:
        raise AssertionError("data was read")

    with pytest.raises(InvalidInputError):
        discrete_noised_sum(
            map(read, range(1)), dimensions=3, noise_multiplier=0.0, max_grad_norm=1.0
        )
    told = [
        discrete_noised_sum(blocks, dimensions=3, noise_multiplier=1e-9, max_grad_norm=1.0)
        for blocks in ([rows], [rows[:3], rows[3:]])
    ]
    # So little noise is raised to a grid unit.
    for each in told:
        assert np.abs(each - 1.75).max() <= 20 * gradient_grid(1.0)


def test_the_hardened_noise_for_150_steps_is_the_design_value() -> None:
    assert calibrate_discrete_noise(1.0, DELTA, steps=150) == pytest.approx(49.5, abs=0.1)


@settings(max_examples=25, deadline=None)
@given(epsilon=st.floats(0.05, 20.0), steps=st.integers(1, 500))
def test_hardened_calibration_keeps_the_budget_and_never_undercuts_the_exact_gaussian(
    epsilon: float, steps: int
) -> None:
    sigma = calibrate_discrete_noise(epsilon, DELTA, steps=steps)
    rho = steps / (2.0 * sigma**2)
    assert zcdp_epsilon(rho, DELTA) <= epsilon
    assert zcdp_epsilon(rho * 1.001, DELTA) > epsilon
    # The continuous Gaussian with the same ρ is ρ-zCDP too, so the bound holds for it.
    assert gaussian_epsilon(math.sqrt(2.0 * rho), DELTA) <= epsilon
    assert sigma > calibrate_noise(epsilon, DELTA, steps=steps)
    assert zcdp_rho(epsilon, DELTA) == pytest.approx(rho, rel=1e-6)
    assert Budget(epsilon, DELTA).concentrated_capacity < Budget(epsilon, DELTA).capacity


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        discrete_gaussian(-1, variance=Fraction(1))
    with pytest.raises(InvalidInputError):
        discrete_gaussian(1, variance=Fraction(0))
    for grid in (0.3, 2.0, 2.0**-31):
        with pytest.raises(InvalidInputError, match="grid"):
            sum_on_grid(np.zeros((1, 2)), grid=grid, max_grad_norm=1.0)
    for sigma in (0.0, -1.0, math.inf):
        with pytest.raises(InvalidInputError, match="noise_multiplier"):
            discrete_noised_sum([], dimensions=2, noise_multiplier=sigma, max_grad_norm=1.0)
    for epsilon, delta, steps in (
        (0.0, DELTA, 1),
        (math.inf, DELTA, 1),
        (1.0, 0.0, 1),
        (1.0, DELTA, 0),
    ):
        with pytest.raises(InvalidInputError, match=r"epsilon|delta|steps"):
            calibrate_discrete_noise(epsilon, delta, steps=steps)
    with pytest.raises(InvalidInputError, match="epsilon"):
        zcdp_rho(math.inf, DELTA)
    assert zcdp_epsilon(0.0, DELTA) == 0.0
