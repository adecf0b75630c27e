"""Which coordinates the first pass looks at apart from the rest, and what it counts there.

Choices come from a counter-based generator (Philox, Salmon et al., SC 2011) keyed by the
caller's seed and the group of coordinates, so that they need no order and no memory.
Nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from matl_common.ids import NodeId
from matl_coordinator.aggregation.rows import GROUP_ELEMENTS
from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.selection import Float32Array

BINS: Final = 64
"""Equally probable intervals under N(0, 1)."""
_SAMPLE_ELEMENTS: Final = 1 << 20
SUBSET_ELEMENTS: Final = 10_000
"""About how many coordinates a set has (Shejwalkar and Houmansadr, NDSS 2021)."""

_EDGES: Final = np.array([NormalDist().inv_cdf(each / BINS) for each in range(1, BINS)])
# Keep the draws for different ends apart.
_OFFSETS, _SIGNS, _SUBSETS = 0, 1, 2


def draws(seed: int, *, block: int, stream: int, count: int) -> NDArray[np.uint64]:
    """``count`` random words for one block of coordinates."""
    # Raw words: numpy promises that these stay the same from version to version.
    generator = np.random.Philox(
        key=np.array([seed, block], dtype=np.uint64),
        counter=np.array([0, 0, 0, stream], dtype=np.uint64),
    )
    return generator.random_raw(count)


def sign_bits(seed: int, *, block: int, count: int) -> NDArray[np.uint8]:
    """``count`` random bits for one block of coordinates; ``count`` is a multiple of 64."""
    words = draws(seed, block=block, stream=_SIGNS, count=count // 64)
    return np.unpackbits(words.astype("<u8").view(np.uint8))


def rotation(seed: int, *, block: int, length: int) -> int:
    """A random number from 0 to ``length - 1`` for one block of coordinates."""
    (word,) = draws(seed, block=block, stream=_OFFSETS, count=1)
    return int(word) % length


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What a pass samples."""

    indices: NDArray[np.intp]
    """Of the rows that noise was promised for."""
    edges: NDArray[np.float32]
    """Shape ``(len(indices), BINS - 1)``: between which values of these rows the bins are."""
    stride: int
    """One in so many coordinates is counted."""
    subsets: int
    elements: int
    seed: int

    @staticmethod
    def of(
        nodes: Sequence[NodeId],
        noise: Mapping[NodeId, float],
        *,
        elements: int,
        subsets: int,
        seed: int,
    ) -> Samples:
        """The samples of these nodes' rows.

        Raises:
            AggregationError: noise of a node that has no row, or not a positive number.
        """
        if stray := sorted(set(noise) - set(nodes)):
            raise AggregationError(f"noise was promised for {stray[0]}, which has no update")
        for node, std in noise.items():
            if not (math.isfinite(std) and std > 0.0):
                raise AggregationError(
                    f"noise of standard deviation {std} cannot be tested: {node}"
                )
        noisy = [index for index, node in enumerate(nodes) if node in noise]
        scale = np.array([noise[nodes[index]] for index in noisy]).reshape(-1, 1)
        return Samples(
            indices=np.array(noisy, dtype=np.intp),
            edges=(scale * _EDGES).astype(np.float32),
            stride=max(1, -(-elements // _SAMPLE_ELEMENTS)),
            subsets=subsets,
            elements=elements,
            seed=seed,
        )

    def no_bins(self) -> NDArray[np.int64]:
        """Counts before anything is counted."""
        return np.zeros((len(self.indices), BINS), dtype=np.int64)

    def count(self, values: Float32Array, *, group: int) -> NDArray[np.int64]:
        """Count the sampled coordinates of one group, for the rows with noise.

        Every coordinate while there are at most 2^20, otherwise one in ``stride``, from
        an offset that is drawn for each group.
        """
        counts = self.no_bins()
        if not len(counts):
            return counts
        offset = rotation(self.seed, block=group, length=self.stride)
        for row, index in enumerate(self.indices):
            # Sorting first is faster than a search for every value.
            sample = np.sort(values[index, offset :: self.stride])
            below = np.searchsorted(sample, self.edges[row])
            counts[row] = np.diff(below, prepend=0, append=len(sample))
        return counts

    def by_row(self, bins: NDArray[np.int64]) -> dict[int, tuple[int, ...]]:
        """Counts by the index of their row."""
        return {
            int(index): tuple(int(count) for count in counts)
            for index, counts in zip(self.indices, bins, strict=True)
        }


def subset_of(samples: Samples, subset: int, *, group: int, length: int) -> NDArray[np.intp]:
    """Coordinates of one group, counted from its start, that are in a pseudo-random set.

    All of them in a model of at most ``SUBSET_ELEMENTS``; otherwise each group gives its share,
    so that the cost is bounded.
    """
    if samples.elements <= SUBSET_ELEMENTS:
        return np.arange(length, dtype=np.intp)
    share = math.ceil(SUBSET_ELEMENTS * GROUP_ELEMENTS / samples.elements)
    words = draws(samples.seed, block=group, stream=_SUBSETS + subset, count=share)
    # Where the last group is short, what falls behind its end is not in the set.
    chosen = np.unique(words % np.uint64(GROUP_ELEMENTS))
    return chosen[chosen < length].astype(np.intp)
