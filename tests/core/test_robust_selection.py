import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.selection import (
    Float32Array,
    mean_of_ranks,
    median,
    selection_network,
)

MATRICES = arrays(
    np.float32,
    st.tuples(st.integers(1, 23), st.integers(1, 4)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def rows_of(matrix: Float32Array) -> list[Float32Array]:
    return [row.copy() for row in matrix]


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


def test_the_median_of_twenty_rows_takes_80_of_the_103_comparators_of_a_full_sort() -> None:
    assert len(selection_network(20, 9, 10)) == 80


def test_a_mean_of_all_ranks_needs_no_comparator() -> None:
    assert selection_network(20, 0, 19) == ()


def test_negative_zero_does_not_reach_the_result() -> None:
    result = median([np.array([-0.0], dtype=np.float32)])
    assert not np.signbit(result).any()


def test_values_near_the_largest_float_do_not_overflow() -> None:
    big = np.float32(3.4e38)
    result = median([np.full(3, big), np.full(3, big)])
    np.testing.assert_array_equal(result, np.full(3, big))


@pytest.mark.parametrize(("first", "last"), [(-1, 0), (2, 1), (0, 3)])
def test_ranks_that_do_not_exist_are_refused(first: int, last: int) -> None:
    with pytest.raises(AggregationError, match="no ranks"):
        mean_of_ranks(rows_of(np.zeros((3, 1), dtype=np.float32)), first=first, last=last)
