import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from matl_common.errors import InvalidInputError
from matl_common.privacy.budget import gaussian_epsilon
from matl_common.privacy.mechanisms import (
    Adjacency,
    DiscreteGaussianEvent,
    GaussianEvent,
    PoissonSampledGaussianEvent,
)
from matl_common.privacy.poisson import (
    MOST_SAMPLED_STEPS,
    PlanViolationError,
    PoissonPlan,
    calibrate_poisson_noise,
    composed_guarantee,
    is_accountable,
    poisson_guarantee,
)

pytestmark = pytest.mark.privacy


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta", "epsilon"),
    [
        (1.5, 0.04, 2250, 1e-5, 6.76879),
        (0.8, 0.001, 1000, 1e-6, 0.46769),
        (16.622, 0.128, 1200, 1e-5, 0.99845),
        (1.0, 0.01, 1000, 1e-5, 1.82824),
    ],
)
def test_epsilon_of_published_plans(
    sigma: float, rate: float, steps: int, delta: float, epsilon: float
) -> None:
    guarantee = poisson_guarantee(PoissonSampledGaussianEvent(sigma, rate, steps), delta)
    assert guarantee.epsilon == pytest.approx(epsilon, abs=2e-4)
    assert guarantee.adjacency is Adjacency.ADD_OR_REMOVE_ONE


@pytest.mark.vectors
def test_golden_vectors_lie_between_the_other_accountants() -> None:
    path = Path(os.environ.get("MATL_VECTORS", "../shared/vectors")) / "privacy" / "golden.json"
    if not path.is_file():
        pytest.skip("test vectors are not on this machine; set MATL_VECTORS")
    for row in json.loads(path.read_text())["poisson_subsampled_gaussian"]:
        event = PoissonSampledGaussianEvent(
            row["noise_multiplier"], row["sample_rate"], row["steps"]
        )
        epsilon = poisson_guarantee(event, row["delta"]).epsilon
        assert row["epsilon_prv_lower"] <= epsilon <= row["epsilon_prv_upper"]
        assert epsilon == pytest.approx(row["epsilon_pld"], abs=2e-4)
        assert epsilon < row["epsilon_rdp"]


def test_calibration_reaches_the_budget_from_below() -> None:
    sigma = calibrate_poisson_noise(1.0, 1e-5, sample_rate=0.25, steps=600)
    assert sigma == pytest.approx(22.91, abs=0.02)
    at, below = (
        poisson_guarantee(PoissonSampledGaussianEvent(s, 0.25, 600), 1e-5).epsilon
        for s in (sigma, sigma - 0.02)
    )
    assert at <= 1.0 < below


def test_a_plan_counts_steps_and_refuses_other_parameters() -> None:
    plan = PoissonPlan(noise_multiplier=8.0, sample_rate=0.1, max_steps=100)
    assert not plan.would_exceed(steps_spent=90, request=plan.events(10))
    assert plan.would_exceed(steps_spent=91, request=plan.events(10))
    for changed in (
        PoissonSampledGaussianEvent(7.9, 0.1, 1),
        PoissonSampledGaussianEvent(8.0, 0.2, 1),
    ):
        with pytest.raises(PlanViolationError):
            plan.would_exceed(steps_spent=0, request=changed)


def test_no_steps_spend_nothing() -> None:
    assert poisson_guarantee(PoissonSampledGaussianEvent(1.0, 0.1, 0), 1e-5).epsilon == 0.0
    with pytest.raises(InvalidInputError, match="steps"):
        calibrate_poisson_noise(1.0, 1e-5, sample_rate=0.1, steps=0)


ABSURD = [
    PoissonSampledGaussianEvent(1.0, 0.5, 10_000_000),
    PoissonSampledGaussianEvent(0.1, 0.5, 100),
    PoissonSampledGaussianEvent(20.0, 0.5, 1_000_000),
    PoissonSampledGaussianEvent(0.001, 1e-9, 1),
    PoissonSampledGaussianEvent(200.0, 0.01, MOST_SAMPLED_STEPS + 1),
]


@pytest.mark.parametrize("event", ABSURD, ids=str)
def test_what_no_accountant_is_asked_costs_what_it_would_without_sampling(
    event: PoissonSampledGaussianEvent,
) -> None:
    assert not is_accountable([event])
    mu = math.sqrt(event.steps) / event.noise_multiplier
    assert poisson_guarantee(event, 1e-5).epsilon == pytest.approx(gaussian_epsilon(mu, 1e-5))
    # Beside others too, and with its share of δ.
    discrete = DiscreteGaussianEvent(50.0, 10)
    alone = composed_guarantee([discrete], 0.5e-5).epsilon
    both = composed_guarantee([event, discrete], 1e-5).epsilon
    assert both == pytest.approx(gaussian_epsilon(mu, 0.5e-5) + alone)


def test_many_that_are_accountable_are_not_all_together() -> None:
    one = PoissonSampledGaussianEvent(1.0, 0.5, 200)
    assert is_accountable([one])
    assert not is_accountable([one, one])
    assert is_accountable([one, GaussianEvent(1.0, 10)])
    assert not is_accountable([one, GaussianEvent(1.0, 20)])


def test_what_it_would_cost_without_sampling_is_never_less() -> None:
    for event in (
        PoissonSampledGaussianEvent(0.25, 0.0033, 1),
        PoissonSampledGaussianEvent(1.0, 0.5, 100),
        PoissonSampledGaussianEvent(16.622, 0.128, 1200),
    ):
        assert is_accountable([event])
        mu = math.sqrt(event.steps) / event.noise_multiplier
        assert poisson_guarantee(event, 1e-5).epsilon <= gaussian_epsilon(mu, 1e-5)


def test_the_costliest_plans_that_are_computed_fit_into_memory() -> None:
    """In a process of its own, whose memory the kernel bounds."""
    code = (
        "from matl_common.privacy.mechanisms import GaussianEvent, PoissonSampledGaussianEvent\n"
        "from matl_common.privacy.poisson import composed_guarantee, is_accountable\n"
        "for event in (\n"
        f"    PoissonSampledGaussianEvent(10.0, 0.0997, {MOST_SAMPLED_STEPS}),\n"
        "    GaussianEvent(0.1001, 1),\n"
        "):\n"
        "    assert is_accountable([event])\n"
        "    assert 10.0 < composed_guarantee([event], 1e-5).epsilon < 100.0\n"
    )

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))

    subprocess.run([sys.executable, "-c", code], check=True, preexec_fn=bound)


def test_noise_for_more_sampled_steps_than_are_accounted_for_is_not_looked_for() -> None:
    with pytest.raises(InvalidInputError, match="1000000"):
        calibrate_poisson_noise(1.0, 1e-5, sample_rate=0.1, steps=MOST_SAMPLED_STEPS + 1)


def test_importing_the_privacy_package_loads_neither_torch_nor_an_accountant() -> None:
    code = (
        "import sys, matl_common.privacy.budget, matl_common.privacy.noise, "
        "matl_common.privacy.poisson, matl_common.privacy.mechanisms\n"
        "print([m for m in ('torch', 'scipy', 'dp_accounting', 'opacus') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
