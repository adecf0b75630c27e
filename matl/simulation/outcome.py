"""What one simulated study came to, as figures. Computes; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from matl.simulation.datasets import Float32Array, Labels
from matl_common.ids import NodeId
from matl_common.vision.metrics import cohen_kappa, confusion_matrix, evaluate


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Shares are of hospitals, or of hospital-rounds."""

    data_set: str
    members: int
    byzantine: int
    """f as the coordinator was told."""
    hostile: int
    mix: str
    epsilon: float
    seed: int
    attack: str
    arm: str
    accuracy: float
    """Of the released model on the test images, as a fraction."""
    balanced_accuracy: float
    kappa: float
    """Cohen's; weighted by squared distance where classes are grades."""
    worst_silo: float
    """Least, over honest hospitals, of the test accuracy with that hospital's class mix."""
    site_accuracy: tuple[float, ...]
    """On patients of each site that nobody trained on; empty where none were kept."""
    backdoor_success: float | None
    """Share of triggered test images taken for the target; None without a trigger or a model."""
    held_rounds: int
    rounds: int
    hostile_excluded: float | None
    """At the end: in quarantine or refused. None where nobody is hostile."""
    honest_excluded: float
    hostile_weightless: float | None
    """Of the hostile hospital-rounds that were not held, those that counted for nothing."""
    honest_weightless: float
    """Of the honest hospital-rounds, those that counted for nothing; in a held round all do."""
    hostile_weight: float | None
    """Mean share of the aggregate that hostile hospitals had, before a rule selects; of rounds
    that were not held, None where all were."""
    detected_in: int | None
    """First round from which on no hostile hospital counted; None where there is none such."""
    longest_honest_exclusion: int
    """Most rounds in a row that any honest hospital counted for nothing, held ones among them."""
    trust: Mapping[str, float]
    """At the end, for reading; hostile hospitals are marked with a star."""

    @property
    def is_private(self) -> bool:
        return math.isfinite(self.epsilon)


@dataclass(frozen=True, slots=True)
class Weighed:
    """What the shares of a run's released rounds say."""

    hostile_weightless: float | None
    honest_weightless: float
    hostile_weight: float | None
    detected_in: int | None
    longest_honest_exclusion: int


def weighed(
    rounds: Sequence[tuple[int, Mapping[NodeId, float]]],
    *,
    honest: Collection[NodeId],
    hostile: Collection[NodeId],
) -> Weighed:
    """Judge the shares of all rounds, each with its number, in order; a held round has none.

    Weight is of the rounds that were released, and ``None`` where there is none. An honest
    hospital waits in a held round like in one that leaves it out.
    """
    released = [shares for _, shares in rounds if shares]

    def silent(counted: Sequence[Mapping[NodeId, float]], nodes: Collection[NodeId]) -> float:
        idle = sum(shares.get(node, 0.0) == 0.0 for shares in counted for node in nodes)
        return idle / (len(counted) * len(nodes))

    totals = [sum(shares.get(node, 0.0) for node in hostile) for shares in released]
    numbers = [number for number, shares in rounds if shares]
    heard = [number for number, total in zip(numbers, totals, strict=True) if total > 0.0]
    following = [number for number in numbers if not heard or number > heard[-1]]
    is_known = bool(hostile and released)
    return Weighed(
        hostile_weightless=silent(released, hostile) if is_known else None,
        honest_weightless=silent([shares for _, shares in rounds], honest) if rounds else 0.0,
        hostile_weight=sum(totals) / len(released) if is_known else None,
        detected_in=following[0] if hostile and following else None,
        longest_honest_exclusion=max((_longest(rounds, node) for node in honest), default=0),
    )


def _longest(rounds: Sequence[tuple[int, Mapping[NodeId, float]]], node: NodeId) -> int:
    longest = run = 0
    for _, shares in rounds:
        run = run + 1 if shares.get(node, 0.0) == 0.0 else 0
        longest = max(longest, run)
    return longest


@dataclass(frozen=True, slots=True)
class Scores:
    """One model on the test images, as fractions."""

    accuracy: float
    balanced_accuracy: float
    kappa: float
    recall: Float32Array


def score(labels: Labels, guesses: Labels, *, classes: int, ordered: bool) -> Scores:
    """Judge guesses ``(n,)``."""
    found = evaluate(labels, guesses, classes=classes)
    kappa = found.quadratic_weighted_kappa
    if not ordered:
        kappa = cohen_kappa(confusion_matrix(labels, guesses, classes=classes))
    # A class that the test images lack is nobody's to get right.
    recall = np.nan_to_num(np.array(found.recall, dtype=np.float32), nan=1.0)
    return Scores(found.accuracy, found.balanced_accuracy, kappa, recall)
