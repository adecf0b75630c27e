"""The geometry of a round as a value, and how far sizes may count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from matl_common.ids import NodeId
from matl_coordinator.core.robust.gram import (
    AggregationError,
    Float64Array,
    Gram,
    leave_one_out_cosines,
)
from matl_coordinator.core.robust.sizes import size_cap
from tests.core.robust_rows import gram_of


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
    # 45 % of the weight for the two largest.
    assert size_cap([1000, 500, 300, 200, 100], f=2) == 207
    assert 2 * 207 / (3 * 207 + 200 + 100) <= 0.45 < 2 * 208 / (3 * 208 + 200 + 100)
    assert size_cap([1000, 500, 300, 200, 100], f=0) == 1000


@given(st.lists(st.integers(1, 300), min_size=1, max_size=7), st.integers(0, 3))
def test_the_size_cap_is_the_largest_that_keeps_the_f_largest_below_half(
    sizes: list[int], f: int
) -> None:
    if 2 * f >= len(sizes):
        with pytest.raises(AggregationError, match="less than half"):
            size_cap(sizes, f=f)
        return

    def holds(cap: int) -> bool:
        capped = sorted((min(size, cap) for size in sizes), reverse=True)
        share = max(0.45, (f / len(sizes) + 0.5) / 2.0)
        return bool(sum(capped[:f]) <= share * sum(capped) + 1e-9)

    assert size_cap(sizes, f=f) == max(cap for cap in range(1, max(sizes) + 1) if holds(cap))


def test_a_gram_value_made_in_memory_counts_what_is_not_finite_and_keeps_the_rest() -> None:
    vectors = {
        NodeId("a"): np.array([3.0, 4.0], dtype=np.float32),
        NodeId("b"): np.array([np.nan, 1.0], dtype=np.float32),
    }

    gram = Gram.of(vectors, {"root": np.array([1.0, 0.0])})

    assert gram.matrix.tolist() == [[25.0, 4.0, 3.0], [4.0, 1.0, 0.0], [3.0, 0.0, 1.0]]
    assert gram.non_finite_nodes() == (NodeId("b"),)


@given(arrays(np.float64, (4, 3), elements=st.floats(-3, 3)))
def test_distances_are_those_of_the_coordinates(rows: Float64Array) -> None:
    gram = gram_of(rows[:3], extras=rows[3:])
    squared = gram.squared_distances()
    for i in range(3):
        for j in range(3):
            assert squared[i, j] == pytest.approx(np.sum((rows[i] - rows[j]) ** 2), abs=1e-9)
    mixture = np.array([0.5, -1.0, 0.0, 2.0])
    expected = np.linalg.norm(rows[:3] - mixture @ rows, axis=1)
    np.testing.assert_allclose(gram.distances_to(mixture), expected, atol=1e-6)


def test_equal_rows_are_at_no_distance_though_rounding_says_less() -> None:
    rows = np.full((3, 7), 0.1)
    gram = gram_of(rows)
    assert (gram.squared_distances() >= 0.0).all()
    assert np.isfinite(gram.distances_to(np.full(3, 1.0 / 3.0))).all()
