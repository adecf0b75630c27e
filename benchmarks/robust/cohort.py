"""Who has which images: hospitals, root set, public images and test set of one split.

Every part is disjoint from every other. The same setting and seed give the same split.
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle, islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.robust.datasets import CLASSES, DataSet, Float32Array, Images, Labels
from matl_common.ids import NodeId

ROOT_IMAGES: Final = 500
PUBLIC_IMAGES: Final = {DataSet.DIGITS: 100, DataSet.FASHION: 2000}

_LARGE_MEMBERS: Final = 20
_UNEVEN_SHARES: Final = (10, 5, 3, 2, 1)
_UNEVEN_PATIENTS: Final = 21_000
_EVEN_PATIENTS: Final = (2000, 3000)

Indices = NDArray[np.int64]


class Mix(StrEnum):
    """How the classes are spread over the hospitals."""

    IID = "iid"
    DIRICHLET = "dirichlet-0.5"
    """Each hospital's class shares are drawn from a Dirichlet distribution with α = 0.5."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One federation to attack."""

    data_set: DataSet
    members: int
    byzantine: int
    mix: Mix
    private: bool
    """ε = 1 over the whole study by the ``head`` recipe; otherwise no noise."""
    seed: int

    @property
    def name(self) -> str:
        """As in ``fashion/n20f9/iid/eps1/seed0``."""
        privacy = "eps1" if self.private else "no-dp"
        return (
            f"{self.data_set}/n{self.members}f{self.byzantine}/{self.mix}/{privacy}/seed{self.seed}"
        )


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """One split. Hospitals are numbered; arrays are indexed by that number."""

    nodes: tuple[NodeId, ...]
    members: tuple[Indices, ...]
    """Rows of ``values`` that each hospital owns."""
    hostile: NDArray[np.bool_]
    patients: tuple[int, ...]
    """As enrolled. On digits, whose hospitals own some 40 images, the size that each stands
    for: its images then count several times over, against the noise of so many patients."""
    label_shares: tuple[tuple[float, ...], ...]
    """The true label histogram of each hospital, as shares."""
    values: Float32Array
    labels: Labels
    root_values: Float32Array
    root_labels: Labels
    public_values: Float32Array
    test_values: Float32Array
    test_labels: Labels


def split_images(images: Images, setting: Setting) -> Cohort:
    """Deal the images of one setting out."""
    rng = np.random.default_rng([2026, setting.seed, setting.members, len(setting.mix)])
    pools = [rng.permutation(np.flatnonzero(images.labels == label)) for label in range(CLASSES)]
    per_class = ROOT_IMAGES // CLASSES
    root = np.concatenate([pool[:per_class] for pool in pools])
    rest = rng.permutation(np.concatenate([pool[per_class:] for pool in pools]))
    public_count = PUBLIC_IMAGES[setting.data_set]
    public, rest = rest[:public_count], rest[public_count:]
    patients = _patients(setting.members, rng)
    owned = _scaled_to(patients, len(rest))
    members = _deal(images.labels, rest, owned, mix=setting.mix, rng=rng)
    hostile = np.zeros(setting.members, dtype=np.bool_)
    hostile[rng.choice(setting.members, setting.byzantine, replace=False)] = True
    # Interleaves the classes, so that every part of the root set is balanced too.
    root = root.reshape(CLASSES, per_class).T.ravel()
    return Cohort(
        nodes=tuple(NodeId(f"hospital_{number:02d}") for number in range(setting.members)),
        members=members,
        hostile=hostile,
        patients=patients,
        label_shares=tuple(_shares(images.labels[rows]) for rows in members),
        values=images.values,
        labels=images.labels,
        root_values=images.values[root],
        root_labels=images.labels[root],
        public_values=images.values[public],
        test_values=images.test_values,
        test_labels=images.test_labels,
    )


def _patients(members: int, rng: np.random.Generator) -> tuple[int, ...]:
    if members >= _LARGE_MEMBERS:
        low, high = _EVEN_PATIENTS
        return tuple(int(size) for size in rng.integers(low // 10, high // 10, members) * 10)
    shares = list(islice(cycle(_UNEVEN_SHARES), members))
    return tuple(_UNEVEN_PATIENTS * share // sum(shares) for share in shares)


def _scaled_to(patients: tuple[int, ...], available: int) -> list[int]:
    """How many images each hospital owns: as enrolled where there are enough."""
    factor = min(1.0, available / sum(patients))
    return [int(size * factor) for size in patients]


def _deal(
    labels: Labels, rest: Indices, owned: list[int], *, mix: Mix, rng: np.random.Generator
) -> tuple[Indices, ...]:
    if mix is Mix.IID:
        return tuple(np.split(rest, np.cumsum(owned))[: len(owned)])
    pools = [list(rest[labels[rest] == label]) for label in range(CLASSES)]
    dealt: list[Indices] = [np.empty(0, dtype=np.int64)] * len(owned)
    # In random order: the last ones get what is left, and should not be always the same.
    for number in rng.permutation(len(owned)):
        shares = rng.dirichlet([0.5] * CLASSES)
        dealt[number] = _draw(pools, shares, owned[number], rng)
    return tuple(dealt)


def _draw(
    pools: list[list[np.int64]], shares: NDArray[np.float64], count: int, rng: np.random.Generator
) -> Indices:
    """Take ``count`` rows by class shares; a class that runs out is replaced by the others."""
    taken: list[np.int64] = []
    while len(taken) < count:
        left = np.array([len(pool) for pool in pools])
        # The floor lets a hospital whose classes have all run out go on.
        wanted = np.where(left > 0, shares + 1e-6, 0.0)
        draws = rng.multinomial(count - len(taken), wanted / wanted.sum())
        for pool, draw in zip(pools, draws, strict=True):
            taken.extend(pool[: int(draw)])
            del pool[: int(draw)]
    return np.array(taken, dtype=np.int64)


def _shares(labels: Labels) -> tuple[float, ...]:
    counts = np.bincount(labels, minlength=CLASSES)
    return tuple(float(count) for count in counts / counts.sum())
