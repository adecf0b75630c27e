"""What the second pass does to the coordinates: a mixing matrix and a reduction.

A rule decides once, from the Gram matrix; the plan it returns is carried out chunk
by chunk. Nothing here reads an update.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from matl_coordinator.core.robust.gram import AggregationError, Float64Array


@dataclass(frozen=True, slots=True)
class Identity:
    """The single mixed row is the aggregate."""


@dataclass(frozen=True, slots=True)
class CoordinateMedian:
    """Each coordinate is the median of the mixed rows."""


@dataclass(frozen=True, slots=True)
class CoordinateTrimmedMean:
    """Each coordinate is the mean of the mixed rows without ``f`` at either end."""

    f: int


@dataclass(frozen=True, slots=True)
class MeanAroundMedian:
    """Each coordinate is the mean of the ``keep`` mixed rows nearest its median there.

    Of two rows equally near, the lower counts first; the median of an even number of rows
    is the mean of the two in the middle.
    """

    keep: int


Reduction = Identity | CoordinateMedian | CoordinateTrimmedMean | MeanAroundMedian


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """``reduction`` of ``mixing @ rows``, for every coordinate."""

    rows: tuple[str, ...]
    """Names of the rows that the columns of ``mixing`` stand for."""
    mixing: Float64Array
    """Shape ``(m, len(rows))``, finite."""
    reduction: Reduction

    def __post_init__(self) -> None:
        if self.mixing.ndim != 2 or self.mixing.shape[1] != len(self.rows):
            raise AggregationError(
                f"a mixing matrix of shape {self.mixing.shape} does not fit {len(self.rows)} rows"
            )
        if not np.isfinite(self.mixing).all():
            raise AggregationError("the mixing matrix holds a value that is not finite")
        m = self.mixing.shape[0]
        match self.reduction:
            case Identity() if m != 1:
                raise AggregationError(f"{m} mixed rows do not make one aggregate unreduced")
            case CoordinateTrimmedMean(f) if f < 0 or m <= 2 * f:
                raise AggregationError(f"cannot trim {f} of {m} rows at either end")
            case MeanAroundMedian(keep) if not 1 <= keep <= m:
                raise AggregationError(f"cannot keep {keep} of {m} rows around their median")
            case _ if m < 1:
                raise AggregationError("no row to aggregate")
            case _:
                pass
