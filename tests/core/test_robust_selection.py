import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.selection import (
    Float32Array,
    mean_around_median,
    mean_of_ranks,
    median,
    selection_network,
)

MATRICES = arrays(
    np.float32,
    st.tuples(st.integers(1, 23), st.integers(1, 4)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def rows_of(matrix: Float32Array) -> Float32Array:
    return matrix.copy()


@pytest.mark.parametrize("m", range(1, 11))
def test_every_rank_range_is_right_for_every_vector_of_zeros_and_ones(m: int) -> None:
    # The zero-one principle: a network that is right for these is right for all values.
    columns = np.array(list(itertools.product([0, 1], repeat=m)), dtype=np.float32).T
    expected = np.sort(columns, axis=0)
    for first in range(m):
        for last in range(first, m):
            result = mean_of_ranks(rows_of(columns), first=first, last=last)
            np.testing.assert_allclose(result, expected[first : last + 1].mean(axis=0), rtol=1e-6)


@given(MATRICES)
def test_the_median_is_the_median(matrix: Float32Array) -> None:
    expected = np.median(matrix.astype(np.float64), axis=0).astype(np.float32)
    np.testing.assert_array_equal(median(rows_of(matrix)), expected)


@given(MATRICES, st.integers(0, 10))
def test_the_mean_of_the_middle_ranks_is_the_trimmed_mean(matrix: Float32Array, f: int) -> None:
    m = len(matrix)
    if m <= 2 * f:
        return
    expected = np.sort(matrix.astype(np.float64), axis=0)[f : m - f].mean(axis=0)
    result = mean_of_ranks(rows_of(matrix), first=f, last=m - f - 1)
    scale = np.abs(matrix.astype(np.float64)).max(axis=0) * 1e-6
    assert (np.abs(result - expected) <= scale + 1e-38).all()


def test_the_median_of_twenty_rows_takes_80_of_the_97_comparators_of_a_full_sort() -> None:
    assert len(selection_network(20, ((9, 10),))) == 80


def test_a_mean_of_all_ranks_needs_no_comparator() -> None:
    assert selection_network(20, (tuple(range(20)),)) == ()


def test_negative_zero_does_not_reach_the_result() -> None:
    result = median(np.array([[-0.0]], dtype=np.float32))
    assert not np.signbit(result).any()


def test_values_near_the_largest_float_do_not_overflow() -> None:
    big = np.float32(3.4e38)
    result = median(np.full((2, 3), big))
    np.testing.assert_array_equal(result, np.full(3, big))


@pytest.mark.parametrize(("first", "last"), [(-1, 0), (2, 1), (0, 3)])
def test_ranks_that_do_not_exist_are_refused(first: int, last: int) -> None:
    with pytest.raises(AggregationError, match="no ranks"):
        mean_of_ranks(rows_of(np.zeros((3, 1), dtype=np.float32)), first=first, last=last)


def nearest_by_hand(column: list[float], keep: int) -> Fraction:
    """Exact, one value at a time: the nearest to the median, the lower one of two first."""
    values = sorted(map(Fraction, column))
    m = len(values)
    middle = (values[(m - 1) // 2] + values[m // 2]) / 2
    nearest = sorted(values, key=lambda value: (abs(value - middle), value))[:keep]
    return sum(nearest, Fraction(0)) / keep


def assert_around_median(matrix: Float32Array, keep: int) -> None:
    result = mean_around_median(rows_of(matrix), keep=keep)
    assert result.dtype == np.float32
    for column, value in zip(matrix.T.tolist(), result.tolist(), strict=True):
        exact = float(nearest_by_hand(column, keep))
        assert value == pytest.approx(exact, rel=2e-7, abs=2e-7 * max(map(abs, column)) + 1e-44)


@pytest.mark.parametrize("m", range(1, 8))
def test_the_mean_around_the_median_is_right_for_every_vector_of_few_values(m: int) -> None:
    # Many ties: of values, of distances, of both.
    matrix = np.array(list(itertools.product([-2, 0, 1, 4], repeat=m)), dtype=np.float32).T
    for keep in range(1, m + 1):
        result = mean_around_median(rows_of(matrix), keep=keep)
        ordered = np.sort(matrix.astype(np.float64), axis=0)
        distance = np.abs(ordered - np.median(ordered, axis=0))
        nearest = np.argsort(distance, axis=0, kind="stable")[:keep]
        expected = np.take_along_axis(ordered, nearest, axis=0).mean(axis=0)
        np.testing.assert_array_equal(result, expected.astype(np.float32))


# Sums of two such numbers are exact in float64, so that ties are ties there too.
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 23), st.integers(1, 3)),
        elements=st.floats(-1024, 1024, width=32).map(lambda value: round(value * 64) / 64),
    ),
    st.integers(0, 22),
)
def test_the_mean_around_the_median_is_that_of_exact_arithmetic(
    matrix: Float32Array, left_out: int
) -> None:
    assert_around_median(matrix, max(1, len(matrix) - left_out))


def test_of_two_values_equally_near_the_lower_is_kept() -> None:
    rows = np.array([[3.0], [1.0], [2.0]], dtype=np.float32)
    assert mean_around_median(rows, keep=2) == pytest.approx([1.5])


def test_huge_values_that_are_left_out_leave_no_trace_in_the_mean() -> None:
    column = [-3e38, 1.0, 2.0, 4.0, 3e38]
    expected = np.array([7 / 3], dtype=np.float32)
    rows = np.array(column, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(mean_around_median(rows, keep=3), expected)
    rows = np.array(column, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(mean_of_ranks(rows, first=1, last=3), expected)


def test_ranks_that_are_each_read_for_themselves_take_a_full_sort() -> None:
    assert len(selection_network(20, tuple((rank,) for rank in range(20)))) == 97


@pytest.mark.parametrize("keep", [0, 4])
def test_keeping_none_or_more_than_there_are_is_refused(keep: int) -> None:
    with pytest.raises(AggregationError, match=f"keep {keep} of 3"):
        mean_around_median(rows_of(np.zeros((3, 1), dtype=np.float32)), keep=keep)


def test_sums_of_disjoint_sets_of_ranks_are_left_in_their_rows() -> None:
    matrix = np.random.default_rng(2).permuted(np.tile(np.arange(9.0), (64, 1)), axis=1)
    columns = matrix.T.astype(np.float32)
    sums = ((0,), (1, 2, 6), (4, 5), (8,))
    rows = rows_of(columns)
    for step in selection_network(9, sums):
        low, high = rows[step.low].copy(), rows[step.high].copy()
        rows[step.low] = np.minimum(low, high) if step.keep_low else np.full_like(low, np.nan)
        rows[step.high] = np.maximum(low, high) if step.keep_high else np.full_like(low, np.nan)
    for ranks in sums:
        np.testing.assert_array_equal(sum(rows[rank] for rank in ranks), np.full(64, sum(ranks)))
