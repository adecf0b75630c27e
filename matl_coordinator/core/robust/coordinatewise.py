"""Rules that decide each coordinate for itself, in the second pass. They ignore weights."""

from __future__ import annotations

from matl_coordinator.core.robust.gram import Gram
from matl_coordinator.core.robust.plan import (
    CoordinateMedian,
    CoordinateTrimmedMean,
    MeanAroundMedian,
    Plan,
)
from matl_coordinator.core.robust.rules import check_rows, unmixed


def coordinate_median(gram: Gram, *, f: int = 0) -> Plan:
    """Coordinate-wise median (Yin et al., ICML 2018). Needs n > 2f.

    Raises:
        AggregationError: ``n <= 2 * f``, or a value is not finite.
    """
    check_rows(gram, minimum=2 * f + 1, rule=f"coordinate median with f = {f}")
    return Plan(gram.row_names, unmixed(gram), CoordinateMedian())


def trimmed_mean(gram: Gram, *, f: int) -> Plan:
    """Coordinate-wise trimmed mean, TrMean (Yin et al., ICML 2018). Needs n > 2f.

    The mean of what is left when the f lowest and the f highest values are dropped.

    Raises:
        AggregationError: ``n <= 2 * f``, or a value is not finite.
    """
    check_rows(gram, minimum=2 * f + 1, rule=f"trimmed mean with f = {f}")
    return Plan(gram.row_names, unmixed(gram), CoordinateTrimmedMean(f))


def meamed(gram: Gram, *, f: int) -> Plan:
    """Mean around the median, Meamed (Xie et al., arXiv 1802.10116). Needs n > 2f.

    In each coordinate, the mean of the n − f values nearest the median.

    Raises:
        AggregationError: ``n <= 2 * f``, or a value is not finite.
    """
    check_rows(gram, minimum=2 * f + 1, rule=f"meamed with f = {f}")
    return Plan(gram.row_names, unmixed(gram), MeanAroundMedian(gram.n - f))
