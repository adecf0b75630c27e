"""Means of model files: exact, in bounded memory, and only of what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from matl_common.ids import Digest, digest_of_file
from matl_common.tensors import CHUNK_BYTES, MODEL_SUFFIX, TensorSpec, parse_schema, store_model
from matl_common.tensors import read_model as tensors_of
from matl_coordinator.aggregation import extend_mean
from matl_coordinator.core.robust.gram import AggregationError

# Longer than a chunk, and not a multiple of it.
ELEMENTS = CHUNK_BYTES // 4 + 1234
SCHEMA = parse_schema(
    [
        TensorSpec("public", (3,), trainable=False),
        TensorSpec("weight", (ELEMENTS,)),
        TensorSpec("bias", (5,)),
    ]
)
# A negative zero: adding anything to it, even zero, would change its bytes.
PUBLIC = np.array([-0.0, 1.0, np.float32(1e-45)], dtype=np.float32)


def stored(folder: Path, weight: NDArray[np.float32], bias: float) -> Path:
    blocks = (PUBLIC.data, weight.data, np.full(5, bias, dtype=np.float32).data)
    return folder / f"{store_model(folder, SCHEMA, blocks)}{MODEL_SUFFIX}"


def extended(folder: Path, mean: Path, newest: Path, models: int) -> Path:
    return folder / f"{extend_mean(mean, newest, models=models, folder=folder)}{MODEL_SUFFIX}"


def test_a_running_mean_is_the_mean(tmp_path: Path) -> None:
    draws = np.random.default_rng(5)
    weights = [draws.normal(size=ELEMENTS).astype(np.float32) for _ in range(20)]
    mean = stored(tmp_path, weights[0], 1.0)
    for number, weight in enumerate(weights[1:], start=1):
        mean = extended(tmp_path, mean, stored(tmp_path, weight, 1.0), number)
    _, tensors = tensors_of(mean)
    exact = np.mean(weights, axis=0, dtype=np.float64)
    np.testing.assert_allclose(tensors["weight"], exact, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(tensors["bias"], np.ones(5))


def test_it_is_rounded_once_from_double_precision(tmp_path: Path) -> None:
    draws = np.random.default_rng(6)
    old, new = (draws.normal(size=ELEMENTS).astype(np.float32) for _ in range(2))
    mean = extended(tmp_path, stored(tmp_path, old, 0.0), stored(tmp_path, new, 1.0), 6)
    _, tensors = tensors_of(mean)
    wide = old.astype(np.float64)
    np.testing.assert_array_equal(tensors["weight"], (wide + (new - wide) / 7).astype(np.float32))
    np.testing.assert_array_equal(tensors["bias"], np.full(5, 1 / 7, dtype=np.float32))


def test_two_very_large_values_have_a_mean(tmp_path: Path) -> None:
    largest = np.full(ELEMENTS, np.finfo(np.float32).max)
    pair = stored(tmp_path, -largest, 0.0), stored(tmp_path, largest, 0.0)
    _, tensors = tensors_of(extended(tmp_path, *pair, 1))
    assert not tensors["weight"].any()


def test_frozen_tensors_are_copied_to_the_bit(tmp_path: Path) -> None:
    weight = np.ones(ELEMENTS, dtype=np.float32)
    pair = stored(tmp_path, weight, 0.0), stored(tmp_path, 3 * weight, 0.0)
    _, tensors = tensors_of(extended(tmp_path, *pair, 1))
    assert tensors["public"].tobytes() == PUBLIC.tobytes()
    assert set(tensors["weight"].tolist()) == {2.0}


def test_the_same_models_give_the_same_file_named_by_its_digest(tmp_path: Path) -> None:
    weight = np.random.default_rng(7).normal(size=ELEMENTS).astype(np.float32)
    pair = stored(tmp_path, weight, 0.5), stored(tmp_path, -3 * weight, 0.0)
    first, second = (extended(tmp_path, *pair, 3) for _ in range(2))
    assert first == second
    assert digest_of_file(first) == Digest(first.stem)


def test_models_with_other_tensors_have_no_mean(tmp_path: Path) -> None:
    schema = parse_schema([TensorSpec("weight", (7,))])
    other = tmp_path / f"{store_model(tmp_path, schema, [bytes(28)])}{MODEL_SUFFIX}"
    mine = stored(tmp_path, np.ones(ELEMENTS, dtype=np.float32), 0.0)
    with pytest.raises(AggregationError, match="different tensors"):
        extend_mean(other, mine, models=1, folder=tmp_path)
