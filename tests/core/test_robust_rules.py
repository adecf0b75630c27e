"""Means, clipping, plans, and what a pre-aggregation hands on to a rule."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from matl_coordinator.core.robust.coordinatewise import coordinate_median
from matl_coordinator.core.robust.gram import (
    AggregationError,
    Float64Array,
    Gram,
    PrivacyNoise,
    RowFacts,
)
from matl_coordinator.core.robust.means import clipped_weighted_mean, weighted_mean
from matl_coordinator.core.robust.plan import (
    CoordinateMedian,
    CoordinateTrimmedMean,
    Identity,
    MeanAroundMedian,
    Plan,
)
from matl_coordinator.core.robust.rules import compose
from matl_coordinator.core.robust.similarity import foolsgold
from tests.core.robust_rows import aggregator, carried_out, gram_of

ROWS = arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(-9, 9)
)


@given(ROWS)
def test_the_weighted_mean_is_the_mean_of_the_rows_by_weight(rows: Float64Array) -> None:
    weights = [float(index + 1) for index in range(len(rows))]
    result = carried_out(weighted_mean(gram_of(rows, weights=weights)), rows)
    np.testing.assert_allclose(result, np.average(rows, axis=0, weights=weights), atol=1e-12)


def test_a_giant_update_moves_the_clipped_mean_by_no_more_than_its_share() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [-1e9, 0.0]])
    plan = clipped_weighted_mean(gram_of(rows), factor=1.5)
    np.testing.assert_allclose(carried_out(plan, rows), [(2.0 - 1.5) / 5.0, 2.0 / 5.0], atol=1e-12)


def test_an_update_of_weight_zero_does_not_move_the_clipping_bound() -> None:
    rows = np.array([[1.0], [1.0], [100.0], [100.0], [100.0]])
    plan = clipped_weighted_mean(gram_of(rows, weights=[1, 1, 0, 0, 0]), factor=1.5)
    assert carried_out(plan, rows) == pytest.approx(1.0)
    heavy = clipped_weighted_mean(gram_of(rows, weights=[1, 1, 1, 0, 0]), factor=1.5)
    assert carried_out(heavy, rows) == pytest.approx((1.0 + 1.0 + 1.5) / 3.0)


@given(arrays(np.float64, (4, 3), elements=st.floats(-3, 3)))
def test_a_rule_composed_with_a_mixture_is_the_rule_on_the_mixed_rows(rows: Float64Array) -> None:
    # Two buckets of two: fewer rows than before, so nodes and weights are lost.
    buckets = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    extra = np.ones((1, 3))
    lifted = np.hstack([buckets, np.zeros((2, 1))])
    gram = gram_of(rows, extras=extra, weights=[1, 2, 3, 4])
    everything = np.vstack([rows, extra])
    for rule in (weighted_mean, coordinate_median):
        direct = carried_out(rule(gram_of(buckets @ rows)), buckets @ rows)
        composed = compose(gram, lambda _: lifted, rule)
        np.testing.assert_allclose(carried_out(composed, everything), direct, atol=1e-9)


def test_a_mixture_may_use_an_extra_row() -> None:
    # One step of centred clipping without clipping: the mean, as a mixture with an extra row.
    rows, last = np.array([[1.0], [3.0]]), np.array([[10.0]])
    gram = gram_of(rows, extras=last)
    half_way = np.array([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    plan = compose(gram, lambda _: half_way, weighted_mean)
    assert carried_out(plan, np.vstack([rows, last])) == pytest.approx(6.0)


def test_a_plan_that_cannot_be_carried_out_is_refused() -> None:
    with pytest.raises(AggregationError, match="unreduced"):
        Plan(("a", "b"), np.eye(2), Identity())
    with pytest.raises(AggregationError, match="trim"):
        Plan(("a", "b"), np.eye(2), CoordinateTrimmedMean(1))
    for keep in (0, 3):
        with pytest.raises(AggregationError, match="cannot keep"):
            Plan(("a", "b"), np.eye(2), MeanAroundMedian(keep))
    Plan(("a", "b"), np.eye(2), MeanAroundMedian(2))
    with pytest.raises(AggregationError, match="does not fit"):
        Plan(("a",), np.eye(2), CoordinateMedian())
    with pytest.raises(AggregationError, match="not finite"):
        Plan(("a",), np.array([[np.nan]]), Identity())


@given(ROWS)
def test_extra_rows_change_no_rule_that_does_not_use_them(rows: Float64Array) -> None:
    extras = np.full((2, rows.shape[1]), 3.0)
    for name in ("weighted_mean", "clipped_weighted_mean", "coordinate_median", "matl", "caf"):
        rule = aggregator(name)
        plain = carried_out(rule(gram_of(rows)), rows)
        beside = carried_out(rule(gram_of(rows, extras=extras)), np.vstack([rows, extras]))
        np.testing.assert_allclose(beside, plain, atol=1e-7)


def seen_behind(gram: Gram, mixing: Float64Array) -> Gram:
    """The round that a rule is given behind this mixing."""
    seen: list[Gram] = []

    def rule(inner: Gram) -> Plan:
        seen.append(inner)
        return weighted_mean(inner)

    compose(gram, lambda _: mixing, rule)
    return seen[0]


BUCKETS = np.array([[0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.25, 0.25, 0.5]])


def test_noise_through_a_mixture_adds_in_variance_and_signals_at_most_in_length() -> None:
    generator = np.random.default_rng(0)
    std = np.array([0.1, 0.2, 0.4, 0.8, 0.1])
    rows = std[:, None] * generator.standard_normal((5, 20_000))
    gram = replace(gram_of(rows), noise=PrivacyNoise(std, signal_bound=3.0))
    noise = seen_behind(gram, BUCKETS).noise
    assert noise is not None
    np.testing.assert_allclose(noise.std, (BUCKETS @ rows).std(axis=1), rtol=0.05)
    assert noise.signal_bound == pytest.approx(3.0)
    scaled = seen_behind(gram, np.diag([0.5, 1.0, 1.0, 1.0, 1.0])).noise
    assert scaled is not None
    np.testing.assert_allclose(scaled.std, [0.05, 0.2, 0.4, 0.8, 0.1])


def test_a_reference_of_root_rows_is_the_same_vector_behind_a_mixture() -> None:
    rows = np.random.default_rng(1).standard_normal((5, 6))
    extras = np.random.default_rng(2).standard_normal((2, 6))
    full = np.hstack([BUCKETS, np.zeros((2, 2))])
    gram = gram_of(rows, extras=extras)
    gram = replace(gram, reference=np.array([0, 0, 0, 0, 0, 0.3, 0.7]), subsets=(gram.matrix / 2,))
    behind = seen_behind(gram, full)
    assert behind.reference is not None
    root = np.array([0.3, 0.7]) @ extras
    mixed = np.vstack([BUCKETS @ rows, extras])
    np.testing.assert_allclose(behind.reference @ mixed, root)
    np.testing.assert_allclose((behind.matrix @ behind.reference)[:2], BUCKETS @ rows @ root)
    np.testing.assert_allclose(behind.subsets[0], behind.matrix / 2)
    # One that is made of updates has no place among the mixed rows.
    of_updates = replace(gram, reference=np.array([1.0, 0, 0, 0, 0, 0, 0]))
    assert seen_behind(of_updates, full).reference is None


def test_history_stays_with_hospitals_and_is_dropped_where_rows_are_nobodys() -> None:
    rows = np.random.default_rng(3).standard_normal((5, 6))
    history = rows @ rows.T
    gram = replace(gram_of(rows, weights=[1, 2, 3, 4, 5]), history=history)
    kept = seen_behind(gram, np.full((5, 5), 0.2))
    assert kept.history is history
    assert (kept.nodes, kept.weights.tolist()) == (gram.nodes, [1, 2, 3, 4, 5])
    lost = seen_behind(gram, BUCKETS)
    assert lost.history is None
    assert lost.weights.tolist() == [1, 1]
    assert not set(lost.nodes) & set(gram.nodes)
    with pytest.raises(AggregationError, match="none were measured"):
        compose(gram, lambda _: BUCKETS, foolsgold)


def test_what_was_counted_in_a_row_is_not_said_of_a_mixture() -> None:
    gram = gram_of(np.eye(5), extras=np.ones((1, 5)))
    facts = (*[RowFacts(bins=(1, 2))] * 5, RowFacts(bins=(7,)))
    mixing = np.hstack([np.eye(5), np.zeros((5, 1))])
    behind = seen_behind(replace(gram, facts=facts), mixing)
    assert behind.facts == (*[RowFacts()] * 5, RowFacts(bins=(7,)))


def test_a_pre_aggregation_is_not_asked_about_a_round_that_is_not_finite() -> None:
    gram = replace(gram_of(np.eye(2)), facts=(RowFacts(non_finite=1), RowFacts()))
    with pytest.raises(AggregationError, match="n0 is not finite"):
        compose(gram, lambda rows: np.eye(rows.n), coordinate_median)
