"""One arm at one ε: trained again for every draw of noise and every split, and judged."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.utility.cohort import Cohort
from benchmarks.utility.mechanisms import Federation, Mechanism, classify, inputs_of, map_inputs
from benchmarks.utility.scores import Interval, Scores, interval, score
from benchmarks.utility.selection import fitting_images

EPSILONS: Final = (0.5, 1.0, 2.0, 8.0, math.inf)


@dataclass(frozen=True, slots=True)
class Runs:
    """What one mechanism did at one ε; scores by split, then by draw."""

    arm: str
    epsilon: float
    mechanism: Mechanism
    scores: tuple[tuple[Scores, ...], ...]

    @property
    def all_scores(self) -> tuple[Scores, ...]:
        return tuple(each for split in self.scores for each in split)

    @property
    def accuracy(self) -> Interval:
        """In points, over all runs."""
        return interval([100.0 * each.accuracy for each in self.all_scores])


def run(
    arm: str,
    mechanism: Mechanism,
    cohorts: Sequence[Cohort],
    *,
    epsilon: float,
    federation: Callable[[Cohort], Federation],
    draws: int,
) -> Runs:
    """Train and judge; without noise one draw is as good as many."""
    times = 1 if math.isinf(epsilon) else draws
    found: list[tuple[Scores, ...]] = []
    for cohort in cohorts:
        public = cohort.public
        fitting = fitting_images(public)
        mapped = map_inputs(mechanism.inputs, federation(cohort), fitting, classes=public.classes)
        judged = inputs_of(cohort.test, mechanism.inputs, fitting)
        found.append(
            tuple(
                score(
                    cohort.test.labels,
                    classify(judged, mechanism.train(mapped, epsilon=epsilon)),
                    classes=public.classes,
                    ordered=public.ordered,
                )
                for _ in range(times)
            )
        )
    return Runs(arm, epsilon, mechanism, tuple(found))


def gap_points(reference: Runs, runs: Runs) -> Interval:
    """Points of accuracy below ``reference``, each split against its own."""
    return interval(
        [
            100.0 * (whole[0].accuracy - each.accuracy)
            for whole, split in zip(reference.scores, runs.scores, strict=True)
            for each in split
        ]
    )
