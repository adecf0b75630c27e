"""Second pass: carry out the plan a rule made, chunk by chunk.

Memory is one chunk of the rows the plan uses for each thread, whatever the size of the
model. Results are the same to the bit whoever computes them, on one kind of machine.
Nothing here decides which rows count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, assert_never

import numpy as np
from numpy.typing import NDArray

from matl_coordinator.aggregation.executor import Executor, LocalExecutor
from matl_coordinator.aggregation.rows import (
    GROUP_ELEMENTS,
    Chunk,
    ChunkWork,
    Row,
    StreamWork,
    Work,
)
from matl_coordinator.core.robust.gram import AggregationError, Float64Array
from matl_coordinator.core.robust.plan import (
    CoordinateMedian,
    CoordinateTrimmedMean,
    Identity,
    MeanAroundMedian,
    Plan,
)
from matl_coordinator.core.robust.selection import (
    Float32Array,
    mean_around_median,
    mean_of_ranks,
    median,
)

# Rows added up in single precision before double precision takes over. The result is as if
# each value of an update had been off by at most this many half units of its last place.
_LONGEST_RUN: Final = 32
# OpenBLAS multiplies matrices on the calling thread up to 2^18 products. The width divides a
# group, so that where chunks end has no effect.
_MIXING_TILE, _MIXING_WIDTH = 32, 128

# Values of one block of a network: together they stay in the second-level cache. No network
# is worth running on less than the second number of coordinates. Neither enters the result.
_NETWORK_VALUES: Final = 20 * 16_384
_SHORTEST_NETWORK_BLOCK: Final = 4_096

_ONE_THREAD: Final = LocalExecutor()


def aggregate_chunks(
    plan: Plan,
    rows: Sequence[Row],
    *,
    elements: int,
    executor: Executor = _ONE_THREAD,
) -> Iterator[Float32Array]:
    """Carry out ``plan`` and yield the aggregate, chunk by chunk, in order.

    A weighted sum is taken in single precision over at most 32 rows at a time, and in double
    precision over those; other reductions mix and average in double precision.

    Args:
        plan: names the rows it mixes; those it gives no part in need not be at hand.
        rows: where the rows are, in any order.
        elements: coordinates of a row.
        executor: who does it; this thread alone if unset.

    Raises:
        AggregationError: a row is missing, a row has another size, or a value or a
            coordinate of the aggregate is not finite.
        IntegrityError, SharedStoreError: as ``Executor.run``.
    """
    used = np.flatnonzero(np.any(plan.mixing != 0.0, axis=0))
    at_hand = {row.name: row for row in rows}
    names = [plan.rows[column] for column in used]
    if missing := [name for name in names if name not in at_hand]:
        raise AggregationError(f"the plan needs rows that are not at hand: {', '.join(missing)}")
    mixing = plan.mixing[:, used]
    used_rows = tuple(at_hand[name] for name in names)
    work: Work[Float32Array]
    if isinstance(plan.reduction, Identity):
        work = StreamWork(used_rows, elements, partial(_weighted_sum, mixing[0]))
    else:
        reduce = _reducer(plan.reduction, len(mixing))
        work = ChunkWork(used_rows, elements, partial(_by_block, reduce, mixing))
    return executor.run(work)


def _reducer(
    reduction: CoordinateMedian | CoordinateTrimmedMean | MeanAroundMedian, m: int
) -> Callable[[Float32Array], Float32Array]:
    match reduction:
        case CoordinateMedian():
            return median
        case CoordinateTrimmedMean(f):
            return partial(mean_of_ranks, first=f, last=m - f - 1)
        case MeanAroundMedian(keep):
            return partial(mean_around_median, keep=keep)
        case _:
            assert_never(reduction)


def _by_block(
    reduce: Callable[[Float32Array], Float32Array],
    mixing: Float64Array,
    chunk: Chunk,
) -> Float32Array:
    """Mix and reduce a chunk in pieces that stay in cache; the values are overwritten."""
    values = chunk.values[:-1]
    selected = _selected(mixing)
    result = np.empty(values.shape[1], dtype=np.float32)
    longest = max(_SHORTEST_NETWORK_BLOCK, _NETWORK_VALUES // len(mixing))
    block = min(GROUP_ELEMENTS, 1 << (longest.bit_length() - 1))
    for start in range(0, values.shape[1], block):
        piece = values[:, start : start + block]
        if not np.isfinite(piece).all():
            raise AggregationError("an update holds a value that is not finite; exclude it")
        with np.errstate(over="ignore", invalid="ignore"):
            rows = _mixed(mixing, piece) if selected is None else piece[selected]
            result[start : start + block] = reduce(rows)
    return _finite(result)


def _selected(mixing: Float64Array) -> NDArray[np.intp] | None:
    """Which row each mixed row is, where each is a different one of them and unscaled."""
    chosen = mixing != 0.0
    if not (mixing[chosen] == 1.0).all() or (chosen.sum(axis=1) != 1).any():
        return None
    indices = np.argmax(chosen, axis=1)
    return indices if len(set(indices.tolist())) == len(indices) else None


def _weighted_sum(weights: Float64Array, rows: Iterator[Float32Array]) -> Float32Array:
    """Σ w_i x_i; the rows are overwritten."""
    total: Float64Array | None = None
    part: Float32Array | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        for index, (weight, row) in enumerate(zip(weights.astype(np.float32), rows, strict=True)):
            if part is not None and index % _LONGEST_RUN == 0:
                total = part.astype(np.float64) if total is None else total + part
                part = None
            scaled = np.multiply(row, weight, out=row)
            part = scaled.copy() if part is None else np.add(part, scaled, out=part)
        assert part is not None  # a plan mixes at least one row
        return _finite(part if total is None else (total + part).astype(np.float32))


def _finite(aggregate: Float32Array) -> Float32Array:
    """The aggregate, in which overflow and what was not finite shows."""
    if not np.isfinite(aggregate).all():
        raise AggregationError("the aggregate is not finite; exclude updates with such values")
    return aggregate


def _mixed(mixing: Float64Array, values: Float32Array) -> Float32Array:
    """``mixing @ values`` in double precision, in products for one thread of OpenBLAS."""
    wide = values.astype(np.float64)
    result = np.zeros((len(mixing), values.shape[1]))
    for top in range(0, len(mixing), _MIXING_TILE):
        for left in range(0, mixing.shape[1], _MIXING_TILE):
            tile = mixing[top : top + _MIXING_TILE, left : left + _MIXING_TILE]
            result[top : top + _MIXING_TILE] += _multiplied(
                tile, wide[left : left + _MIXING_TILE], width=_MIXING_WIDTH
            )
    return result.astype(np.float32)


def _multiplied(matrix: Float64Array, values: Float64Array, *, width: int) -> Float64Array:
    """``matrix @ values``, ``width`` coordinates at a time."""
    m, n = matrix.shape
    whole = values.shape[1] // width * width
    result = np.empty((m, values.shape[1]))
    blocks = values[:, :whole].reshape(n, -1, width).transpose(1, 0, 2)
    result[:, :whole] = np.matmul(matrix, blocks).transpose(1, 0, 2).reshape(m, whole)
    result[:, whole:] = matrix @ values[:, whole:]
    return result
