"""One federation to measure: hospitals' patients, public images, test images.

The public pool is a value of its own, so that whoever chooses hyper-parameters can be given
it and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.utility.extraction import PLAIN, Images, Labels
from benchmarks.utility.sources import Extracted

SHARES: Final = (10, 5, 3, 2, 1)
_SPLIT_SEED: Final = 41


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class PublicPool:
    """What anybody may look at, labels included: all that hyper-parameters are chosen on.

    Attributes:
        images: labelled public images.
        classes: how many classes there are.
        ordered: whether they are grades, so that a far miss is worse than a near one.
        origins: number of the camera that took each image, ``(n,)``.
    """

    images: Images
    classes: int
    ordered: bool
    origins: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """One split of one data set."""

    public: PublicPool
    hospitals: tuple[Images, ...]
    test: Images

    @property
    def sizes(self) -> tuple[int, ...]:
        """Images of each hospital, which may be fewer than the patients they stand for."""
        return tuple(len(each) for each in self.hospitals)


def fundus_cohort(found: Extracted, *, layered: bool) -> Cohort:
    """The hospitals as they were planned: each has its camera and mix of grades."""
    return Cohort(
        _pool(found, classes=5, ordered=True, layered=layered),
        tuple(_choose(each, layered=layered) for each in found.hospitals),
        _choose(found.test, layered=layered),
    )


def fashion_cohorts(found: Extracted, *, splits: int, layered: bool) -> tuple[Cohort, ...]:
    """The hospitals' images dealt to five hospitals at random, anew for each split."""
    pool = _pool(found, classes=10, ordered=False, layered=layered)
    owned, test = _choose(found.hospitals[0], layered=layered), _choose(found.test, layered=layered)
    return tuple(Cohort(pool, deal(owned, split=split), test) for split in range(splits))


def deal(images: Images, *, split: int, shares: Sequence[int] = SHARES) -> tuple[Images, ...]:
    """All images, dealt at random to hospitals of these relative sizes."""
    order = np.random.default_rng([_SPLIT_SEED, split]).permutation(len(images))
    ends = np.cumsum(shares) * len(images) // sum(shares)
    return tuple(images.take(rows) for rows in np.split(order, ends[:-1]))


def _pool(found: Extracted, *, classes: int, ordered: bool, layered: bool) -> PublicPool:
    images = _choose(found.public, layered=layered)
    return PublicPool(images, classes, ordered, found.public_origins)


def _choose(images: Images, *, layered: bool) -> Images:
    return images if layered else Images(images.features[:, PLAIN], images.labels)
