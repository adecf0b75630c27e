"""Local training of a round in parts, which any worker may do; to the bit as all at once.

Draws are made for all hospitals together, as a learner makes them, so that what a hospital sends
does not depend on who trains it. Changes no result: not part of a run's fingerprint.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from matl.simulation.datasets import Float32Array
from matl.simulation.learners import HeadLearner, Learner, LocalUpdates, NetworkLearner

BLOCK: Final = 16
"""Hospitals whose parameters, gradients and images stay in a core's cache between steps: for a
thousand hospitals with 25,000 parameters a third of the time of all at once."""

Drawn: TypeAlias = NDArray[np.generic]
Train = Callable[[Float32Array, int], LocalUpdates]
"""A round's base and number to what every hospital sends."""
Spread = Callable[[Learner], Learner]
"""A learner to one that trains its hospitals elsewhere."""
Divisible = NetworkLearner | HeadLearner


class PartedLearner:
    """A ``Learner`` whose hospitals are trained by ``train``, and which is else as it was."""

    def __init__(self, learner: Learner, train: Train) -> None:
        self._train = train
        self.plan = learner.plan
        self.initial = learner.initial
        self.descent = learner.descent
        self.class_descents = learner.class_descents
        self.pooled_update = learner.pooled_update
        self.root_update = learner.root_update
        self.root_losses = learner.root_losses
        self.predict = learner.predict

    def train(self, base: Float32Array, *, round_number: int) -> LocalUpdates:
        """As ``Learner.train``."""
        return self._train(base, round_number)


def in_blocks(learner: Learner) -> Learner:
    """The same learner, with a block of hospitals trained at a time."""
    if not isinstance(learner, Divisible):
        return learner

    def train(base: Float32Array, round_number: int) -> LocalUpdates:
        drawn = draw(learner, round_number=round_number)
        return train_part(learner, base, drawn, range(hospitals_of(learner)))

    return PartedLearner(learner, train)


def hospitals_of(learner: Divisible) -> int:
    """How many there are."""
    return len(learner._cohort.members)


def draw(learner: Divisible, *, round_number: int) -> Drawn:
    """What a round draws, shape ``(steps, n, ...)``: rows of images, or noise."""
    cohort, recipe, seed = learner._cohort, learner._recipe, learner._seed
    if isinstance(learner, HeadLearner):
        rng = np.random.default_rng([seed, 3, round_number])
        privacy = learner.plan.privacy
        stddev = privacy.noise_multiplier * privacy.max_grad_norm
        elements = learner.plan.schema.update_elements
        return rng.normal(0.0, stddev, (recipe.steps, len(cohort.members), elements))
    rng = np.random.default_rng([seed, 2, round_number])
    size = recipe.steps, recipe.batch
    return np.stack([rows[rng.integers(len(rows), size=size)] for rows in cohort.members], axis=1)


def train_part(learner: Divisible, base: Float32Array, drawn: Drawn, part: range) -> LocalUpdates:
    """One round at these hospitals alone; shape ``(len(part), d)`` each."""
    if isinstance(learner, HeadLearner):
        noise = drawn.astype(np.float64, copy=False)
        pairs = [learner._trained(base, number, noise) for number in part]
        return LocalUpdates(
            sent=np.stack([sent for sent, _ in pairs]),
            clean=np.stack([clean for _, clean in pairs]),
        )
    cohort, batches = learner._cohort, drawn.astype(np.int64, copy=False)
    moved = np.empty((len(part), len(base)), dtype=np.float32)
    for first in range(0, len(part), BLOCK):
        own = batches[:, part[first : first + BLOCK]]
        start = np.tile(base, (own.shape[1], 1))
        moved[first : first + BLOCK] = learner._descended(start, cohort.values, cohort.labels, own)
    return LocalUpdates(moved, moved)


def divided(count: int, *, parts: int) -> list[range]:
    """The numbers below ``count`` in that many stretches or fewer, whole blocks each but one."""
    blocks = -(-count // BLOCK)
    length = BLOCK * -(-blocks // max(1, parts))
    return [range(first, min(count, first + length)) for first in range(0, count, length)]
