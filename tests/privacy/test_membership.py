"""Membership inference on the released model against the bound for its ε."""

import math

import numpy as np
import pytest
from scipy import stats

from matl_common.privacy.budget import gaussian_mu
from tests.privacy.attacks import (
    CLAIMED_EPSILON,
    CLIP,
    DELTA,
    FAULTS,
    Mechanism,
    claimed,
    target_scores,
)

pytestmark = pytest.mark.privacy

MU = gaussian_mu(CLAIMED_EPSILON, DELTA)
TRIALS = 4000
# Five standard errors: exceeded by chance once in millions of runs.
SLACK = 5.0


def accuracy(mechanism: Mechanism) -> float:
    present, absent = target_scores(mechanism, trials=TRIALS)
    middle = (present.mean() + absent.mean()) / 2.0
    return float(((present > middle).mean() + (absent <= middle).mean()) / 2.0)


def test_the_best_attack_is_right_no_more_often_than_the_bound_allows() -> None:
    bound = stats.norm.cdf(MU / 2.0)
    assert bound == pytest.approx(0.553, abs=5e-4)
    error = math.sqrt(0.25 / (2 * TRIALS))
    found = accuracy(claimed(steps=1))
    assert found <= bound + SLACK * error
    # And it is right more often than a coin: it attacks.
    assert found > 0.5 + error


def test_at_every_false_positive_rate_true_positives_stay_below_the_bound() -> None:
    present, absent = target_scores(claimed(steps=1), trials=TRIALS)
    for rate in (0.01, 0.05, 0.2, 0.5):
        threshold = np.quantile(absent, 1.0 - rate)
        bound = stats.norm.cdf(stats.norm.ppf(rate) + MU)
        # Two errors: of the rate above the threshold, and of the threshold itself.
        error = math.sqrt(2.0 * bound * (1.0 - bound) / TRIALS)
        assert (present > threshold).mean() <= bound + SLACK * error
    assert stats.norm.cdf(stats.norm.ppf(0.01) + MU) == pytest.approx(0.0198, abs=1e-4)


def test_with_its_noise_halved_the_released_model_breaks_the_bound() -> None:
    bound = stats.norm.cdf(MU / 2.0)
    found = accuracy(claimed(steps=1, times_noise=0.5))
    assert found > bound + 3.0 * math.sqrt(0.25 / (2 * TRIALS))


def test_without_noise_membership_is_certain() -> None:
    present, absent = target_scores(FAULTS["no noise"], trials=20)
    assert present.min() > absent.max() + CLIP / 2.0
