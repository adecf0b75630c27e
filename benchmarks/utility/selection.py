"""Hyper-parameters, chosen on public images alone.

Given a ``PublicPool`` and the hospitals' enrolled sizes and nothing else: no hospital's
image and no test image can get in. Part of the pool fits the public map, part stands in for
the hospitals with the noise that their aggregate will have, and the rest judges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from benchmarks.utility.cohort import PublicPool
from benchmarks.utility.extraction import Images
from benchmarks.utility.mechanisms import (
    Mechanism,
    Weighting,
    classify,
    inputs_of,
    map_inputs,
    stand_in,
)
from matl_common.vision.metrics import evaluate

_SEED: Final = 17
FITTED_IMAGES: Final = 2000
"""Public images that a map is fitted on, if there are so many."""


@lru_cache(maxsize=16)
def fitting_images(pool: PublicPool) -> Images:
    """The public images that the study's maps are fitted on."""
    return pool.images.take(slice(FITTED_IMAGES))


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """The pool in three disjoint parts."""

    fitting: Images
    standing_in: Images
    judging: Images


@lru_cache(maxsize=16)
def _cut(pool: PublicPool, split: int) -> _Cut:
    order = np.random.default_rng([_SEED, split]).permutation(len(pool.images))
    fitting = min(FITTED_IMAGES, len(order) // 3)
    middle = (fitting + len(order)) // 2
    return _Cut(
        pool.images.take(order[:fitting]),
        pool.images.take(order[fitting:middle]),
        pool.images.take(order[middle:]),
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and how everything considered did on public images."""

    best: Mechanism
    accuracy: Mapping[Mechanism, float]


def choose(
    candidates: Sequence[Mechanism],
    pool: PublicPool,
    *,
    sizes: Sequence[int],
    weighting: Weighting,
    epsilon: float,
    splits: int,
    draws: int,
) -> Choice:
    """The candidate of the greatest mean accuracy on held-out public images.

    Args:
        candidates: in order of preference where two do equally well.
        pool: the public images.
        sizes: patients of each hospital, as enrolled.
        weighting: as the federation will have it.
        epsilon: what it may spend.
        splits: ways to cut the pool.
        draws: of noise, for each.
    """
    scores: dict[Mechanism, list[float]] = {candidate: [] for candidate in candidates}
    for split in range(splits):
        cut = _cut(pool, split)
        federation = stand_in(cut.standing_in, sizes, weighting)
        for candidate in candidates:
            mapped = map_inputs(candidate.inputs, federation, cut.fitting, classes=pool.classes)
            judging = inputs_of(cut.judging, candidate.inputs, cut.fitting)
            for _ in range(draws):
                guesses = classify(judging, candidate.train(mapped, epsilon=epsilon))
                found = evaluate(cut.judging.labels, guesses, classes=pool.classes)
                scores[candidate].append(found.accuracy)
    means = {candidate: float(np.mean(each)) for candidate, each in scores.items()}
    return Choice(max(means, key=lambda candidate: means[candidate]), means)
