"""From the stream of an aggregate to the next model.

Nothing here computes the aggregate or reads an update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from matl_common.ids import Digest
from matl_common.tensors import (
    ELEMENT_BYTES,
    ModelSchema,
    read_schema,
    safetensors_header,
    store_model,
)
from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.selection import Float32Array

_BLOCK_ELEMENTS: Final = 65_536


def apply_update(
    base_model: Path, aggregate: Iterable[Float32Array], folder: Path, *, reach: float = 1.0
) -> Digest:
    """Store the model ``base + reach · aggregate`` in ``folder``; frozen tensors are copied.

    Args:
        base_model: the model every update was trained from.
        aggregate: the change of all trainable values in schema order, cut anywhere.
        folder: where ``<digest>.safetensors`` appears.
        reach: how much of the aggregate is taken; a power of ½ loses nothing in rounding.

    Raises:
        AggregationError: too few or too many values, or a value of the new model is not
            finite; nothing is stored.
    """
    schema = read_schema(base_model)
    with base_model.open("rb") as file:
        file.seek(len(safetensors_header(schema)))
        blocks = _updated_blocks(file, schema, aggregate, reach=np.float32(reach))
        return store_model(folder, schema, blocks)


def _updated_blocks(
    base: BinaryIO,
    schema: ModelSchema,
    aggregate: Iterable[Float32Array],
    *,
    reach: np.float32,
) -> Iterator[bytes]:
    change = _Cutter(aggregate)
    for spec in schema.tensors:
        for start in range(0, spec.elements, _BLOCK_ELEMENTS):
            count = min(_BLOCK_ELEMENTS, spec.elements - start)
            block = base.read(count * ELEMENT_BYTES)
            if spec.trainable:
                with np.errstate(over="ignore"):
                    values = np.frombuffer(block, dtype="<f4") + reach * change.take(count)
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


def _little_endian(values: Float32Array) -> bytes:
    return values.astype("<f4", copy=False).tobytes()
