"""Who trains a round's hospitals: blocks of them here, or any worker; to the bit as all at once.

Changes no result: not part of a run's fingerprint.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from matl.simulation.datasets import Float32Array
from matl.simulation.learners import Drawn, Learner, LocalUpdates

BLOCK: Final = 16
"""Hospitals whose parameters, gradients and images stay in a core's cache between steps: for a
thousand hospitals with 25,000 parameters a third of the time of all at once."""

Trainer = Callable[[Learner, Float32Array, int, Sequence[int]], LocalUpdates]
"""Of a learner, a round's base and number, and hospitals, to what each of these sends."""


def in_blocks(
    learner: Learner, base: Float32Array, round_number: int, hospitals: Sequence[int]
) -> LocalUpdates:
    """A block of hospitals at a time, in this process."""
    return train_part(learner, base, learner.draw(round_number=round_number), hospitals)


def train_part(
    learner: Learner, base: Float32Array, drawn: Drawn, hospitals: Sequence[int]
) -> LocalUpdates:
    """As ``Learner.train``, a block at a time."""
    firsts = range(0, len(hospitals), BLOCK)
    return joined(
        [learner.train(base, drawn, hospitals[first : first + BLOCK]) for first in firsts]
    )


def joined(parts: Sequence[LocalUpdates]) -> LocalUpdates:
    """The hospitals of several parts, in their order."""
    sent = np.concatenate([each.sent for each in parts])
    if all(each.clean is each.sent for each in parts):
        return LocalUpdates(sent, sent)
    return LocalUpdates(sent, np.concatenate([each.clean for each in parts]))


def divided(hospitals: Sequence[int], *, parts: int) -> list[Sequence[int]]:
    """These hospitals in that many stretches or fewer, whole blocks each but one."""
    blocks = -(-len(hospitals) // BLOCK)
    length = BLOCK * -(-blocks // max(1, parts))
    return [hospitals[first : first + length] for first in range(0, len(hospitals), length)]
