from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from matl_common.tensors import CHUNK_BYTES
from matl_coordinator.service.contents import scan_update

ELEMENTS = CHUNK_BYTES // 4 + 8192 + 5


def written(path: Path, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Path:
    path.write_bytes(values.astype("<f4").tobytes())
    return path


def test_the_norm_is_that_of_all_values_in_double_precision(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(ELEMENTS, dtype=np.float32)
    found = scan_update(written(tmp_path / "u", values))
    assert found.non_finite == 0
    assert found.norm == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=1e-12)


def test_values_that_are_not_finite_are_counted_wherever_they_are_and_left_out(
    tmp_path: Path,
) -> None:
    values = np.full(ELEMENTS, 2.0, dtype=np.float32)
    values[[0, 8191, 8192, CHUNK_BYTES // 4, ELEMENTS - 1]] = [
        math.nan,
        math.inf,
        -math.inf,
        math.nan,
        math.nan,
    ]
    found = scan_update(written(tmp_path / "u", values))
    assert found.non_finite == 5
    assert found.norm == pytest.approx(2.0 * math.sqrt(ELEMENTS - 5), rel=1e-12)


def test_the_largest_values_do_not_overflow(tmp_path: Path) -> None:
    largest = float(np.finfo(np.float32).max)
    values = np.full(ELEMENTS, largest, dtype=np.float32)
    found = scan_update(written(tmp_path / "u", values))
    assert found.non_finite == 0
    assert found.norm == pytest.approx(largest * math.sqrt(ELEMENTS), rel=1e-12)
