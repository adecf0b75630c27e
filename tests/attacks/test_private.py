"""Attacks on a study with privacy noise have the properties that define them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from matl.attacks import AttackError, Honest, Knowledge, as_trained, with_promised_noise
from matl.attacks.published import ipm
from tests.attacks.knowledge import STD, D, F, H, cosine, crafted, known


def test_an_attack_with_the_promised_noise_has_it_and_a_noise_free_one_does_not() -> None:
    honest = known()
    signals = honest.before_noise()
    assert honest.noise_std is not None
    expected = ipm(signals, np.random.default_rng(0), tau=2.0)
    attack = with_promised_noise(partial(ipm, tau=2.0))
    added = attack(honest, np.random.default_rng(0)) - expected
    np.testing.assert_allclose(
        added.std(axis=1) / honest.noise_std, 1.0, atol=6.0 / math.sqrt(2.0 * D)
    )
    assert abs(cosine(added[0], added[1])) < 6.0 / math.sqrt(D)
    np.testing.assert_allclose(crafted("noise_free_ipm", honest), expected)


def test_promised_noise_needs_a_promise() -> None:
    with pytest.raises(AttackError, match=Knowledge.NOISE.value):
        with_promised_noise(as_trained)(known(private=False), np.random.default_rng(0))


def test_budget_spend_has_the_promised_norm_in_one_direction() -> None:
    honest = known()
    spent = crafted("budget_spend", honest) - honest.own
    assert honest.noise_std is not None
    assert honest.signals is not None
    np.testing.assert_allclose(np.linalg.norm(spent, axis=1), honest.noise_std * math.sqrt(D))
    for row in spent:
        assert cosine(row, honest.signals.mean(axis=0)) == pytest.approx(-1.0)


def test_correlated_noise_is_promised_noise_that_does_not_average_out() -> None:
    honest = known()
    noise = crafted("correlated_noise", honest) + honest.own
    assert honest.noise_std is not None
    scaled = noise / honest.noise_std[:, None]
    np.testing.assert_allclose(scaled, np.tile(scaled[0], (F, 1)))
    assert scaled[0].std() == pytest.approx(1.0, abs=6.0 / math.sqrt(2.0 * D))


@pytest.mark.parametrize("signal", [0.1, 1.0, 3.0])
def test_a_hub_is_like_every_honest_update_and_the_rest_are_like_none(signal: float) -> None:
    draws, length = np.random.default_rng(3), STD * math.sqrt(D)
    common = signal * length / math.sqrt(D) * draws.standard_normal(D)
    signals = common * (1.0 + 0.1 * draws.standard_normal((H, 1)))
    signals += 1e-3 * draws.standard_normal((H, D))
    noised = signals + STD * draws.standard_normal((H, D))
    honest = Honest(noised, signals[:3], signals=signals, noise_std=np.full(3, STD))
    first, *rest = crafted("hub", honest)
    assert cosine(first, signals.mean(axis=0)) == pytest.approx(1.0)
    assert np.linalg.norm(first) >= length * 0.999
    alike = min(cosine(first, row) for row in noised)
    among = [cosine(a, b) for i, a in enumerate(noised) for b in noised[:i]]
    assert alike > float(np.median(among))
    for row in rest:
        assert max(abs(cosine(row, other)) for other in (first, *noised)) < 0.5 * max(alike, 0.4)
        assert np.linalg.norm(row) > 0.8 * length
        assert np.linalg.norm(row) < 1.2 * max(1.0, math.hypot(1.0, signal)) * length
