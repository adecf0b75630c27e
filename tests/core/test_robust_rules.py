from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId
from matl_coordinator.core.robust.gram import (
    AggregationError,
    Float64Array,
    Gram,
    RowFacts,
    leave_one_out_cosines,
)
from matl_coordinator.core.robust.plan import (
    CoordinateMedian,
    CoordinateTrimmedMean,
    Identity,
    Plan,
)
from matl_coordinator.core.robust.registry import DEFAULT_RULE, RULES, make_rule
from matl_coordinator.core.robust.rules import (
    clipped_weighted_mean,
    compose,
    coordinate_median,
    trimmed_mean,
    weighted_mean,
)
from matl_coordinator.core.robust.sizes import size_cap

ROWS = arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(-9, 9)
)


def gram_of(
    updates: Float64Array, *, extras: Float64Array | None = None, weights: list[float] | None = None
) -> Gram:
    n, d = updates.shape
    rows = updates if extras is None else np.vstack([updates, extras])
    return Gram(
        matrix=rows @ rows.T,
        nodes=tuple(NodeId(f"n{index}") for index in range(n)),
        extras=tuple(f"extra-{index}" for index in range(len(rows) - n)),
        weights=np.array(weights if weights is not None else [1.0] * n),
        facts=(RowFacts(),) * len(rows),
        elements=d,
    )


def carried_out(plan: Plan, rows: Float64Array) -> Float64Array:
    mixed = plan.mixing @ rows
    result: Float64Array
    match plan.reduction:
        case Identity():
            result = mixed[0]
        case CoordinateMedian():
            result = np.median(mixed, axis=0)
        case CoordinateTrimmedMean(f):
            result = np.sort(mixed, axis=0)[f : len(mixed) - f].mean(axis=0)
    return result


@given(ROWS)
def test_the_weighted_mean_is_the_mean_of_the_rows_by_weight(rows: Float64Array) -> None:
    weights = [float(index + 1) for index in range(len(rows))]
    result = carried_out(weighted_mean(gram_of(rows, weights=weights)), rows)
    np.testing.assert_allclose(result, np.average(rows, axis=0, weights=weights), atol=1e-12)


@given(ROWS)
def test_extra_rows_change_no_rule_that_does_not_use_them(rows: Float64Array) -> None:
    extras = np.full((2, rows.shape[1]), 3.0)
    for name in ("weighted_mean", "clipped_weighted_mean", "coordinate_median"):
        rule = make_rule(name, {})
        plain = carried_out(rule(gram_of(rows)), rows)
        beside = carried_out(rule(gram_of(rows, extras=extras)), np.vstack([rows, extras]))
        np.testing.assert_allclose(beside, plain, atol=1e-9)


@given(ROWS, st.randoms())
def test_no_rule_depends_on_the_order_of_the_updates(rows: Float64Array, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    for name, parameters in (
        ("clipped_weighted_mean", {}),
        ("coordinate_median", {}),
        ("trimmed_mean", {"f": (len(rows) - 1) // 2}),
    ):
        rule = make_rule(name, parameters)
        np.testing.assert_allclose(
            carried_out(rule(gram_of(rows[order])), rows[order]),
            carried_out(rule(gram_of(rows)), rows),
            atol=1e-9,
        )


@given(arrays(np.float64, (5, 3), elements=st.floats(-1, 1)), st.floats(-1e6, 1e6))
def test_coordinate_rules_stay_in_the_range_of_the_honest_with_two_of_five_hostile(
    honest: Float64Array, hostile: float
) -> None:
    rows = honest.copy()
    rows[3:] = hostile
    for rule in (make_rule("coordinate_median", {}), make_rule("trimmed_mean", {"f": 2})):
        result = carried_out(rule(gram_of(rows)), rows)
        assert (result >= honest[:3].min(axis=0) - 1e-12).all()
        assert (result <= honest[:3].max(axis=0) + 1e-12).all()


def test_three_hostile_of_five_break_the_median() -> None:
    rows = np.array([[0.0], [0.1], [1e6], [1e6], [1e6]])
    assert carried_out(coordinate_median(gram_of(rows)), rows) == pytest.approx(1e6)


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


def test_all_zero_updates_aggregate_to_zero() -> None:
    rows = np.zeros((3, 4))
    for name in RULES:
        assert not carried_out(make_rule(name, {})(gram_of(rows)), rows).any()


@pytest.mark.parametrize("rule", [make_rule(name, {}) for name in RULES])
def test_every_rule_refuses_a_round_with_a_value_that_is_not_finite(
    rule: Callable[[Gram], Plan],
) -> None:
    gram = gram_of(np.eye(4))
    bad = Gram(
        matrix=gram.matrix,
        nodes=gram.nodes,
        extras=(),
        weights=gram.weights,
        facts=(RowFacts(), RowFacts(non_finite=1), RowFacts(), RowFacts()),
        elements=4,
    )
    with pytest.raises(AggregationError, match=r"update of n1 is not finite"):
        rule(bad)
    rule(bad.select([NodeId("n0"), NodeId("n2"), NodeId("n3")]))
    with pytest.raises(AggregationError, match="Gram matrix is not finite"):
        rule(gram_of(np.array([[1.0], [np.inf], [1.0]])))


def test_rules_refuse_fewer_updates_than_they_need() -> None:
    with pytest.raises(AggregationError, match="needs at least 5 updates; 4"):
        trimmed_mean(gram_of(np.eye(4)), f=2)
    trimmed_mean(gram_of(np.eye(5)), f=2)
    for name in RULES:
        with pytest.raises(AggregationError, match="at least"):
            make_rule(name, {})(gram_of(np.zeros((0, 3))))


def test_a_round_in_which_nobody_weighs_anything_is_refused() -> None:
    with pytest.raises(AggregationError, match="hold the round"):
        weighted_mean(gram_of(np.eye(3), weights=[0, 0, 0]))
    with pytest.raises(AggregationError, match="hold the round"):
        clipped_weighted_mean(gram_of(np.eye(3), weights=[0, 0, 0]), factor=1.5)


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


def test_the_registry_names_the_valid_choices() -> None:
    with pytest.raises(ConfigurationError, match=r"choose one of .*clipped_weighted_mean"):
        make_rule("krumm", {})
    with pytest.raises(ConfigurationError, match="it takes: f"):
        make_rule("trimmed_mean", {"fraction": 1})
    with pytest.raises(ConfigurationError, match="it takes: none"):
        make_rule("coordinate_median", {"f": 1})
    assert DEFAULT_RULE in RULES


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [
        ("trimmed_mean", "f", -1),
        ("trimmed_mean", "f", 1.0),
        ("trimmed_mean", "f", True),
        ("trimmed_mean", "f", 10_001),
        ("clipped_weighted_mean", "factor", 0.0),
        ("clipped_weighted_mean", "factor", float("nan")),
        ("clipped_weighted_mean", "factor", float("inf")),
    ],
)
def test_the_registry_refuses_a_parameter_out_of_range(rule: str, key: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=r"out of range .*use a .*number from"):
        make_rule(rule, {key: value})


def test_a_parameter_reaches_the_rule() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]])
    f_two = make_rule("trimmed_mean", {"f": 2})
    assert carried_out(f_two(gram_of(rows)), rows) == pytest.approx(2.0)


def test_a_plan_that_cannot_be_carried_out_is_refused() -> None:
    with pytest.raises(AggregationError, match="unreduced"):
        Plan(("a", "b"), np.eye(2), Identity())
    with pytest.raises(AggregationError, match="trim"):
        Plan(("a", "b"), np.eye(2), CoordinateTrimmedMean(1))
    with pytest.raises(AggregationError, match="does not fit"):
        Plan(("a",), np.eye(2), CoordinateMedian())
    with pytest.raises(AggregationError, match="not finite"):
        Plan(("a",), np.array([[np.nan]]), Identity())


def test_a_gram_that_contradicts_itself_is_refused() -> None:
    gram = gram_of(np.eye(2))
    with pytest.raises(AggregationError, match="same name"):
        Gram(gram.matrix, (NodeId("a"), NodeId("a")), (), gram.weights, gram.facts, 2)
    with pytest.raises(AggregationError, match="negative"):
        gram_of(np.eye(2), weights=[1, -1])
    with pytest.raises(AggregationError, match="no update"):
        gram.select([NodeId("stranger")])


@given(arrays(np.float64, (4, 3), elements=st.floats(-3, 3)))
def test_leave_one_out_cosines_compare_with_the_weighted_sum_of_the_others(
    rows: Float64Array,
) -> None:
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    cosines = leave_one_out_cosines(gram_of(rows, weights=weights.tolist()))
    for index in range(4):
        others = sum(weights[j] * rows[j] for j in range(4) if j != index)
        lengths = np.linalg.norm(rows[index]) * np.linalg.norm(others)
        if lengths > 1e-3:
            assert cosines[index] == pytest.approx(rows[index] @ others / lengths, abs=1e-6)


def test_an_update_of_zero_agrees_with_nobody() -> None:
    cosines = leave_one_out_cosines(gram_of(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])))
    assert cosines.tolist() == [0.0, 1.0, 1.0]


def test_the_size_cap_is_the_one_of_the_study_with_shares_10_5_3_2_1() -> None:
    assert size_cap([1000, 500, 300, 200, 100], f=2) == 300
    assert size_cap([1000, 500, 300, 200, 100], f=0) == 1000


@given(st.lists(st.integers(1, 300), min_size=1, max_size=7), st.integers(0, 3))
def test_the_size_cap_is_the_largest_that_keeps_the_f_largest_at_half(
    sizes: list[int], f: int
) -> None:
    if 2 * f >= len(sizes):
        with pytest.raises(AggregationError, match="less than half"):
            size_cap(sizes, f=f)
        return

    def holds(cap: int) -> bool:
        capped = sorted((min(size, cap) for size in sizes), reverse=True)
        return 2 * sum(capped[:f]) <= sum(capped)

    assert size_cap(sizes, f=f) == max(cap for cap in range(1, max(sizes) + 1) if holds(cap))


def test_a_gram_value_made_in_memory_counts_what_is_not_finite_and_keeps_the_rest() -> None:
    vectors = {
        NodeId("a"): np.array([3.0, 4.0], dtype=np.float32),
        NodeId("b"): np.array([np.nan, 1.0], dtype=np.float32),
    }

    gram = Gram.of(vectors, {"root": np.array([1.0, 0.0])})

    assert gram.matrix.tolist() == [[25.0, 4.0, 3.0], [4.0, 1.0, 0.0], [3.0, 0.0, 1.0]]
    assert gram.non_finite_nodes() == (NodeId("b"),)
