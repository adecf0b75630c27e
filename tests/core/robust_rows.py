"""Rounds held in memory, and plans carried out on them, for the tests of the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from matl_common.ids import NodeId
from matl_coordinator.core.robust.gram import PREVIOUS_AGGREGATE, Float64Array, Gram, RowFacts
from matl_coordinator.core.robust.plan import (
    CoordinateMedian,
    CoordinateTrimmedMean,
    Identity,
    MeanAroundMedian,
    Plan,
)
from matl_coordinator.core.robust.registry import Aggregator, Choice, make_aggregator


def gram_of(
    updates: Float64Array,
    *,
    extras: Float64Array | None = None,
    weights: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> Gram:
    n, d = updates.shape
    rows = updates if extras is None else np.vstack([updates, extras])
    return Gram(
        matrix=rows @ rows.T,
        nodes=tuple(NodeId(name) for name in names or [f"n{index}" for index in range(n)]),
        extras=tuple(f"extra-{index}" for index in range(len(rows) - n)),
        weights=np.array(weights if weights is not None else [1.0] * n, dtype=np.float64),
        facts=(RowFacts(),) * len(rows),
        elements=d,
    )


def round_of(
    updates: Float64Array,
    *,
    root: Float64Array,
    previous: Float64Array,
    names: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> tuple[Gram, Float64Array]:
    """A round with all that any rule needs, and all of its rows."""
    n, d = updates.shape
    rows = np.vstack([updates, root, previous])
    gram = Gram(
        matrix=rows @ rows.T,
        nodes=tuple(NodeId(name) for name in names or [f"n{index}" for index in range(n)]),
        extras=("root", PREVIOUS_AGGREGATE),
        weights=np.ones(n) if weights is None else np.array(weights, dtype=np.float64),
        facts=(RowFacts(),) * (n + 2),
        elements=d,
        reference=np.array([0.0] * n + [1.0, 0.0]),
        history=updates @ updates.T,
    )
    return gram, rows


def carried_out(plan: Plan, rows: Float64Array) -> Float64Array:
    """The aggregate, by numpy's own means."""
    mixed = plan.mixing @ rows
    result: Float64Array
    match plan.reduction:
        case Identity():
            result = mixed[0]
        case CoordinateMedian():
            result = np.median(mixed, axis=0)
        case CoordinateTrimmedMean(f):
            result = np.sort(mixed, axis=0)[f : len(mixed) - f].mean(axis=0)
        case MeanAroundMedian(keep):
            result = mean_around_median(mixed, keep)
    return result


def mean_around_median(rows: Float64Array, keep: int) -> Float64Array:
    ordered = np.sort(rows, axis=0)
    distance = np.abs(ordered - np.median(rows, axis=0))
    nearest = np.argsort(distance, axis=0, kind="stable")[:keep]
    result: Float64Array = np.take_along_axis(ordered, nearest, axis=0).mean(axis=0)
    return result


def aggregator(
    name: str,
    *pre: str,
    f: int = 0,
    parameters: Mapping[str, int | float] | None = None,
) -> Aggregator:
    return make_aggregator(Choice(name, parameters or {}), [Choice(each) for each in pre], f=f)
