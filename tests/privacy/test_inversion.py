"""Gradient inversion of a linear layer: an image comes back without noise, and not with it."""

import math

import numpy as np
import pytest
from scipy import stats

from matl_common.privacy.budget import gaussian_mu
from matl_common.privacy.noise import Float64Array
from tests.privacy.attacks import (
    CLAIMED_EPSILON,
    DELTA,
    Mechanism,
    claimed,
    cosine,
    gradient_sum,
    identity_head,
    invert,
)

pytestmark = pytest.mark.privacy

SIDE = 16
TRIALS = 1500


def image(rng: np.random.Generator) -> Float64Array:
    """A smooth blob somewhere, flattened and of mean zero."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    at, width = rng.uniform(-0.7, 0.7, 2), rng.uniform(0.1, 0.5)
    blob = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / width**2).ravel()
    centred: Float64Array = blob - blob.mean()
    return centred


def reconstruction(of: Float64Array, mechanism: Mechanism) -> Float64Array:
    head = identity_head(SIDE * SIDE, 5)
    return invert(gradient_sum(head, of[None, :], np.array([2]), mechanism))


def test_without_noise_the_image_comes_back_exactly() -> None:
    rng = np.random.default_rng()
    for _ in range(20):
        secret = image(rng)
        assert cosine(reconstruction(secret, Mechanism(0.0, 1)), secret) > 0.9999


def test_with_noise_the_reconstruction_is_no_closer_to_the_member_than_to_a_stranger() -> None:
    rng = np.random.default_rng()
    member, stranger = np.empty(TRIALS), np.empty(TRIALS)
    for trial in range(TRIALS):
        secret, other = image(rng), image(rng)
        found = reconstruction(secret, claimed(steps=1))
        member[trial], stranger[trial] = cosine(found, secret), cosine(found, other)
    # Neither is an image of anything.
    assert max(np.abs(member).max(), np.abs(stranger).max()) < 0.5
    # How often the member is the closer of the two: no more than ε allows, and by this attack
    # no more than by tossing a coin.
    closer = float((np.abs(member) > np.abs(stranger)).mean())
    error = math.sqrt(0.25 / TRIALS)
    allowed = stats.norm.cdf(gaussian_mu(CLAIMED_EPSILON, DELTA) / math.sqrt(2.0))
    assert abs(closer - 0.5) < 5.0 * error
    assert closer < allowed + 5.0 * error


def test_over_the_whole_study_too_the_image_stays_hidden() -> None:
    rng = np.random.default_rng()
    for _ in range(20):
        secret = image(rng)
        assert abs(cosine(reconstruction(secret, claimed(steps=150)), secret)) < 0.5
