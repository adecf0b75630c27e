"""First pass: the geometry of spooled updates, and what is counted on the way.

Memory is one chunk of all rows for each thread, whatever the size of the model. Results
are the same to the bit whoever computes them, on one kind of machine. Nothing here
decides: which rows count, and how, is in ``core.robust``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from matl_common.ids import NodeId
from matl_coordinator.aggregation.executor import Executor, LocalExecutor
from matl_coordinator.aggregation.rows import GROUP_ELEMENTS, Chunk, ChunkWork, Row
from matl_coordinator.aggregation.samples import Samples, subset_of
from matl_coordinator.core.robust.gram import (
    Float64Array,
    Gram,
    Needs,
    RowFacts,
)
from matl_coordinator.core.robust.selection import Float32Array

# OpenBLAS runs a product of at most 2^18 multiplications on the calling thread, so
# products cut to this size do not depend on how many threads it may use.
_SERIAL_PRODUCTS: Final = 1 << 18
_TILE_ROWS: Final = 64
# Products added up in single precision before double precision takes over.
_LONGEST_RUN: Final = 512

SINGLE_PRECISION_FROM: Final = 1 << 20
"""Rows shorter than this are multiplied in double precision at once; it costs them little."""
NEAREST: Final = 2.0**-6
"""D² below this part of the two rows' squared norms is not left to single precision."""
# Below it, products of single precision lose digits to underflow.
_SMALLEST_SQUARE: Final = 2.0**-60


_ONE_THREAD: Final = LocalExecutor()

_Precision = type[np.float32] | type[np.float64]


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """What one chunk, or the whole pass, came to."""

    upper: Float64Array
    """Upper halves of the matrices, row by row: shape ``(groups, 1 + subsets, rows · (rows + 1)
    / 2)``, the first over all coordinates. Of the whole pass, one group."""
    non_finite: NDArray[np.int64]
    bins: NDArray[np.int64]


def measure(
    updates: Sequence[Row],
    extras: Sequence[Row] = (),
    *,
    elements: int,
    executor: Executor = _ONE_THREAD,
    needs: Needs = Needs(),  # noqa: B008  (frozen)
    noise: Mapping[NodeId, float] | None = None,
    seed: int = 0,
) -> Gram:
    """The Gram matrix of all rows, and the facts of each.

    Long rows are multiplied in single precision, in runs of at most 512 coordinates that
    are added up in double precision. The error of an inner product is below 1e-8 of the two
    norms where values vary as updates do, and below 1e-6 whatever they are (all of a run
    equal, so that its rounding is all one way). Where that would not do, the pass is repeated
    in double precision: where two rows are nearly equal, so that their distance is a small
    difference of large numbers, where a value is not finite, and at either end of the range
    of floats.

    Args:
        updates: one row per node, named by its id; all weights of the result are 1.
        extras: further rows, such as root gradients or the last aggregate.
        elements: coordinates of a row.
        executor: who does it; this thread alone if unset.
        needs: how many Gram matrices over sets of coordinates to measure beside it. The
            rest is for the caller to provide: ``extras`` and ``sketch_rows``.
        noise: standard deviation of the noise promised for a coordinate of these nodes'
            updates; their ``facts.bins`` count a sample of at most 2^20 coordinates in 64
            bins that are equally probable under it.
        seed: chooses the sample and the sets; the same seed chooses the same. Whoever knows
            it in advance can put noise where it will be looked for.

    Raises:
        AggregationError: no row, a repeated name, a row of another size, or noise that
            is not a positive number or of a node that has no update.
        IntegrityError, SharedStoreError: as ``Executor.run``.
    """
    rows = [*updates, *extras]
    nodes = tuple(NodeId(row.name) for row in updates)
    samples = Samples.of(nodes, noise or {}, elements=elements, subsets=needs.subsets, seed=seed)
    measured = None
    if elements >= SINGLE_PRECISION_FROM:
        measured = _measured(rows, elements, samples, precision=np.float32, executor=executor)
    if measured is None or not _single_precision_suffices(_whole(measured.upper[0, 0], len(rows))):
        measured = _measured(rows, elements, samples, precision=np.float64, executor=executor)
    matrix, *subsets = (_whole(each, len(rows)) for each in measured.upper[0])
    bins = samples.by_row(measured.bins)
    return Gram(
        matrix=matrix,
        nodes=nodes,
        extras=tuple(row.name for row in extras),
        weights=np.ones(len(updates)),
        facts=tuple(
            RowFacts(non_finite=int(count), bins=bins.get(index, ()))
            for index, count in enumerate(measured.non_finite)
        ),
        elements=elements,
        subsets=tuple(subsets),
    )


def _whole(upper: Float64Array, n: int) -> Float64Array:
    """The symmetric matrix of an upper half."""
    matrix = np.zeros((n, n))
    matrix[_upper_half(n)] = upper
    return matrix + np.triu(matrix, 1).T


def _upper_half(n: int) -> NDArray[np.bool_]:
    return np.triu(np.ones((n, n), dtype=np.bool_))


def _single_precision_suffices(matrix: Float64Array) -> bool:
    squares = np.diagonal(matrix)
    if not np.isfinite(matrix).all() or (squares < _SMALLEST_SQUARE).any():
        return False
    sums = squares[:, None] + squares
    near = sums - 2.0 * matrix < NEAREST * sums
    return not np.triu(near, 1).any()


def _measured(
    rows: Sequence[Row],
    elements: int,
    samples: Samples,
    *,
    precision: _Precision,
    executor: Executor,
) -> _Measured:
    n = len(rows)
    upper = np.zeros((1, 1 + samples.subsets, n * (n + 1) // 2))
    non_finite = np.zeros(n, dtype=np.int64)
    bins = samples.no_bins()
    work = ChunkWork(tuple(rows), elements, partial(_of_chunk, samples, precision))
    for each in executor.run(work):
        # What single precision makes of infinity is measured again in double.
        with np.errstate(invalid="ignore"):
            # One by one: the order of adding is part of the result.
            for group in each.upper:
                upper[0] += group
        non_finite += each.non_finite
        bins += each.bins
    return _Measured(upper, non_finite, bins)


def _of_chunk(samples: Samples, precision: _Precision, chunk: Chunk) -> _Measured:
    rows = len(chunk.values) - 1
    half = _upper_half(rows)
    non_finite = np.zeros(rows, dtype=np.int64)
    bins = samples.no_bins()
    groups = []
    for start in range(0, chunk.values.shape[1], GROUP_ELEMENTS):
        values = chunk.values[:, start : start + GROUP_ELEMENTS]
        group = (chunk.start + start) // GROUP_ELEMENTS
        if precision is np.float64:
            finite = np.isfinite(values)
            bad = np.count_nonzero(~finite[:-1], axis=1)
            if bad.any():
                # One NaN would poison the row and column of every honest update.
                values[~finite] = 0.0
            non_finite += bad
        matrices = [_products(values, precision)[half]]
        for subset in range(samples.subsets):
            chosen = subset_of(samples, subset, group=group, length=values.shape[1])
            matrices.append(_products(values[:, chosen], np.float64)[half])
        groups.append(np.stack(matrices))
        bins += samples.count(values, group=group)
    return _Measured(np.stack(groups), non_finite, bins)


def _products(values: Float32Array, precision: _Precision) -> Float64Array:
    """Inner products of all rows but the last, which is 0; only the upper half is whole.

    Cut into tiles and runs: every product is small enough for one thread of OpenBLAS, and
    only two tiles at a time are held in the wider precision.
    """
    n = len(values) - 1
    tiles = -(-n // _TILE_ROWS)
    tile = -(-n // tiles)
    total = np.zeros((n, n))
    run = min(_LONGEST_RUN, _power_of_two(_SERIAL_PRODUCTS // ((tile + 1) * tile)))
    whole = values.shape[1] // run * run
    for top in range(0, n, tile):
        for left in range(top, n, tile):
            # One row more than asked for: numpy hands a product with its own transpose to
            # another routine of OpenBLAS, which is slower at this size.
            high: NDArray[Any] = values[top : min(n, top + tile) + 1].astype(precision, copy=False)
            wide: NDArray[Any] = values[left : min(n, left + tile)].astype(precision, copy=False)
            with np.errstate(over="ignore", invalid="ignore"):
                products = np.matmul(
                    high[:, :whole].reshape(len(high), -1, run).transpose(1, 0, 2),
                    wide[:, :whole].reshape(len(wide), -1, run).transpose(1, 2, 0),
                )
                part = products.sum(axis=0, dtype=np.float64)
                part += high[:, whole:] @ wide[:, whole:].T
            total[top : top + len(high) - 1, left : left + len(wide)] = part[:-1]
    return total


def _power_of_two(at_most: int) -> int:
    return 1 << (at_most.bit_length() - 1)
