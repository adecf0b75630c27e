"""What the root set says about each update: projections on its loss gradients.

The root set is the coordinator's de-identified holdout set. Its gradients join the
Gram matrix as extra rows, so a score costs no further pass over the updates. Noise
that a hospital added for privacy enters the variance; its size comes from the study's
policy, never from the hospital. Nothing here decides what a score means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from matl_common.ids import NodeId
from matl_common.protocol import PrivacyTerms, Recipe, TrainingPlan
from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Gram

BEYOND_ROW: Final = "beyond-gradients"
"""Name of the extra row that tells what the root set's own training does beyond its gradients."""


@dataclass(frozen=True, slots=True)
class RootRow:
    """One extra row of the Gram matrix: minus the mean loss gradient of a part of the root set.

    At the base model, or along the round's step (``scoring.path``).
    """

    name: str
    class_index: int
    fold: int
    images: int


@dataclass(frozen=True, slots=True)
class RootProjection:
    """How far one update goes along the direction in which the root set's loss falls."""

    node_id: NodeId
    projection: float
    """⟨update, r̄⟩; positive when the update lowers the loss: to first order with the gradient at
    the base model, to second order with that along the round's step."""
    standard_error: float
    """Of the projection over root sets like this one; without privacy noise."""
    reference_norm: float
    """‖r̄‖: privacy noise of standard deviation σ per coordinate adds σ‖r̄‖."""


def update_noise_std(training: TrainingPlan, privacy: PrivacyTerms, *, patients: int) -> float:
    """Standard deviation, per coordinate, of the privacy noise in one update.

    A step moves the parameters by ``-learning_rate / D`` times a sum that carries noise of
    standard deviation ``noise_multiplier * max_grad_norm``; independent over the steps of
    a round, so

        σ = learning_rate · √steps_per_round · noise_multiplier · max_grad_norm / D

    with D the declared number of patients (``head``, full batch) or the expected Poisson
    batch, ``sample_rate`` times that number (``full``). Exact for plain gradient descent on
    a linear loss; curvature contracts early steps' noise, so it errs towards leniency.

    Args:
        training: the plan's recipe.
        privacy: the plan's mechanism.
        patients: as enrolled for the hospital, never as claimed with an update.

    Raises:
        AggregationError: ``patients`` is below 1.
    """
    if patients < 1:
        raise AggregationError(f"{patients} patients are enrolled; a hospital needs at least 1")
    match training.recipe:
        case Recipe.HEAD:
            divisor = float(patients)
        case Recipe.FULL:
            divisor = privacy.sample_rate * patients
    step = training.learning_rate * privacy.noise_multiplier * privacy.max_grad_norm / divisor
    return step * math.sqrt(training.steps_per_round)


def project_on_root(
    gram: Gram,
    rows: Sequence[RootRow],
    *,
    label_shares: Mapping[NodeId, Sequence[float]] | None = None,
) -> tuple[RootProjection, ...]:
    """Project every update on the root gradient that suits its hospital's label mix.

    The reference of a hospital weighs class c by ω_c = ½ p_c + ½ π_c, with p the label
    shares enrolled for it and π uniform over the classes the root set has; without an
    enrolled mix ω = π. The standard error comes from the spread between folds within
    each class, pooled over classes.

    Args:
        gram: its extra rows include all of ``rows``, by name.
        rows: at least two folds of every class that occurs.
        label_shares: by node, one share for each class, summing to 1.

    Raises:
        AggregationError: a row is not in ``gram``, or a class has a single fold.
    """
    classes, members = class_members(gram, rows)
    # Class c's gradient is the mean of its folds: coefficients over the Gram's rows.
    means = np.zeros((len(classes), gram.matrix.shape[0]))
    for index, member in enumerate(members):
        means[index, member] = 1.0 / len(member)
    return tuple(
        _project(
            gram, node, members, means, _class_weights(classes, (label_shares or {}).get(node))
        )
        for node in gram.nodes
    )


def cosines_with(gram: Gram, row: str) -> dict[NodeId, float]:
    """Of each update with an extra row; empty without that row.

    An update of zeros has none, and neither has any where the row is one.
    """
    if row not in gram.extras:
        return {}
    column = gram.n + gram.extras.index(row)
    squares = np.diag(gram.matrix)
    lengths = np.sqrt(np.maximum(0.0, squares[: gram.n]) * max(0.0, float(squares[column])))
    along = gram.matrix[: gram.n, column]
    return {
        node: max(-1.0, min(1.0, float(inner / length)))
        for node, inner, length in zip(gram.nodes, along, lengths, strict=True)
        if length > 0.0
    }


def class_members(gram: Gram, rows: Sequence[RootRow]) -> tuple[list[int], list[list[int]]]:
    """The classes of the root set, and for each the Gram rows of its folds.

    Raises:
        AggregationError: a row is not in ``gram``, or a class has a single fold.
    """
    folds = _folds_by_class(rows)
    columns = {name: gram.n + index for index, name in enumerate(gram.extras)}
    if missing := [row.name for row in rows if row.name not in columns]:
        raise AggregationError(f"root rows missing from the Gram matrix: {', '.join(missing)}")
    return list(folds), [[columns[row.name] for row in members] for members in folds.values()]


def class_shares(classes: Sequence[int], shares: Sequence[float]) -> Float64Array:
    """Enrolled label shares among the classes of the root set, summing to 1.

    Uniform for a hospital that has only classes the root set lacks.

    Raises:
        AggregationError: a class has no share, or a share is negative or not finite.
    """
    if max(classes) >= len(shares):
        raise AggregationError(f"{len(shares)} label shares are enrolled; more classes occur")
    enrolled = np.array([shares[label] for label in classes], dtype=np.float64)
    if not (np.isfinite(enrolled).all() and (enrolled >= 0).all()):
        raise AggregationError("an enrolled label share is negative or not finite")
    total = enrolled.sum()
    found: Float64Array = enrolled / total if total > 0 else np.full(len(classes), 1 / len(classes))
    return found


def reference_rank(n: int, f: int) -> int:
    """Which of the n largest projections stands for a good one; 1 is the largest.

    In the middle of the honest if the hostile understate, which is the (n - f)/2-th. Below f
    others, so that at least one honest projection is as large however the f overstate, also where
    some of the honest are absent.
    """
    return min(n, max(f + 1, -(-(n - f) // 2)))


def _project(
    gram: Gram,
    node: NodeId,
    members: Sequence[Sequence[int]],
    means: Float64Array,
    omega: Float64Array,
) -> RootProjection:
    inner = gram.matrix[gram.nodes.index(node)]
    coefficients = omega @ means
    squared_norm = float(coefficients @ gram.matrix @ coefficients)
    # Variance of the mean over folds within a class; classes are independent samples.
    variance = math.fsum(
        weight**2 * float(np.var(inner[list(member)], ddof=1)) / len(member)
        for weight, member in zip(omega, members, strict=True)
    )
    return RootProjection(
        node_id=node,
        projection=float(inner @ coefficients),
        standard_error=math.sqrt(variance),
        reference_norm=math.sqrt(max(0.0, squared_norm)),
    )


def _folds_by_class(rows: Sequence[RootRow]) -> dict[int, list[RootRow]]:
    folds: dict[int, list[RootRow]] = {}
    for row in sorted(rows, key=lambda row: (row.class_index, row.fold)):
        folds.setdefault(row.class_index, []).append(row)
    if not folds:
        raise AggregationError("the root set has no gradient rows; scoring needs a holdout set")
    if short := [label for label, members in folds.items() if len(members) < 2]:
        raise AggregationError(
            f"classes {short} have fewer than two folds in the root set; add images of them"
        )
    return folds


def _class_weights(classes: Sequence[int], shares: Sequence[float] | None) -> Float64Array:
    uniform = np.full(len(classes), 1.0 / len(classes))
    if shares is None:
        return uniform
    mixed: Float64Array = 0.5 * class_shares(classes, shares) + 0.5 * uniform
    return mixed
