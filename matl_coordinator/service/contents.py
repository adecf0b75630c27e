"""One look over a complete update on disk, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from matl_common.tensors import view_update_chunks
from matl_coordinator.core.admission import Contents

# Short enough for the caches, and for OpenBLAS, which shares longer products out among threads
# that then turn idly on cores that others need.
_BLOCK: Final = 8192


def scan_update(path: Path) -> Contents:
    """Count the values that are not finite and take the norm of the rest.

    Squares are summed in float64, where no float32 value overflows.
    """
    non_finite, squares = 0, []
    for block in _blocks(path):
        wide = block.astype(np.float64)
        square = float(wide @ wide)
        if not math.isfinite(square):
            finite = np.isfinite(wide)
            non_finite += wide.size - int(np.count_nonzero(finite))
            wide[~finite] = 0.0
            square = float(wide @ wide)
        squares.append(square)
    return Contents(non_finite=non_finite, norm=math.sqrt(math.fsum(squares)))


def _blocks(path: Path) -> Iterable[NDArray[np.float32]]:
    for chunk in view_update_chunks(path):
        values = np.frombuffer(chunk, dtype="<f4")
        for start in range(0, values.size, _BLOCK):
            yield values[start : start + _BLOCK]
