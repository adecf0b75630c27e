import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from matl_common.privacy.budget import (
    Budget,
    calibrate_noise,
    fraction_spent,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    group_epsilon,
    inverse_variance,
    rounds_left,
    spent_guarantee,
    would_exceed,
)
from matl_common.privacy.mechanisms import (
    Adjacency,
    GaussianEvent,
    PoissonSampledGaussianEvent,
    PrivacyUnit,
)

pytestmark = pytest.mark.privacy

DELTA = 1e-5
BUDGET = Budget(1.0, DELTA)


def test_closed_form_gives_the_published_anchor() -> None:
    # Google's pld_privacy_accountant_test: sigma = sqrt(3), T = 3, epsilon = 1.
    assert gaussian_delta(1.0, 1.0) == pytest.approx(0.126936, abs=1e-6)


@pytest.mark.parametrize(
    ("epsilon", "mu"),
    [(0.5, 0.14221), (1.0, 0.26805), (2.0, 0.50155), (4.0, 0.92493), (8.0, 1.66603)],
)
def test_mu_of_each_epsilon_is_the_design_value_and_inverts(epsilon: float, mu: float) -> None:
    assert gaussian_mu(epsilon, DELTA) == pytest.approx(mu, abs=5e-6)
    assert gaussian_epsilon(gaussian_mu(epsilon, DELTA), DELTA) == pytest.approx(epsilon, abs=1e-9)


def test_one_hundred_and_fifty_steps_need_a_noise_multiplier_of_45_691() -> None:
    assert calibrate_noise(1.0, DELTA, steps=150) == pytest.approx(45.691, abs=5e-4)
    assert BUDGET.capacity == pytest.approx(0.071851, abs=5e-7)


@pytest.mark.vectors
def test_golden_vectors_of_full_batch_and_group_privacy() -> None:
    path = Path(os.environ.get("MATL_VECTORS", "../shared/vectors")) / "privacy" / "golden.json"
    if not path.is_file():
        pytest.skip("test vectors are not on this machine; set MATL_VECTORS")
    golden = json.loads(path.read_text())
    full_batch = golden["full_batch"]
    sigma = calibrate_noise(full_batch["epsilon"], full_batch["delta"], steps=150)
    assert sigma == pytest.approx(full_batch["sigma_for_150_steps"], abs=5e-4)
    mu = gaussian_mu(1.0, DELTA)
    for records, epsilon in golden["group_privacy_full_batch_images_per_patient"].items():
        assert group_epsilon(mu, DELTA, records=int(records)) == pytest.approx(epsilon, abs=6e-4)


def test_replace_one_doubles_the_noise() -> None:
    add_remove = calibrate_noise(1.0, DELTA, steps=10)
    replace_one = calibrate_noise(1.0, DELTA, steps=10, adjacency=Adjacency.REPLACE_ONE)
    assert replace_one == pytest.approx(2.0 * add_remove)
    budget = Budget(1.0, DELTA, adjacency=Adjacency.REPLACE_ONE)
    epsilon = spent_guarantee(budget, [GaussianEvent(add_remove, 10)]).epsilon
    assert epsilon > 2.1


@settings(max_examples=60, deadline=None)
@given(epsilon=st.floats(0.05, 20.0), rounds=st.integers(1, 60), steps=st.integers(1, 40))
def test_a_calibrated_plan_fits_exactly_and_one_step_more_does_not(
    epsilon: float, rounds: int, steps: int
) -> None:
    budget = Budget(epsilon, DELTA)
    sigma = calibrate_noise(epsilon, DELTA, steps=rounds * steps)
    per_round = GaussianEvent(sigma, steps)
    spent: list[GaussianEvent] = []
    for left in range(rounds, 0, -1):
        assert rounds_left(budget, spent, per_round) == left
        assert not would_exceed(budget, spent, per_round)
        spent.append(per_round)
    assert would_exceed(budget, spent, GaussianEvent(sigma, 1))
    assert rounds_left(budget, spent, per_round) == 0
    assert spent_guarantee(budget, spent).epsilon <= epsilon
    assert fraction_spent(budget, spent) == pytest.approx(1.0, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 1e4), st.integers(0, 1000)), max_size=8))
def test_composition_is_the_sum_of_inverse_variances_in_any_order(
    parts: list[tuple[float, int]],
) -> None:
    events = [GaussianEvent(sigma, steps) for sigma, steps in parts]
    assert inverse_variance(events) == inverse_variance(reversed(events))
    assert inverse_variance(events) == pytest.approx(
        sum(steps / sigma**2 for sigma, steps in parts), rel=1e-12
    )


@settings(max_examples=100, deadline=None)
@given(mu=st.floats(1e-3, 50.0), delta=st.sampled_from([1e-9, 1e-5, 1e-2]))
def test_epsilon_is_never_understated(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    assert gaussian_delta(mu, epsilon) <= delta
    if epsilon > 0.0:
        assert gaussian_delta(mu, epsilon * (1.0 - 1e-9) - 1e-9) >= delta * (1.0 - 1e-4)


def test_half_the_rounds_spend_half_the_sum_but_more_than_half_of_epsilon() -> None:
    sigma = calibrate_noise(1.0, DELTA, steps=50)
    half = [GaussianEvent(sigma, 25)]
    assert fraction_spent(BUDGET, half) == pytest.approx(0.5, abs=1e-6)
    assert 0.6 < spent_guarantee(BUDGET, half).epsilon < 0.8


def test_a_guarantee_names_its_relation_and_unit() -> None:
    text = str(Budget(1.0, DELTA, unit=PrivacyUnit.IMAGE).guarantee)
    assert text == "ε = 1, δ = 1e-05 (add-or-remove-one image)"


def test_nothing_spent_is_epsilon_zero() -> None:
    assert spent_guarantee(BUDGET, []).epsilon == 0.0
    assert fraction_spent(BUDGET, []) == 0.0


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.0, DELTA), (-1.0, DELTA), (math.nan, DELTA), (math.inf, DELTA), (1.0, 0.0), (1.0, 1.0)],
)
def test_a_budget_without_meaning_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(InvalidInputError):
        Budget(epsilon, delta)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_an_event_without_noise_is_refused(sigma: float) -> None:
    with pytest.raises(InvalidInputError, match="noise_multiplier"):
        GaussianEvent(sigma, 1)


def test_events_with_impossible_counts_or_rates_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="steps"):
        GaussianEvent(1.0, -1)
    with pytest.raises(InvalidInputError, match="sample_rate"):
        PoissonSampledGaussianEvent(1.0, 0.0, 1)
    with pytest.raises(InvalidInputError, match="sample_rate"):
        PoissonSampledGaussianEvent(1.0, 1.5, 1)


def test_a_round_of_no_steps_has_no_rounds_left_to_count() -> None:
    with pytest.raises(InvalidInputError, match="0 steps"):
        rounds_left(BUDGET, [], GaussianEvent(1.0, 0))
