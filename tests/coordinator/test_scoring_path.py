"""The step that hospitals take together, and what each does to the holdout loss along it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from matl_common.ids import NodeId
from matl_common.tensors import Float32Vector
from matl_common.vision.linear_head import (
    fit_projection,
    head_schema,
    head_tensors,
    initial_head,
    parse_head,
)
from matl_coordinator.scoring.judges import HeadJudge
from matl_coordinator.scoring.path import common_step, descent_along

FEATURES, DIMENSIONS, CLASSES = 24, 8, 5
SCHEMA = head_schema(feature_dim=FEATURES, dimensions=DIMENSIONS, classes=CLASSES)


def step_of(
    updates: Mapping[str, Sequence[float]], weights: Mapping[str, float]
) -> list[float] | None:
    rows = {NodeId(node): np.array(row, dtype=np.float32) for node, row in updates.items()}
    found = common_step(rows.__getitem__, {NodeId(n): each for n, each in weights.items()})
    return None if found is None else [float(each) for each in found]


def judge() -> HeadJudge:
    random = np.random.default_rng(8)
    projection = fit_projection(
        random.standard_normal((40, FEATURES)), dimensions=DIMENSIONS, whitening=0.5
    )
    return HeadJudge(
        parse_head(SCHEMA, head_tensors(initial_head(projection, classes=CLASSES))),
        SCHEMA,
        features=random.standard_normal((60, FEATURES), dtype=np.float32),
        labels=np.arange(60, dtype=np.int64) % CLASSES,
    )


def test_the_step_is_the_weighted_mean() -> None:
    found = step_of({"a": [1, 0], "b": [0, 1], "c": [0, -1]}, {"a": 3.0, "b": 1.0, "c": 0.0})
    assert found == pytest.approx([0.75, 0.25])


def test_nobody_that_counts_makes_no_step() -> None:
    assert step_of({"a": [1, 0]}, {"a": 0.0}) is None
    assert step_of({}, {}) is None


def test_a_long_update_moves_the_step_no_further_than_the_median_one() -> None:
    found = step_of({"a": [1, 0], "b": [0, 1], "c": [0, 1e9]}, dict.fromkeys(("a", "b", "c"), 1.0))
    assert found == pytest.approx([1 / 3, 2 / 3])


def test_who_counts_for_nothing_lengthens_nobodys_median() -> None:
    weights = {"a": 1.0, "b": 1.0, "c": 1.0, "x": 0.0, "y": 0.0, "z": 0.0}
    far = {node: [0.0, 1e9] for node in ("x", "y", "z")}
    near = {"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [1e9, 0.0]}
    found = step_of(near | far, weights)
    assert found == pytest.approx([1.0, 0.0])


def test_values_that_are_not_finite_count_as_nothing() -> None:
    found = step_of({"a": [1, np.nan], "b": [1, -np.inf]}, {"a": 1.0, "b": 1.0})
    assert found == pytest.approx([1.0, 0.0])


def test_updates_of_zeros_make_a_step_of_zeros() -> None:
    assert step_of({"a": [0, 0], "b": [0, 0]}, {"a": 1, "b": 1}) == [0, 0]


def test_projections_along_the_step_add_up_to_what_it_gains_the_holdout_set() -> None:
    holdout, rows = judge(), np.arange(60)

    def descent(update: Float32Vector | None) -> Float32Vector:
        return holdout.descent(rows, update=update)

    start = descent(None)
    random = np.random.default_rng(3)
    aside = random.standard_normal(len(start)).astype(np.float32)
    updates = {"good": 4.0 * start, "aside": aside, "bad": -2.0 * start}
    weights = {"good": 2.0, "aside": 1.0, "bad": 1.0}
    step = np.array(step_of({n: row.tolist() for n, row in updates.items()}, weights), dtype="<f4")
    gain = float(holdout.losses(rows).mean() - holdout.losses(rows, update=step).mean())
    along = descent_along(descent, step).astype(np.float64)
    assert along @ step == pytest.approx(gain, rel=0.05)
    assert abs(start @ step - gain) > 5 * abs(along @ step - gain)


def test_a_step_that_overflows_leaves_the_gradient_where_it_began() -> None:
    start = np.array([1.0, 2.0], dtype=np.float32)
    broken = np.array([np.nan, 0.0], dtype=np.float32)
    found = descent_along(lambda update: start if update is None else broken, start)
    assert found is start
