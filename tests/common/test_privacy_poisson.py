import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from matl_common.errors import InvalidInputError
from matl_common.privacy.mechanisms import Adjacency, PoissonSampledGaussianEvent
from matl_common.privacy.poisson import (
    PlanViolationError,
    PoissonPlan,
    calibrate_poisson_noise,
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


def test_importing_the_privacy_package_loads_neither_torch_nor_an_accountant() -> None:
    code = (
        "import sys, matl_common.privacy.budget, matl_common.privacy.noise, "
        "matl_common.privacy.poisson, matl_common.privacy.mechanisms\n"
        "print([m for m in ('torch', 'scipy', 'dp_accounting', 'opacus') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
