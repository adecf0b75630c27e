"""One look over a complete update on disk, in bounded memory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from matl_common.tensors import iter_update_chunks
from matl_coordinator.core.admission import Contents


def scan_update(path: Path) -> Contents:
    """Count the values that are not finite and take the norm of the rest.

    Squares are summed in float64, where no float32 value overflows.
    """
    non_finite, squares = 0, []
    for chunk in iter_update_chunks(path):
        values = np.frombuffer(chunk, dtype="<f4")
        finite = np.isfinite(values)
        non_finite += values.size - int(np.count_nonzero(finite))
        wide = np.where(finite, values, 0.0).astype(np.float64)
        squares.append(float(wide @ wide))
    return Contents(non_finite=non_finite, norm=math.sqrt(math.fsum(squares)))
