"""One look over an update, as it comes or on disk, in bounded memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from matl_common.tensors import view_update_chunks
from matl_coordinator.core.admission import Contents

# Short enough for the caches, and for OpenBLAS, which shares longer products out among threads
# that then turn idly on cores that others need.
_BLOCK: Final = 8192


class Scan:
    """What the chunks of an update hold, seen one after another.

    Counts the values that are not finite and takes the norm of the rest. Squares are summed in
    float64, where no float32 value overflows.
    """

    def __init__(self) -> None:
        self._non_finite = 0
        self._squares: list[float] = []

    def add(self, chunk: bytes | memoryview) -> None:
        """Look at the next chunk."""
        values = np.frombuffer(chunk, dtype="<f4")
        for start in range(0, values.size, _BLOCK):
            self._add(values[start : start + _BLOCK].astype(np.float64))

    def _add(self, wide: NDArray[np.float64]) -> None:
        square = float(wide @ wide)
        if not math.isfinite(square):
            finite = np.isfinite(wide)
            self._non_finite += wide.size - int(np.count_nonzero(finite))
            wide[~finite] = 0.0
            square = float(wide @ wide)
        self._squares.append(square)

    @property
    def contents(self) -> Contents:
        return Contents(non_finite=self._non_finite, norm=math.sqrt(math.fsum(self._squares)))


def scan_update(path: Path) -> Contents:
    """Look at all chunks of a complete update."""
    scan = Scan()
    for chunk in view_update_chunks(path):
        scan.add(chunk)
    return scan.contents
