"""Where privacy noise turns rules round: measured, then what is said of it at start-up."""

from dataclasses import replace
from functools import cache
from math import sqrt

import numpy as np
import pytest

from matl_common.protocol import PrivacyTerms, Recipe, TrainingPlan
from matl_coordinator.core.robust.dominance import (
    REFUSED_ABOVE,
    WARNED_ABOVE,
    Severity,
    check_against_noise,
    noise_leads,
    noise_ratios,
    update_signal_bound,
)
from matl_coordinator.core.robust.gram import PrivacyNoise
from matl_coordinator.core.robust.plan import Identity
from matl_coordinator.core.robust.registry import RULES, Choice, make_aggregator
from tests.core.robust_rows import aggregator, carried_out, round_of

pytestmark = pytest.mark.privacy

N, F, D = 20, 4, 1000

TRAINING = TrainingPlan(
    recipe=Recipe.HEAD,
    backbone="test",
    backbone_digest=None,
    image_size=224,
    views=1,
    steps_per_round=1,
    learning_rate=2.0,
    batch_size=1,
)
PRIVACY = PrivacyTerms(
    unit="patient",
    adjacency="add_or_remove_one",
    target_epsilon=1.0,
    target_delta=1e-5,
    noise_multiplier=26.4,
    max_grad_norm=0.5,
    sample_rate=1.0,
    max_steps=50,
)


@cache
def hostile_share(
    *stages: str, ratio: float, strength: float = 0.1, radius: float | None = None, f: int = F
) -> float:
    """How much of the aggregate ``f`` hostile updates without noise hold, of twenty.

    They send ``-strength`` times the honest signal, of length 1; inner-product manipulation.
    """
    parameters = {} if radius is None else {"tau": radius}
    shares = []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        signal = generator.standard_normal(D)
        signal /= np.linalg.norm(signal)
        apart = generator.standard_normal((N - f, D)) * 0.3 / sqrt(D)
        noise = generator.standard_normal((N - f, D)) * ratio / sqrt(D)
        rows = np.vstack([signal + apart + noise, np.tile(-strength * signal, (f, 1))])
        gram, everything = round_of(rows, root=signal, previous=np.zeros(D))
        gram = replace(gram, noise=PrivacyNoise(np.full(N, ratio / sqrt(D)), signal_bound=1.0))
        plan = aggregator(*stages, f=f, parameters=parameters)(gram)
        if isinstance(plan.reduction, Identity):
            shares.append(plan.mixing[0, N - f : N].sum() / plan.mixing[0, :N].sum())
        else:
            along = float(carried_out(plan, everything) @ signal)
            shares.append((1.0 - along) / (1.0 + strength))
    return float(np.mean(shares))


def test_krum_and_the_geometric_median_turn_round_as_noise_grows() -> None:
    krum = [hostile_share("krum", ratio=r, strength=1.0) for r in (1.0, 3.0, 10.0)]
    assert krum == [0.0, 1.0, 1.0]
    median = [hostile_share("geometric_median", ratio=r) for r in (0.3, 1.0, 3.0, 10.0)]
    assert median == pytest.approx([0.10, 0.23, 0.57, 0.91], abs=0.04)


@pytest.mark.parametrize("name", [n for n in RULES if n not in {"smea", "caf"}])
def test_a_rule_is_called_distance_based_when_noise_gives_the_hostile_more_than_their_number(
    name: str,
) -> None:
    turned = max(hostile_share(name, ratio=ratio) for ratio in (3.0, 10.0)) > F / N + 0.01
    assert aggregator(name, f=F).distance_based == turned


def test_smea_is_turned_round_too() -> None:
    # Apart, because it looks at 4,845 subsets a round.
    assert aggregator("smea", f=F).distance_based
    assert hostile_share("smea", ratio=10.0) == pytest.approx(0.25)


def test_caf_is_turned_round_by_as_many_as_it_tolerates() -> None:
    # A few are filtered out; nine of twenty are what is left when the noisy have been.
    assert hostile_share("caf", ratio=10.0) < F / N + 0.01
    assert hostile_share("caf", ratio=10.0, f=9) == pytest.approx(1.0)
    assert aggregator("caf", f=F).distance_based


def test_mixing_neighbours_turns_any_rule_round_and_clipping_does_not() -> None:
    for pre in ("nnm", "arc", "bucketing", "clip_to_median_norm"):
        turned = hostile_share("weighted_mean", pre, ratio=3.0) > F / N + 0.01
        assert aggregator("weighted_mean", pre, f=F).distance_based == turned == (pre == "nnm")


def test_a_fixed_clipping_radius_turns_round_where_noise_passes_it() -> None:
    fixed = make_aggregator(Choice("centered_clipping", {"tau": 1.0}), f=F)
    assert fixed.distance_based
    assert hostile_share("centered_clipping", ratio=10.0, radius=1.0) > 0.5


@pytest.mark.parametrize(
    "name", [n for n in RULES if n != "smea" and aggregator(n, f=F).distance_based]
)
def test_the_limits_lie_on_either_side_of_where_rules_turn(name: str) -> None:
    # With honest signals as long as they may be, below the warning none is turned round ...
    assert hostile_share(name, ratio=WARNED_ABOVE) <= F / N
    # ... and with honest signals half as long as they may be, above the refusal all are;
    # DnC, which looks at one direction only, with a third.
    part = 3.2 if name == "dnc" else 2.2
    assert hostile_share(name, ratio=part * REFUSED_ABOVE) > F / N


def noisy(ratio: float, *, elements: int = 10_000, patients: int = 100) -> PrivacyTerms:
    """Terms under which a hospital of so many patients puts in ``ratio`` times its signal."""
    return replace(PRIVACY, noise_multiplier=ratio * patients / sqrt(elements))


def test_the_ratio_is_the_length_of_the_noise_over_that_of_the_signal() -> None:
    # trust.md's table: one step, ten thousand coordinates, 10,000 / 3,000 / 1,000 patients.
    ratios = noise_ratios(TRAINING, PRIVACY, elements=10_000, patients=[10_000, 3_000, 1_000])
    assert ratios == pytest.approx((0.264, 0.88, 2.64), abs=0.005)
    assert update_signal_bound(TRAINING, PRIVACY) == pytest.approx(1.0)
    # Signals add up over steps, noises only in variance.
    four = replace(TRAINING, steps_per_round=4)
    assert update_signal_bound(four, PRIVACY) == pytest.approx(4.0)
    assert noise_ratios(four, PRIVACY, elements=10_000, patients=[1_000]) == pytest.approx(
        (1.32,), abs=0.005
    )


@pytest.mark.parametrize(
    ("rule", "ratio", "severity"),
    [
        ("krum", 0.2, Severity.FINE),
        ("krum", 0.3, Severity.WARNING),
        ("krum", 0.99, Severity.WARNING),
        ("krum", 1.01, Severity.REFUSAL),
        ("coordinate_median", 3.0, Severity.REFUSAL),
        ("matl", 40.0, Severity.FINE),
        ("clipped_weighted_mean", 40.0, Severity.FINE),
        ("fltrust", 0.9, Severity.FINE),
        ("fltrust", 4.0, Severity.WARNING),
    ],
)
def test_a_rule_is_judged_by_the_median_hospitals_noise(
    rule: str, ratio: float, severity: Severity
) -> None:
    verdict = check_against_noise(
        aggregator(rule, f=1),
        TRAINING,
        noisy(ratio),
        elements=10_000,
        # The smallest would be refused alone, the largest would be fine.
        patients=[100_000, 100, 1],
    )
    assert verdict.severity is severity
    assert verdict.ratio == pytest.approx(ratio)
    if severity is Severity.FINE:
        assert verdict.text == ""
    else:
        assert f"{ratio:.2g} times as long" in verdict.text
        assert rule in verdict.text
        assert "weighted_mean or clipped_weighted_mean or matl" in verdict.text
    if rule == "fltrust" and severity is Severity.WARNING:
        assert "leaves at most 0.25 of it" in verdict.text


def test_noise_leads_the_common_step_from_where_nearness_rules_are_warned_of() -> None:
    assert not noise_leads(TRAINING, PRIVACY, elements=490, patients=[3000] * 5)
    assert noise_leads(TRAINING, PRIVACY, elements=490, patients=[300] * 5)
    calm = replace(PRIVACY, noise_multiplier=0.0)
    assert not noise_leads(TRAINING, calm, elements=490, patients=[300] * 5)


def test_what_goes_before_a_rule_is_judged_with_it() -> None:
    mixing = check_against_noise(
        aggregator("matl", "nnm", f=1), TRAINING, noisy(3.0), elements=10_000, patients=[100]
    )
    assert mixing.severity is Severity.REFUSAL
    assert "nnm(f=1) then matl" in mixing.text


def test_without_noise_or_before_any_enrolment_every_rule_is_fine() -> None:
    quiet = replace(PRIVACY, noise_multiplier=0.0)
    for privacy, patients in ((quiet, [5, 5, 5]), (PRIVACY, [])):
        verdict = check_against_noise(
            aggregator("krum", f=1), TRAINING, privacy, elements=10**6, patients=patients
        )
        assert (verdict.severity, verdict.ratio) == (Severity.FINE, 0.0)
