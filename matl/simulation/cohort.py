"""Who has which images: hospitals, holdout set, public images and test set of one split.

Every part is disjoint from every other. The same study and seed give the same split.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from matl.simulation.datasets import DataSet, Float32Array, Images, Labels, Part
from matl.simulation.study import NO_ATTACK, Mix, Study
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId

_PUBLIC_IMAGES: Final = {DataSet.DIGITS: 100}
_USUAL_PUBLIC_IMAGES: Final = 2000
_SITE_TEST_IMAGES: Final = 200
_NO_SITE: Final = -1

Indices = NDArray[np.int64]


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """One split. Hospitals are numbered; arrays are indexed by that number."""

    nodes: tuple[NodeId, ...]
    members: tuple[Indices, ...]
    """Rows of ``values`` that each hospital owns."""
    hostile: NDArray[np.bool_]
    patients: tuple[int, ...]
    """As enrolled. A hospital that owns fewer images than that stands for it: its images then
    count several times over, against the noise of so many patients."""
    label_shares: tuple[tuple[float, ...], ...]
    """The true label histogram of each hospital, as shares."""
    values: Float32Array
    labels: Labels
    true_labels: Labels
    """As ``labels`` before anybody poisoned them."""
    root_values: Float32Array
    root_labels: Labels
    public_values: Float32Array
    test_values: Float32Array
    test_labels: Labels
    site_tests: tuple[Indices, ...]
    """Rows of ``values`` that nobody owns, site by site; empty where none were kept."""
    classes: int
    ordered: bool


def split_images(images: Images, study: Study, *, seed: int) -> Cohort:
    """Deal the images of one study out; nobody is hostile yet.

    Raises:
        ConfigurationError: the set has too few images for it, or no sites.
    """
    # Of the mix's name its length: Dirichlet mixes draw from one stream, an even one from another.
    rng = np.random.default_rng([2026, seed, study.members, len(study.mix_name)])
    site_tests: tuple[Indices, ...] = ()
    if study.data.holdout_sites:
        images, site_tests = _of_sites(images, study, rng)
    root_values, root_labels, rest = _root(images, study, rng)
    public_values, rest = _public(images, study, rest)
    patients = _patients(study, rng)
    members = _deal(images, study, rest, patients, rng)
    return Cohort(
        nodes=study.nodes,
        members=members,
        hostile=np.zeros(study.members, dtype=np.bool_),
        patients=patients,
        label_shares=tuple(_shares(images.labels[rows], images.classes) for rows in members),
        values=images.values,
        labels=images.labels,
        true_labels=images.labels,
        root_values=root_values,
        root_labels=root_labels,
        public_values=public_values,
        test_values=images.test_values,
        test_labels=images.test_labels,
        site_tests=site_tests,
        classes=images.classes,
        ordered=images.ordered,
    )


def _root(
    images: Images, study: Study, rng: np.random.Generator
) -> tuple[Float32Array, Labels, Indices]:
    """The coordinator's images, balanced over the classes, and the rows that are left."""
    own = images.holdout
    values, labels = (images.values, images.labels) if own is None else (own.values, own.labels)
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in range(images.classes)]
    per_class = study.data.holdout_images // images.classes
    if min(len(pool) for pool in pools) < per_class:
        raise ConfigurationError(
            f"data.holdout_images is {study.data.holdout_images}, and a class has only "
            f"{min(len(pool) for pool in pools)} images for its {per_class}"
        )
    # Interleaves the classes, so that every part of the root set is balanced too.
    root = np.stack([pool[:per_class] for pool in pools]).T.ravel()
    rest = (
        rng.permutation(np.concatenate([pool[per_class:] for pool in pools]))
        if own is None
        else rng.permutation(len(images.labels))
    )
    return values[root], labels[root], rest


def _of_sites(
    images: Images, study: Study, rng: np.random.Generator
) -> tuple[Images, tuple[Indices, ...]]:
    """The images with a holdout set from some sites alone, and rows of each site kept for testing.

    What is taken belongs to no site any more, so that no hospital owns it.
    """
    if images.sites is None:
        raise ConfigurationError(
            "data.holdout_sites: the data set does not say which site is whose"
        )
    sites = images.sites.copy()
    kept = []
    for number in range(study.members):
        rows = rng.permutation(np.flatnonzero(sites == number))[:_SITE_TEST_IMAGES]
        sites[rows] = _NO_SITE
        kept.append(rows)
    pool = rng.permutation(np.flatnonzero(np.isin(sites, study.data.holdout_sites)))
    per_class = study.data.holdout_images // images.classes
    held = np.concatenate(
        [pool[images.labels[pool] == label][:per_class] for label in range(images.classes)]
    )
    sites[held] = _NO_SITE
    holdout = Part(images.values[held], images.labels[held])
    return replace(images, sites=sites, holdout=holdout), tuple(kept)


def _public(images: Images, study: Study, rest: Indices) -> tuple[Float32Array, Indices]:
    if images.public is not None:
        return images.public.values, rest
    count = study.data.public_images or _PUBLIC_IMAGES.get(
        DataSet(study.data.set) if study.data.set in set(DataSet) else DataSet.FASHION,
        _USUAL_PUBLIC_IMAGES,
    )
    if count >= len(rest):
        raise ConfigurationError(
            f"data.public_images is {count}, and {len(rest)} images are left for hospitals too"
        )
    return images.values[rest[:count]], rest[count:]


def _patients(study: Study, rng: np.random.Generator) -> tuple[int, ...]:
    if study.hospitals.patients:
        return study.hospitals.patients
    low, high = study.hospitals.between
    return tuple(int(size) for size in rng.integers(low // 10, high // 10, study.members) * 10)


def _deal(
    images: Images,
    study: Study,
    rest: Indices,
    patients: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[Indices, ...]:
    if study.mix is Mix.SITES:
        return _by_site(images, study.members, patients, rng)
    owned = _scaled_to(patients, len(rest))
    if study.mix is Mix.IID:
        return tuple(np.split(rest, np.cumsum(owned))[: len(owned)])
    pools = [list(rest[images.labels[rest] == label]) for label in range(images.classes)]
    dealt: list[Indices] = [np.empty(0, dtype=np.int64)] * len(owned)
    # In random order: the last ones get what is left, and should not be always the same.
    for number in rng.permutation(len(owned)):
        shares = rng.dirichlet([study.hospitals.alpha] * images.classes)
        dealt[number] = _draw(pools, shares, owned[number], rng)
    return tuple(dealt)


def _by_site(
    images: Images, members: int, patients: tuple[int, ...], rng: np.random.Generator
) -> tuple[Indices, ...]:
    """A bootstrap of each site's patients: how much a result depends on who happened to come."""
    if images.sites is None:
        raise ConfigurationError("hospitals.by_site: the data set does not say which site is whose")
    found = []
    for number in range(members):
        rows = np.flatnonzero(images.sites == number)
        if not len(rows):
            raise ConfigurationError(f"hospitals.by_site: the data set has no site {number}")
        found.append(rng.choice(rows, size=min(patients[number], len(rows)), replace=True))
    return tuple(found)


def _scaled_to(patients: tuple[int, ...], available: int) -> list[int]:
    """How many images each hospital owns: as enrolled where there are enough."""
    factor = min(1.0, available / sum(patients))
    owned = [int(size * factor) for size in patients]
    if min(owned) < 1:
        raise ConfigurationError(f"{available} images are too few for {len(patients)} hospitals")
    return owned


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


def hostile_of(study: Study, *, seed: int) -> NDArray[np.bool_]:
    """Who attacks; with a larger share the same ones and others do."""
    hostile = np.zeros(study.members, dtype=np.bool_)
    if study.hostile.attack == NO_ATTACK:
        return hostile
    if study.hostile.hospitals:
        hostile[[study.nodes.index(NodeId(name)) for name in study.hostile.hospitals]] = True
        return hostile
    order = np.random.default_rng([2026, seed, study.members, 1]).permutation(study.members)
    hostile[order[: study.hostile_count]] = True
    return hostile


def _shares(labels: Labels, classes: int) -> tuple[float, ...]:
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(count) for count in counts / counts.sum())
