import ast
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from matl_common.errors import InvalidInputError
from matl_common.privacy.noise import (
    gaussian_noise,
    poisson_sample,
    public_grid,
    round_to_grid,
    uniforms,
)

pytestmark = pytest.mark.privacy

DRAWS = 400_000
# Two-sided tails this thin fail by chance once in a million runs.
TAIL = 5e-7


@pytest.mark.parametrize("stddev", [1.0, 45.691])
def test_noise_variance_lies_within_chi_squared_limits(stddev: float) -> None:
    draws = gaussian_noise(DRAWS, stddev=stddev)
    statistic = float(np.square(draws / stddev).sum())
    low, high = stats.chi2.ppf([TAIL, 1.0 - TAIL], df=DRAWS)
    assert low < statistic < high


def test_noise_has_the_normal_distribution_over_both_halves_of_a_call() -> None:
    draws = gaussian_noise(DRAWS, stddev=1.0)
    assert stats.kstest(draws, "norm").pvalue > 1e-6
    assert abs(draws.mean()) < 5.0 / math.sqrt(DRAWS)
    tails = np.abs(draws) > 4.0
    assert 1e-5 < tails.mean() < 2e-4


def test_neighbouring_draws_are_uncorrelated() -> None:
    draws = gaussian_noise(1 << 17, stddev=1.0)
    limit = 5.5 / math.sqrt(len(draws))
    # 1 << 15 is the distance of two outputs that share their Box-Muller pairs.
    for lag in (1, 2, 1 << 15):
        assert abs(np.mean(draws[:-lag] * draws[lag:])) < limit * math.sqrt(
            len(draws) / (len(draws) - lag)
        )


def test_two_calls_differ_and_are_uncorrelated() -> None:
    first, second = (gaussian_noise(100_001, stddev=2.0) for _ in range(2))
    assert not np.any(first == second)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5.5 / math.sqrt(len(first))


def test_seeding_every_generator_changes_nothing() -> None:
    calls = []
    for _ in range(2):
        random.seed(42)
        np.random.seed(42)  # noqa: NPY002 - the global generator is what is tested
        torch.manual_seed(42)
        calls.append(gaussian_noise(1000, stddev=1.0))
    assert not np.any(calls[0] == calls[1])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 65_535, 65_536, 65_537])
def test_every_count_is_filled(count: int) -> None:
    draws = gaussian_noise(count, stddev=1.0)
    assert draws.shape == (count,)
    assert np.isfinite(draws).all()
    assert np.count_nonzero(draws) == count


def test_uniforms_lie_above_zero_and_are_uniform() -> None:
    draws = uniforms(200_000)
    assert draws.min() > 0.0
    assert draws.max() <= 1.0
    assert stats.kstest(draws, "uniform").pvalue > 1e-6
    # All 53 bits vary: half the draws have the last one set.
    last_bits = (draws * 2.0**53).astype(np.uint64) & np.uint64(1)
    assert 0.49 < last_bits.mean() < 0.51


# int(1 / (1 / n)) is n - 1 for these sizes; a sampler built on it would lose a step.
@pytest.mark.parametrize("count", [93, 99, 105, 117, 123])
def test_poisson_sample_has_the_rate_for_awkward_sizes(count: int) -> None:
    rate = 1.0 / count
    sizes = [len(poisson_sample(count, sample_rate=rate)) for _ in range(4000)]
    assert np.mean(sizes) == pytest.approx(1.0, abs=0.08)
    assert min(sizes) == 0


def test_poisson_sample_includes_each_index_independently() -> None:
    chosen = [poisson_sample(20, sample_rate=0.3) for _ in range(5000)]
    table = np.zeros((5000, 20))
    for row, indices in zip(table, chosen, strict=True):
        row[indices] = 1.0
    assert np.abs(table.mean(axis=0) - 0.3).max() < 0.035
    assert np.var(table.sum(axis=1)) == pytest.approx(20 * 0.3 * 0.7, rel=0.15)


def test_poisson_sample_at_the_ends_takes_none_or_all() -> None:
    assert len(poisson_sample(50, sample_rate=0.0)) == 0
    assert list(poisson_sample(50, sample_rate=1.0)) == list(range(50))


@pytest.mark.parametrize("stddev", [1e-6, 0.7, 1.0, 45.7, 1e6])
def test_the_public_grid_is_a_power_of_two_far_below_the_noise(stddev: float) -> None:
    grid = public_grid(stddev)
    assert math.frexp(grid)[0] == 0.5
    assert stddev * 2.0**-21 < grid <= stddev * 2.0**-20


def test_rounding_lands_on_the_grid_and_moves_by_half_a_step_at_most() -> None:
    values = gaussian_noise(10_000, stddev=3.0)
    grid = public_grid(3.0)
    rounded = round_to_grid(values, grid=grid)
    assert np.array_equal(rounded / grid, np.rint(rounded / grid))
    assert np.abs(rounded - values).max() <= grid / 2.0


@pytest.mark.parametrize("stddev", [0.0, -1.0, math.nan, math.inf])
def test_noise_without_a_scale_is_refused(stddev: float) -> None:
    with pytest.raises(InvalidInputError, match="stddev"):
        gaussian_noise(1, stddev=stddev)


def test_negative_counts_and_impossible_rates_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="count"):
        gaussian_noise(-1, stddev=1.0)
    with pytest.raises(InvalidInputError, match="count"):
        uniforms(-1)
    with pytest.raises(InvalidInputError, match="sample_rate"):
        poisson_sample(3, sample_rate=1.1)


def test_no_generator_is_seeded_or_global_in_training_and_privacy_code() -> None:
    banned = {"manual_seed", "seed", "default_rng", "RandomState", "Generator"}
    sources = [
        path
        for folder in ("matl_participant", "matl_common/privacy", "matl_common/vision")
        for path in Path(folder).rglob("*.py")
    ]
    assert len(sources) > 10
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
            assert name not in banned, f"{path} uses {name}"
