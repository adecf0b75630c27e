"""Hyper-parameters, chosen on public images alone.

Given a ``PublicPool`` and the hospitals' enrolled sizes and nothing else: no hospital's
image and no test image can get in. Part of the pool fits the public map, part stands in for
the hospitals with the noise that their aggregate will have, and the rest judges. Where the pool
is of several cameras the map is fitted on others than those that stand in and judge, as
hospitals have cameras that the public images have not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from benchmarks.utility.cohort import PublicPool
from benchmarks.utility.extraction import Images, Labels
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
_MIX_CONCENTRATION: Final = 5.0
"""Of five classes the rarest then has a share of 11 % on average, the commonest 31 %."""
FITTED_IMAGES: Final = 2000
"""Public images that a map is fitted on, if there are so many."""


@lru_cache(maxsize=16)
def fitting_images(pool: PublicPool) -> Images:
    """The public images that the study's maps are fitted on."""
    return pool.images.take(slice(FITTED_IMAGES))


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The pool in three disjoint parts."""

    fitting: Images
    standing_in: Images
    judging: Images


@lru_cache(maxsize=16)
def cut(pool: PublicPool, split: int) -> Cut:
    """One of the ways to cut the pool; each camera is held out in turn."""
    rng = np.random.default_rng([_SEED, split])
    order = rng.permutation(len(pool.images))
    cameras = np.unique(pool.origins)
    if len(cameras) == 1:
        fitting, others = np.split(order, [min(FITTED_IMAGES, len(order) // 3)])
        standing_in, judging = np.split(others, [len(others) // 2])
    else:
        own = pool.origins[order] == cameras[split % len(cameras)]
        fitting, others = order[~own][:FITTED_IMAGES], order[own]
        standing_in, judging = np.split(others, [len(others) // 2])
        standing_in = _with_own_mix(standing_in, pool, rng)
    return Cut(*(pool.images.take(rows) for rows in (fitting, standing_in, judging)))


def _with_own_mix(rows: Labels, pool: PublicPool, rng: np.random.Generator) -> Labels:
    """As many of these rows, drawn so that some classes are rarer: no hospital has the pool's."""
    mix = rng.dirichlet(np.full(pool.classes, _MIX_CONCENTRATION))
    weights = mix[pool.images.labels[rows]]
    return rng.choice(rows, size=len(rows), p=weights / weights.sum())


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
        parts = cut(pool, split)
        federation = stand_in(parts.standing_in, sizes, weighting)
        for candidate in candidates:
            mapped = map_inputs(candidate.inputs, federation, parts.fitting, classes=pool.classes)
            judging = inputs_of(parts.judging, candidate.inputs, parts.fitting)
            for _ in range(draws):
                guesses = classify(judging, candidate.train(mapped, epsilon=epsilon))
                found = evaluate(parts.judging.labels, guesses, classes=pool.classes)
                scores[candidate].append(found.accuracy)
    means = {candidate: float(np.mean(each)) for candidate, each in scores.items()}
    return Choice(max(means, key=lambda candidate: means[candidate]), means)
