"""Attacks on what a hospital trains on: flipped labels, and images with a trigger.

The update is then trained as everybody's is. Nothing here trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from matl.attacks.attack import AttackError

TRIGGER_SIDE: Final = 2


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A training set."""

    images: NDArray[Any]
    """Shape ``(m, height, width)`` or ``(m, height, width, channels)``, whatever their type."""
    labels: NDArray[np.int64]
    """Shape ``(m,)``, from 0 to ``classes − 1``."""
    classes: int


Poison = Callable[[Samples, np.random.Generator], Samples]
"""What an attacker makes of its training set; the one it was given stays as it was."""


def complement_labels(samples: Samples, draws: np.random.Generator) -> Samples:
    """Every label ``y`` becomes ``C − 1 − y``."""
    return replace(samples, labels=samples.classes - 1 - samples.labels)


def shift_labels(samples: Samples, draws: np.random.Generator) -> Samples:
    """Every label ``y`` becomes ``y + 1``, the last one 0."""
    return replace(samples, labels=(samples.labels + 1) % samples.classes)


def randomise_labels(samples: Samples, draws: np.random.Generator) -> Samples:
    """Every label is drawn anew, each class as likely."""
    drawn = draws.integers(samples.classes, size=samples.labels.shape)
    return replace(samples, labels=drawn.astype(samples.labels.dtype))


def backdoor(
    samples: Samples, draws: np.random.Generator, *, target: int = 0, share: float = 0.5
) -> Samples:
    """A share of the images gets a trigger of four pixels and the target's label.

    Raises:
        AttackError: there is no such class.
    """
    if not 0 <= target < samples.classes:
        raise AttackError(f"target is {target}; choose a class from 0 to {samples.classes - 1}")
    chosen = draws.permutation(len(samples.labels))[: round(share * len(samples.labels))]
    images, labels = samples.images.copy(), samples.labels.copy()
    images[chosen] = with_trigger(images[chosen], brightest=samples.images.max(initial=0))
    labels[chosen] = target
    return replace(samples, images=images, labels=labels)


def with_trigger(images: NDArray[Any], *, brightest: float) -> NDArray[Any]:
    """The images with a 2×2 square of the brightest value in the lower right corner.

    To measure an attack's success: the share of such images, of other classes than the
    target, that a model takes for the target.
    """
    stamped = images.copy()
    stamped[:, -TRIGGER_SIDE:, -TRIGGER_SIDE:] = brightest
    return stamped
