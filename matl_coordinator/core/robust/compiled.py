"""The inner loops of coordinate-wise order statistics, compiled.

A selection network is some hundred steps over rows that fit the first-level cache. From
numpy each step is a call that gives back and takes the interpreter's lock, and threads
queue for it; compiled, a block is one call without the lock. The compiler is loaded on
first use: it costs a process a second or two and some 140 MB, which other rules do not pay.
Nothing here knows what the ranks are for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_KEEP_LOW, _KEEP_HIGH = 1, 2
# Coordinates worked on before the next ones: 20 rows of them take 40 KB.
_WIDTH: Final = 512


@dataclass(frozen=True, slots=True)
class Loops:
    """The functions of this module as machine code."""

    exchange: Callable[[NDArray[np.float32], NDArray[np.intp]], None]
    mean_of_rows: Callable[[NDArray[np.float32]], NDArray[np.float32]]


@cache
def compiled_loops() -> Loops:
    """Compile once a process; a daemon does so before its first round."""
    from numba import float32, intp, njit, void

    rows = float32[:, ::1]
    return Loops(
        njit(void(rows, intp[:, ::1]), nogil=True)(exchange),
        njit(float32[::1](rows), nogil=True)(mean_of_rows),
    )


def exchange(rows: NDArray[np.float32], steps: NDArray[np.intp]) -> None:
    """Run comparators over rows, in place.

    Args:
        rows: shape ``(m, b)``, contiguous, finite.
        steps: shape ``(s, 3)``: the row for the smaller values, the row for the larger
            ones, and which of the two to write (1: smaller, 2: larger, 3: both).
    """
    for start in range(0, rows.shape[1], _WIDTH):
        end = min(rows.shape[1], start + _WIDTH)
        for step in range(steps.shape[0]):
            low = rows[steps[step, 0], start:end]
            high = rows[steps[step, 1], start:end]
            keep = steps[step, 2]
            # A loop for each case: without a branch inside, it becomes vector code.
            if keep == _KEEP_LOW:
                for i in range(low.shape[0]):
                    low[i] = min(low[i], high[i])
            elif keep == _KEEP_HIGH:
                for i in range(low.shape[0]):
                    high[i] = max(low[i], high[i])
            else:
                for i in range(low.shape[0]):
                    smaller, larger = min(low[i], high[i]), max(low[i], high[i])
                    low[i] = smaller
                    high[i] = larger


def mean_of_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coordinate-wise mean, shape ``(b,)``, of rows of shape ``(m, b)``; sums in float64."""
    m, b = rows.shape
    mean = np.empty(b, dtype=np.float32)
    for start in range(0, b, _WIDTH):
        end = min(b, start + _WIDTH)
        total = np.zeros(end - start)
        for row in range(m):
            values = rows[row, start:end]
            for i in range(values.shape[0]):
                total[i] += values[i]
        for i in range(total.shape[0]):
            # Adding 0 makes -0 and 0, which a network does not tell apart, the same bytes.
            mean[start + i] = np.float32(total[i] / m) + np.float32(0)
    return mean
