import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2, norm

from matl_common.ids import NodeId
from matl_common.vision.linear_head import clipped_gradient_sum
from matl_coordinator.core.compliance import (
    FALSE_REFUSAL,
    SIZE_TOLERANCE,
    QuietPart,
    distribution_distance,
    distribution_limit,
    norm_band,
    quiet_part,
    refusals,
)
from matl_coordinator.core.robust.gram import Float64Array, Gram, PrivacyNoise, RowFacts

pytestmark = pytest.mark.privacy

CLASSES, FEATURES = 5, 32
ELEMENTS = CLASSES * (FEATURES + 1)
STEPS, LEARNING_RATE = 4, 8.0
SIGNAL = LEARNING_RATE * STEPS
NODE = NodeId("a")


def head_update(
    generator: np.random.Generator, *, patients: int, std: float, steps: int = STEPS
) -> Float64Array:
    """What the head recipe sends, its noise drawn reproducibly; ``std`` over all steps."""
    centres = generator.normal(size=(CLASSES, FEATURES))
    labels = generator.integers(0, CLASSES, size=patients)
    inputs = centres[labels] + generator.normal(size=(patients, FEATURES))
    inputs *= math.sqrt(0.46) / np.linalg.norm(inputs, axis=1, keepdims=True)
    start = generator.normal(size=(CLASSES, FEATURES + 1)) * generator.choice([0.0, 1.0, 10.0])
    parameters = start.copy()
    for _ in range(steps):
        weight, bias = clipped_gradient_sum(
            inputs, labels, parameters[:, :-1], parameters[:, -1], max_grad_norm=1.0
        )
        gradient = np.column_stack([weight, bias]) / patients
        noise = generator.normal(size=parameters.shape) * std / math.sqrt(steps)
        parameters = parameters - LEARNING_RATE * gradient - noise
    update: Float64Array = parameters - start
    return update


def judged(
    update: Float64Array,
    *,
    std: float,
    signal: float = SIGNAL,
    steps: int = STEPS,
    bins: tuple[int, ...] = (),
    with_quiet: bool = True,
) -> str | None:
    gram = Gram.of({NODE: update.ravel()})
    gram = replace(gram, noise=PrivacyNoise(np.array([std]), signal), facts=(RowFacts(bins=bins),))
    quiet = {NODE: quiet_part(update[:, :-1], update[:, -1])} if with_quiet else None
    return refusals(gram, steps=steps, quiet=quiet).get(NODE)


def binned(values: Float64Array, *, std: float, bins: int = 64) -> tuple[int, ...]:
    edges = norm.ppf(np.arange(1, bins) / bins) * std
    return tuple(np.bincount(np.searchsorted(edges, values.ravel()), minlength=bins).tolist())


@pytest.mark.parametrize("std", [0.01, 0.4, 5.0])
def test_no_honest_head_update_is_refused(std: float) -> None:
    generator = np.random.default_rng(11)
    for _ in range(400):
        update = head_update(generator, patients=60, std=std)
        assert judged(update, std=std, bins=binned(update, std=std)) is None


def test_the_quiet_part_of_a_head_update_is_its_noise_and_nothing_else() -> None:
    generator = np.random.default_rng(5)
    silent = head_update(generator, patients=80, std=0.0)
    assert np.linalg.norm(silent) > 1.0
    assert quiet_part(silent[:, :-1], silent[:, -1]).squared_norm < 1e-20
    # Curvature contracts early noise elsewhere; here the sum over all updates is exactly χ².
    drawn = [head_update(generator, patients=20, std=0.4) for _ in range(2000)]
    parts = [quiet_part(each[:, :-1], each[:, -1]) for each in drawn]
    assert {part.dimensions for part in parts} == {FEATURES + 1}
    ratios = np.array([part.squared_norm / 0.4**2 for part in parts])
    assert ratios.mean() == pytest.approx(FEATURES + 1, rel=0.02)
    assert ratios.var() == pytest.approx(2 * (FEATURES + 1), rel=0.15)


@pytest.mark.parametrize("dimensions", [33, 165, 2049, 1_000_000])
def test_the_bounds_on_the_noise_leave_out_no_more_than_promised(dimensions: int) -> None:
    band = norm_band(std=1.0, signal_bound=0.0, elements=dimensions, steps=1)
    slack = 1.0 + SIZE_TOLERANCE
    below = chi2.cdf((band.least * slack) ** 2, dimensions)
    above = chi2.sf((band.most / slack) ** 2, dimensions)
    assert below <= FALSE_REFUSAL / 6
    assert above <= FALSE_REFUSAL / 6
    # Chernoff costs a little, not everything.
    assert chi2.cdf((band.least * slack * 1.2) ** 2, dimensions) > FALSE_REFUSAL / 6
    assert chi2.sf((band.most / slack / 1.2) ** 2, dimensions) > FALSE_REFUSAL / 6


def test_curvature_may_contract_all_noise_but_the_last_steps() -> None:
    # The worst honest dynamics there are: every step undoes what the ones before it did.
    generator = np.random.default_rng(3)
    std, elements, steps = 1.0, 20_000, 4
    last = generator.normal(size=elements) * std / math.sqrt(steps)
    band = norm_band(std=std, signal_bound=1e9, elements=elements, steps=steps)
    assert 0.85 * np.linalg.norm(last) < band.least < np.linalg.norm(last)


def test_where_noise_dominates_an_update_without_it_is_refused_by_its_length_alone() -> None:
    update = head_update(np.random.default_rng(1), patients=50, std=0.0)
    text = judged(update, std=10.0, with_quiet=False)
    assert text is not None
    assert "with the promised privacy noise it would be at least" in text


def test_where_signal_may_dominate_only_the_quiet_part_sees_that_noise_is_missing() -> None:
    update = head_update(np.random.default_rng(1), patients=50, std=0.0)
    assert judged(update, std=0.3, with_quiet=False) is None
    text = judged(update, std=0.3)
    assert text is not None
    assert "carries 0.00 times the promised privacy noise" in text


@pytest.mark.parametrize(("factor", "is_refused"), [(0.2, True), (1.0, False), (3.0, True)])
def test_another_noise_than_promised_is_refused(factor: float, is_refused: bool) -> None:  # noqa: FBT001 - a column of the table
    generator = np.random.default_rng(2)
    updates = [head_update(generator, patients=50, std=0.4 * factor) for _ in range(50)]
    assert all((judged(each, std=0.4) is not None) is is_refused for each in updates)


def test_noise_near_the_admission_limit_is_refused() -> None:
    # Random noise as long as admission allows could gain or lose trust by chance.
    generator = np.random.default_rng(4)
    long = generator.normal(size=(CLASSES, FEATURES + 1))
    long *= 2 * (SIGNAL + 0.4 * math.sqrt(ELEMENTS)) / np.linalg.norm(long)
    without = judged(long, std=0.4, with_quiet=False)
    assert without is not None
    assert "gives at most" in without
    # Half as long it is inside the band, and 6 times too loud where there is no signal.
    assert judged(long / 2, std=0.4, with_quiet=False) is None
    assert judged(long / 2, std=0.4) is not None


def test_a_hospital_that_divides_by_nearly_the_enrolled_number_is_not_refused() -> None:
    generator = np.random.default_rng(6)
    for factor in (1 / 1.1, 1.1):
        for _ in range(100):
            assert judged(head_update(generator, patients=50, std=0.4 * factor), std=0.4) is None


def test_a_study_without_promise_refuses_nothing() -> None:
    gram = Gram.of({NODE: np.zeros(10)})
    assert refusals(gram, steps=1) == {}
    silent = replace(gram, noise=PrivacyNoise(np.array([0.0]), 1.0))
    assert refusals(silent, steps=1, quiet={NODE: QuietPart(0.0, 3)}) == {}


def test_the_distance_at_the_bins_is_kolmogorovs() -> None:
    assert distribution_distance((5, 5, 5, 5)) == 0.0
    assert distribution_distance((20, 0, 0, 0)) == pytest.approx(0.75)
    assert distribution_distance((0, 10, 10, 0)) == pytest.approx(0.25)


def test_values_of_another_shape_are_refused_where_noise_dominates() -> None:
    generator = np.random.default_rng(8)
    std, elements = 1.0, 400_000
    for steps in (1, 4):
        honest = generator.normal(size=elements)
        limit = distribution_limit(std=std, signal_bound=1.0, samples=elements, steps=steps)
        assert distribution_distance(binned(honest, std=std)) < limit < 0.06
        uniform = generator.uniform(-math.sqrt(3), math.sqrt(3), size=elements)
        two_points = np.sign(generator.normal(size=elements))
        for wrong in (uniform, two_points):
            # The length is exactly right.
            assert np.std(wrong) == pytest.approx(1.0, rel=0.01)
        assert distribution_distance(binned(two_points, std=std)) > limit
    limit = distribution_limit(std=std, signal_bound=1.0, samples=elements, steps=1)
    assert distribution_distance(binned(generator.laplace(size=elements), std=std)) > limit
    gram = Gram.of({NODE: two_points[:2000]})
    gram = replace(
        gram,
        noise=PrivacyNoise(np.array([std]), 0.1),
        facts=(RowFacts(bins=binned(two_points[:2000], std=std)),),
    )
    assert "not distributed like the promised privacy noise" in refusals(gram, steps=1)[NODE]


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5])
def test_the_worst_signal_that_sees_the_noise_stays_within_the_limit(ratio: float) -> None:
    generator = np.random.default_rng(9)
    elements = 50_000
    noise = generator.normal(size=elements)
    budget = ratio * math.sqrt(elements)
    # Pull the coordinates just above 0 to just below, the nearest first.
    above = np.argsort(np.where(noise > 0, noise, np.inf))
    cost = np.cumsum(noise[above] ** 2)
    moved = above[: int(np.searchsorted(cost, budget**2))]
    update = noise.copy()
    update[moved] = -1e-12
    assert np.linalg.norm(update - noise) <= budget * 1.001
    distance = distribution_distance(binned(update, std=1.0))
    limit = distribution_limit(std=1.0, signal_bound=budget, samples=elements, steps=4)
    assert distance <= limit
    # The bound is not far from what can happen.
    assert limit < 2.2 * distance + 0.05


def test_at_the_head_recipes_sizes_the_distribution_says_nothing() -> None:
    assert distribution_limit(std=0.4, signal_bound=SIGNAL, samples=ELEMENTS, steps=STEPS) > 1.0
