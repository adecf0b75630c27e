"""Two passes over spooled updates: their Gram matrix, then the plan a rule made of it.

Memory is (n + q) rows of one chunk for each thread, whatever the size of the model.
Results are the same to the bit for any number of threads, on one kind of machine.
Nothing here decides: which rows count, and how, is in ``core.robust``.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from matl_common.durable import write_atomically
from matl_common.errors import IntegrityError
from matl_common.ids import Digest, NodeId
from matl_common.tensors import (
    ELEMENT_BYTES,
    ModelSchema,
    read_schema,
    safetensors_header,
    store_model,
)
from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Gram, RowFacts
from matl_coordinator.core.robust.plan import (
    CoordinateMedian,
    CoordinateTrimmedMean,
    Identity,
    Plan,
    Reduction,
)
from matl_coordinator.core.robust.selection import Float32Array, mean_of_ranks, median

CHUNK_ELEMENTS = 65_536
"""Coordinates handled at a time. Part of the result: sums are grouped by it."""

# OpenBLAS runs a product of at most 2^18 multiplications on the calling thread, so
# products cut to this size do not depend on how many threads it may use.
_BLAS_SERIAL_PRODUCTS = 1 << 18
# Fits the second-level cache with a few dozen rows; does not enter the result.
_NETWORK_BLOCK = 16_384

_T = TypeVar("_T")
_Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One vector on disk: flat little-endian float32, nothing else."""

    name: str
    path: Path


def measure(
    updates: Sequence[Row], extras: Sequence[Row] = (), *, elements: int, threads: int = 1
) -> Gram:
    """First pass: the Gram matrix of all rows and their count of non-finite values.

    Args:
        updates: one row per node, named by its id; all weights of the result are 1.
        extras: further rows, such as root gradients or the last aggregate.
        elements: coordinates of a row.
        threads: chunks handled at once.

    Raises:
        AggregationError: no row, a repeated name, or a file of another size.
    """
    rows = [*updates, *extras]
    matrix = np.zeros((len(rows), len(rows)))
    non_finite = np.zeros(len(rows), dtype=np.int64)
    with _opened(rows, elements) as files:
        for products, bad in _map_chunks(lambda span: _products(files, span), elements, threads):
            matrix += products
            non_finite += bad
    return Gram(
        matrix=np.triu(matrix) + np.triu(matrix, 1).T,
        nodes=tuple(NodeId(row.name) for row in updates),
        extras=tuple(row.name for row in extras),
        weights=np.ones(len(updates)),
        facts=tuple(RowFacts(non_finite=int(count)) for count in non_finite),
        elements=elements,
    )


def aggregate_chunks(
    plan: Plan, rows: Sequence[Row], *, elements: int, threads: int = 1
) -> Iterator[Float32Array]:
    """Second pass: carry out ``plan`` and yield the aggregate, chunk by chunk, in order.

    Args:
        plan: names the rows it mixes; those it gives no part in need not be at hand.
        rows: where the rows are, in any order.
        elements: coordinates of a row.
        threads: chunks handled at once.

    Raises:
        AggregationError: a row is missing, a file has another size, or a coordinate of
            the aggregate is not finite.
    """
    used = np.flatnonzero(np.any(plan.mixing != 0.0, axis=0))
    at_hand = {row.name: row for row in rows}
    names = [plan.rows[column] for column in used]
    if missing := [name for name in names if name not in at_hand]:
        raise AggregationError(f"the plan needs rows that are not at hand: {', '.join(missing)}")
    mixing = plan.mixing[:, used]
    with _opened([at_hand[name] for name in names], elements) as files:
        yield from _map_chunks(
            lambda span: _reduced(plan.reduction, mixing, _read(files, span)), elements, threads
        )


def write_aggregate(path: Path, chunks: Iterable[Float32Array]) -> Digest:
    """Store an aggregate durably as an update file; return the SHA-256 of its bytes."""
    return write_atomically(path, (_little_endian(chunk) for chunk in chunks))


def apply_update(base_model: Path, aggregate: Iterable[Float32Array], folder: Path) -> Digest:
    """Store the model ``base + aggregate`` in ``folder``; frozen tensors are copied.

    Args:
        base_model: the model every update was trained from.
        aggregate: the change of all trainable values in schema order, cut anywhere.
        folder: where ``<digest>.safetensors`` appears.

    Raises:
        AggregationError: too few or too many values, or a value of the new model is not
            finite; nothing is stored.
    """
    schema = read_schema(base_model)
    with base_model.open("rb") as file:
        file.seek(len(safetensors_header(schema)))
        return store_model(folder, schema, _updated_blocks(file, schema, aggregate))


def _updated_blocks(
    base: BinaryIO, schema: ModelSchema, aggregate: Iterable[Float32Array]
) -> Iterator[bytes]:
    change = _Cutter(aggregate)
    for spec in schema.tensors:
        for start, stop in pairwise(_bounds(spec.elements)):
            block = base.read((stop - start) * ELEMENT_BYTES)
            if spec.trainable:
                values = np.frombuffer(block, dtype="<f4") + change.take(stop - start)
                if not np.isfinite(values).all():
                    raise AggregationError(f"the new values of tensor {spec.name} are not finite")
                block = _little_endian(values)
            yield block
    change.finish()


class _Cutter:
    """Cuts a stream of arrays anew, into pieces of the lengths asked for."""

    def __init__(self, chunks: Iterable[Float32Array]) -> None:
        self._chunks = iter(chunks)
        self._rest: Float32Array = np.empty(0, dtype=np.float32)

    def take(self, count: int) -> Float32Array:
        """The next ``count`` values."""
        pieces: list[Float32Array] = []
        while count > len(self._rest):
            pieces.append(self._rest)
            count -= len(self._rest)
            following = next(self._chunks, None)
            if following is None:
                raise AggregationError("the aggregate is shorter than the model's trainable part")
            self._rest = following
        pieces.append(self._rest[:count])
        self._rest = self._rest[count:]
        return np.concatenate(pieces)

    def finish(self) -> None:
        """Check that nothing is left."""
        if len(self._rest) or any(len(chunk) for chunk in self._chunks):
            raise AggregationError("the aggregate is longer than the model's trainable part")


def _products(files: Sequence[FileIO], span: _Span) -> tuple[Float64Array, NDArray[np.int64]]:
    """Inner products of the rows over one span, and each row's non-finite values there."""
    rows = _read(files, span)
    finite = np.isfinite(rows)
    bad = np.count_nonzero(~finite, axis=1)
    if bad.any():
        # One NaN would poison the row and column of every honest update.
        rows = np.where(finite, rows, np.float32(0))
    n = len(files)
    width = max(1, _BLAS_SERIAL_PRODUCTS // (n * n))
    total = np.zeros((n, n))
    whole = rows.shape[1] // width * width
    # (blocks, n, width): one small product for each block, added up in order.
    blocks = rows[:, :whole].reshape(n, -1, width).transpose(1, 0, 2).astype(np.float64)
    for product in np.matmul(blocks, blocks.transpose(0, 2, 1)):
        total += product
    rest = rows[:, whole:].astype(np.float64)
    total += rest @ rest.T
    return total, bad


def _reduced(reduction: Reduction, mixing: Float64Array, rows: Float32Array) -> Float32Array:
    """The aggregate over one chunk."""
    match reduction:
        case Identity():
            result: Float32Array = _weighted_sum(mixing[0], rows).astype(np.float32)
        case CoordinateMedian():
            result = _by_block(_mixed(mixing, rows), median)
        case CoordinateTrimmedMean(f):
            last = mixing.shape[0] - f - 1
            result = _by_block(
                _mixed(mixing, rows), lambda block: mean_of_ranks(block, first=f, last=last)
            )
    if not np.isfinite(result).all():
        raise AggregationError("the aggregate is not finite; exclude updates with such values")
    return result


def _weighted_sum(weights: Float64Array, rows: Float32Array) -> Float64Array:
    # Row by row rather than by BLAS: the order of the sum is then ours.
    total = np.zeros(rows.shape[1])
    term = np.empty_like(total)
    for weight, row in zip(weights, rows, strict=True):
        np.multiply(row, weight, out=term)
        total += term
    return total


def _mixed(mixing: Float64Array, rows: Float32Array) -> Float32Array:
    chosen = mixing != 0.0
    if (mixing[chosen] == 1.0).all() and (chosen.sum(axis=1) == 1).all():
        # Plain selection; multiplying would only cost time. Not finite: caught below.
        selected: Float32Array = rows[np.argmax(chosen, axis=1)]
        return selected
    return np.stack([_weighted_sum(weights, rows).astype(np.float32) for weights in mixing])


def _by_block(
    rows: Float32Array, reduce: Callable[[list[Float32Array]], Float32Array]
) -> Float32Array:
    """Reduce a chunk in pieces that stay in cache; the rows are overwritten."""
    if not np.isfinite(rows).all():
        raise AggregationError("an update holds a value that is not finite; exclude it")
    return np.concatenate(
        [
            reduce(list(rows[:, start : start + _NETWORK_BLOCK]))
            for start in range(0, rows.shape[1], _NETWORK_BLOCK)
        ]
    )


def _bounds(elements: int) -> list[int]:
    return [*range(0, elements, CHUNK_ELEMENTS), elements]


def _map_chunks(function: Callable[[_Span], _T], elements: int, threads: int) -> Iterator[_T]:
    """Results for the chunks in order, with at most ``threads`` of them in memory."""
    spans = pairwise(_bounds(elements))
    if threads == 1:
        yield from map(function, spans)
        return
    waiting: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for span in spans:
            waiting.append(pool.submit(function, span))
            if len(waiting) >= threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _opened(rows: Sequence[Row], elements: int) -> Iterator[list[FileIO]]:
    if not rows:
        raise AggregationError("no update to aggregate")
    expected = elements * ELEMENT_BYTES
    with ExitStack() as stack:
        files = [stack.enter_context(FileIO(row.path)) for row in rows]
        for row, file in zip(rows, files, strict=True):
            if (size := os.fstat(file.fileno()).st_size) != expected:
                raise AggregationError(f"row {row.name} has {size} bytes, not {expected}")
        yield files


def _read(files: Sequence[FileIO], span: _Span) -> Float32Array:
    """One chunk of every row, shape ``(len(files), stop - start)``.

    Read rather than mapped: mapped pages would count as this process's memory.
    """
    start, stop = span
    rows = np.empty((len(files), stop - start), dtype="<f4")
    for row, file in zip(rows, files, strict=True):
        # Reads at an offset, because threads share the file.
        view = row.data.cast("B")
        filled = 0
        while filled < len(view):
            count = os.preadv(file.fileno(), [view[filled:]], start * ELEMENT_BYTES + filled)
            if count == 0:
                raise IntegrityError("an update file became shorter while it was read")
            filled += count
    return rows


def _little_endian(values: Float32Array) -> bytes:
    return values.astype("<f4", copy=False).tobytes()
