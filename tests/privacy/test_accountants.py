"""Our accounting against every accountant at hand, on the published table."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from opacus.accountants import PRVAccountant, RDPAccountant

from matl_common.privacy.budget import (
    Budget,
    calibrate_noise,
    full_batch_epsilon,
    gaussian_epsilon,
    gaussian_mu,
    group_epsilon,
    spent_guarantee,
)
from matl_common.privacy.mechanisms import (
    Adjacency,
    DiscreteGaussianEvent,
    GaussianEvent,
    PoissonSampledGaussianEvent,
)
from matl_common.privacy.noise import poisson_sample
from matl_common.privacy.poisson import composed_guarantee, poisson_guarantee

pytestmark = [
    pytest.mark.privacy,
    pytest.mark.vectors,
    # Opacus sizes its grid by a loose Rényi bound, which it says is loose.
    pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha:UserWarning"),
]

DELTA = 1e-5
PRV_ERROR = 0.01
# The table's figures have five decimals.
ROUNDED = 6e-6
Row = Mapping[str, Any]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    path = Path(os.environ.get("MATL_VECTORS", "../shared/vectors")) / "privacy" / "golden.json"
    if not path.is_file():
        pytest.skip("test vectors are not on this machine; set MATL_VECTORS")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def rows(golden: dict[str, Any]) -> list[Row]:
    assert golden["adjacency"] == "add-or-remove-one"
    found: list[Row] = golden["poisson_subsampled_gaussian"]
    assert len(found) == 10
    return found


def sampled(row: Row) -> dp_accounting.DpEvent:
    gaussian = dp_accounting.GaussianDpEvent(row["noise_multiplier"])
    event = dp_accounting.PoissonSampledDpEvent(row["sample_rate"], gaussian)
    return dp_accounting.SelfComposedDpEvent(event, row["steps"])


def ours(row: Row) -> float:
    event = PoissonSampledGaussianEvent(row["noise_multiplier"], row["sample_rate"], row["steps"])
    return poisson_guarantee(event, row["delta"]).epsilon


def opacus(kind: type[PRVAccountant] | type[RDPAccountant], row: Row) -> Any:
    accountant = kind()
    accountant.history = [(row["noise_multiplier"], row["sample_rate"], row["steps"])]
    return accountant


def test_privacy_loss_distributions_of_dp_accounting_give_our_epsilon(rows: list[Row]) -> None:
    for row in rows:
        accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(sampled(row))
        found = accountant.get_epsilon(row["delta"])
        assert found == pytest.approx(row["epsilon_pld"], abs=ROUNDED)
        assert ours(row) == pytest.approx(found, abs=1e-9)


def test_renyi_accounting_of_dp_accounting_is_an_upper_bound(rows: list[Row]) -> None:
    for row in rows:
        accountant = rdp.RdpAccountant()
        accountant.compose(sampled(row))
        found = accountant.get_epsilon(row["delta"])
        assert ours(row) < found
        assert found == pytest.approx(row["epsilon_rdp"], rel=2e-3)


def test_the_prv_accountant_of_opacus_brackets_our_epsilon(rows: list[Row]) -> None:
    for row in rows:
        upper = opacus(PRVAccountant, row).get_epsilon(row["delta"], eps_error=PRV_ERROR)
        assert upper == pytest.approx(row["epsilon_prv_upper"], abs=5e-4)
        assert row["epsilon_prv_lower"] <= ours(row) <= upper


def test_the_rdp_accountant_of_opacus_is_an_upper_bound(rows: list[Row]) -> None:
    for row in rows:
        found = opacus(RDPAccountant, row).get_epsilon(row["delta"])
        assert ours(row) < found
        assert found == pytest.approx(row["epsilon_rdp"], rel=2e-3)


@pytest.mark.parametrize(("sigma", "steps"), [(49.5, 150), (20.0, 150), (5.0, 3), (300.0, 10)])
def test_zcdp_accounting_of_dp_accounting_gives_the_epsilon_of_discrete_noise(
    sigma: float, steps: int
) -> None:
    told = full_batch_epsilon([DiscreteGaussianEvent(sigma, steps)], DELTA)
    accountant = rdp.RdpAccountant()
    accountant.compose(dp_accounting.ZCDpEvent(steps / (2.0 * sigma**2)))
    theirs = accountant.get_epsilon(DELTA)
    # Theirs takes the best of a few orders, ours of all.
    assert told <= theirs + 1e-9
    assert told == pytest.approx(theirs, rel=5e-2)
    # In one dimension the loss of discrete noise is known: the bound must not undercut it.
    exact = pld.privacy_loss_distribution.from_discrete_gaussian_mechanism(
        sigma, sensitivity=1
    ).self_compose(steps)
    assert exact.get_epsilon_for_delta(DELTA) <= told


def test_the_exact_gaussian_sum_lies_below_every_numerical_accountant(
    golden: dict[str, Any],
) -> None:
    whole = golden["full_batch"]
    steps, epsilon = 150, whole["epsilon"]
    sigma = calibrate_noise(epsilon, whole["delta"], steps=steps)
    assert sigma == pytest.approx(whole["sigma_for_150_steps"], abs=6e-4)
    assert Budget(epsilon, DELTA).capacity == pytest.approx(
        whole["sum_inverse_sigma_squared"], abs=6e-7
    )
    for target, mu in golden["gaussian_mu_at_delta_1e-5"].items():
        assert gaussian_mu(float(target), DELTA) == pytest.approx(mu, abs=ROUNDED)
    exact = gaussian_epsilon(math.sqrt(steps) / sigma, DELTA)
    numerical = composed_guarantee([GaussianEvent(sigma, steps)], DELTA).epsilon
    row = {"noise_multiplier": sigma, "sample_rate": 1.0, "steps": steps}
    assert exact == pytest.approx(epsilon, abs=1e-6)
    assert exact <= numerical + 1e-9
    assert numerical == pytest.approx(exact, abs=1e-3)
    assert exact < opacus(RDPAccountant, row).get_epsilon(DELTA)
    # Its formula divides by 1 - q.
    row["sample_rate"] = 1.0 - 1e-9
    assert exact == pytest.approx(
        opacus(PRVAccountant, row).get_epsilon(DELTA, eps_error=PRV_ERROR), abs=2 * PRV_ERROR
    )


def test_a_patient_with_several_images_and_the_other_relation_cost_what_the_table_says(
    golden: dict[str, Any],
) -> None:
    mu = gaussian_mu(1.0, DELTA)
    images = golden["group_privacy_full_batch_images_per_patient"]
    for count, epsilon in images.items():
        assert group_epsilon(mu, DELTA, records=int(count)) == pytest.approx(epsilon, abs=6e-4)
    sigma = golden["full_batch"]["sigma_for_150_steps"]
    budget = Budget(1.0, DELTA, adjacency=Adjacency.REPLACE_ONE)
    replaced = spent_guarantee(budget, [GaussianEvent(sigma, 150)]).epsilon
    # The table's figure is that of a pessimistic numerical accountant, to two decimals.
    assert replaced == pytest.approx(golden["replace_one_at_same_sigma"], abs=2e-2)


def test_epsilon_grows_over_the_rounds_as_the_table_says(golden: dict[str, Any]) -> None:
    for rounds, epsilon in golden[
        "epsilon_after_rounds_sigma_16.622_q_0.128_24_steps_per_round"
    ].items():
        event = PoissonSampledGaussianEvent(16.622, 0.128, 24 * int(rounds))
        assert poisson_guarantee(event, DELTA).epsilon == pytest.approx(epsilon, abs=6e-4)


# A sampler that derives its number of steps from 1/q loses one for these sizes.
AWKWARD = [n for n in range(2, 400) if int(1.0 / (1.0 / n)) != n]


def test_the_sampler_has_exactly_the_rate_that_is_charged_for_awkward_sizes() -> None:
    assert AWKWARD[:5] == [93, 99, 105, 117, 123]
    for count in AWKWARD:
        draws = np.array([len(poisson_sample(count, sample_rate=1.0 / count)) for _ in range(2000)])
        deviation = math.sqrt((1.0 - 1.0 / count) / len(draws))
        assert abs(draws.mean() - 1.0) < 5.5 * deviation
        # Were a step lost, or the rate 1/(n - 1), one epoch would cost something else.
        event = PoissonSampledGaussianEvent(1.0, 1.0 / count, count)
        assert event.steps * event.sample_rate == pytest.approx(1.0, abs=1e-12)
