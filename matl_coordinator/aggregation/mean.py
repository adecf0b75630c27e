"""The running mean of round models, from the mean so far and the newest one.

Two files are read and one is written, whatever the length of the study. The same files give
the same bytes. Nothing here knows which rounds take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from matl_common.ids import Digest
from matl_common.tensors import (
    CHUNK_BYTES,
    ModelSchema,
    read_schema,
    safetensors_header,
    store_model,
)
from matl_coordinator.core.robust.gram import AggregationError


def extend_mean(mean: Path, newest: Path, *, models: int, folder: Path) -> Digest:
    """Store the mean of ``models`` models and one more in ``folder``; frozen tensors are copied.

    Computed in double precision and rounded once: m + (x − m) / (models + 1).

    Args:
        mean: of ``models`` models.
        newest: the one that joins them.
        models: at least 1.
        folder: where ``<digest>.safetensors`` appears.

    Raises:
        AggregationError: the models have different tensors.
    """
    schema = read_schema(newest)
    if read_schema(mean) != schema:
        raise AggregationError("the models to average have different tensors")
    with mean.open("rb") as so_far, newest.open("rb") as joining:
        for file in (so_far, joining):
            file.seek(len(safetensors_header(schema)))
        return store_model(folder, schema, _blocks(so_far, joining, schema, models=models))


def _blocks(
    so_far: BinaryIO, joining: BinaryIO, schema: ModelSchema, *, models: int
) -> Iterator[bytes]:
    for spec in schema.tensors:
        for start in range(0, spec.byte_count, CHUNK_BYTES):
            size = min(CHUNK_BYTES, spec.byte_count - start)
            old, new = so_far.read(size), joining.read(size)
            yield _moved(old, new, models=models) if spec.trainable else new


def _moved(old: bytes, new: bytes, *, models: int) -> bytes:
    mean, value = (np.frombuffer(each, dtype="<f4").astype(np.float64) for each in (old, new))
    return (mean + (value - mean) / (models + 1)).astype("<f4").tobytes()
