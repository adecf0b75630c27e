import math
from dataclasses import replace

import numpy as np
import pytest

from matl_common.ids import NodeId
from matl_coordinator.core.robust.gram import Float64Array, Gram, PrivacyNoise
from matl_coordinator.core.sybil import clusters_of

NODES = tuple(NodeId(f"h{number:02d}") for number in range(20))


def gram_of(rows: Float64Array) -> Gram:
    return Gram.of(dict(zip(NODES, rows, strict=False)))


def hospitals(n: int, *, spread: float, elements: int = 300, seed: int = 0) -> Float64Array:
    generator = np.random.default_rng(seed)
    common = generator.normal(size=elements)
    return common + spread * generator.normal(size=(n, elements))


def test_clones_are_one_cluster_and_the_hospitals_they_copy_are_in_it() -> None:
    rows = hospitals(20, spread=1.0)
    generator = np.random.default_rng(1)
    for copy in range(11, 20):
        rows[copy] = rows[3] * (1 + 1e-3 * generator.normal(size=rows.shape[1]))
    assert clusters_of(gram_of(rows), f=9) == (frozenset({NODES[3], *NODES[11:]}),)


@pytest.mark.parametrize("spread", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize(("n", "f"), [(5, 2), (20, 9), (5, 1), (3, 0)])
def test_honest_hospitals_of_one_mind_are_no_clones(spread: float, n: int, f: int) -> None:
    rows = hospitals(n, spread=spread)
    assert clusters_of(gram_of(rows), f=f) == ()
    # Nor when the hostile ones all point elsewhere.
    rows[n - f :] *= -1
    assert clusters_of(gram_of(rows), f=f) == ()


def test_two_copies_of_one_of_five_are_found() -> None:
    rows = hospitals(5, spread=0.2)
    rows[3] = rows[4] = rows[0]
    assert clusters_of(gram_of(rows), f=2) == (frozenset({NODES[0], NODES[3], NODES[4]}),)


def test_clusters_are_the_same_whatever_the_order() -> None:
    rows = hospitals(8, spread=1.0)
    step = np.random.default_rng(2).normal(size=rows.shape[1]) * 0.05
    rows[6], rows[7] = rows[0] + step, rows[0] + 2 * step
    rows[5] = rows[1] * 3
    expected = (frozenset({NODES[0], NODES[6], NODES[7]}), frozenset({NODES[1], NODES[5]}))
    gram = gram_of(rows)
    assert clusters_of(gram, f=3) == expected
    assert clusters_of(gram.select(NODES[7::-1]), f=3) == expected


def test_a_chain_of_likeness_is_no_cluster() -> None:
    rows = hospitals(8, spread=1.0)
    generator = np.random.default_rng(2)
    # .99 from one to the next, .96 between the ends; 3 and 4 are nearer still.
    step = 0.2 * generator.normal(size=(2, rows.shape[1]))
    rows[6], rows[7] = rows[0] + step[0], rows[0] - step[0]
    rows[4] = rows[3]
    found = clusters_of(gram_of(rows), f=3)
    assert frozenset({NODES[3], NODES[4]}) in found
    assert {len(cluster & {NODES[0], NODES[6], NODES[7]}) for cluster in found} == {0, 2}


@pytest.mark.parametrize(("near", "expected"), [(0, {1, 0}), (2, {1, 2})])
def test_the_closest_pair_of_a_chain_is_the_cluster(near: int, expected: set[int]) -> None:
    rows = np.zeros((7, 8))
    rows[np.arange(3, 7), np.arange(3, 7)] = 1.0
    rows[:3, :2] = [[1.0, 0.15], [1.0, 0.0], [1.0, -0.15]]
    rows[near, 1] *= 0.8
    cluster = frozenset(NODES[index] for index in expected)
    assert clusters_of(gram_of(rows), f=2) == (cluster,)


def test_of_two_pairs_as_close_the_one_first_by_name_is_the_cluster_in_whatever_order() -> None:
    rows = np.zeros((7, 8))
    rows[np.arange(3, 7), np.arange(3, 7)] = 1.0
    rows[:3, :2] = [[1.0, 0.15], [1.0, 0.0], [1.0, -0.15]]
    gram = gram_of(rows)
    expected = (frozenset({NODES[0], NODES[1]}),)
    assert clusters_of(gram, f=2) == expected
    assert clusters_of(gram.select(NODES[6::-1]), f=2) == expected


def test_a_hub_is_in_no_cluster_of_honest_hospitals_but_hubs_are_clones_of_each_other() -> None:
    generator = np.random.default_rng(5)
    honest = 0.3 + 0.4 * generator.normal(size=(10, 2000))
    mean = honest.mean(axis=0)
    one = np.concatenate([honest, mean[None]])
    assert clusters_of(noisy(one, std=0.4, signal=1e6), f=3) == ()
    several = np.concatenate([honest, mean + 0.01 * generator.normal(size=(3, 2000))])
    expected = (frozenset(NODES[10:13]),)
    assert clusters_of(noisy(several, std=0.4, signal=1e6), f=3) == expected


def test_two_accomplices_unlike_each_other_do_not_hide_a_cluster() -> None:
    rows = hospitals(12, spread=1.0)
    for copy in range(7, 12):
        rows[copy] = rows[3]
    step = 0.2 * np.random.default_rng(3).normal(size=rows.shape[1])
    rows[10], rows[11] = rows[3] + step, rows[3] - step
    (found,) = clusters_of(gram_of(rows), f=5)
    assert found >= {NODES[3], *NODES[7:10]}


def noisy(rows: Float64Array, *, std: float, signal: float) -> Gram:
    return replace(gram_of(rows), noise=PrivacyNoise(np.full(len(rows), std), signal_bound=signal))


def test_behind_privacy_noise_honest_updates_are_never_clones_and_copies_always() -> None:
    generator = np.random.default_rng(4)
    for trial in range(200):
        signal = np.ones(165) * 0.5
        rows = signal + 0.4 * generator.normal(size=(6, 165))
        assert clusters_of(noisy(rows, std=0.4, signal=32.0), f=2, steps=4) == (), trial
        rows[5] = rows[4] + 0.01 * generator.normal(size=165)
        assert clusters_of(noisy(rows, std=0.4, signal=32.0), f=2, steps=4) == (
            frozenset({NODES[4], NODES[5]}),
        )


def test_only_the_last_steps_noise_is_sure_to_differ() -> None:
    generator = np.random.default_rng(4)
    std, steps = 0.4, 4
    shared = generator.normal(size=2000)
    last = generator.normal(size=(2, 2000)) * std / math.sqrt(steps)
    rows = np.concatenate([shared + last, generator.normal(size=(2, 2000))])
    assert clusters_of(noisy(rows, std=std, signal=1e6), f=1, steps=steps) == ()
    assert clusters_of(noisy(rows, std=std, signal=1e6), f=1, steps=1) != ()


def test_where_noise_dominates_a_scaled_copy_is_found_by_its_direction() -> None:
    generator = np.random.default_rng(7)
    rows = generator.normal(size=(5, 10_000))
    rows[4] = 3.0 * rows[3] + generator.normal(size=10_000)
    # cos .95, far apart; independent noise allows .07 at most.
    assert clusters_of(noisy(rows, std=1.0, signal=1.0), f=2, steps=4) == (
        frozenset({NODES[3], NODES[4]}),
    )


def test_a_round_of_one_or_none_or_of_zeros_has_no_clones() -> None:
    assert clusters_of(gram_of(np.ones((1, 3))), f=0) == ()
    assert clusters_of(gram_of(np.ones((1, 3))).select([]), f=0) == ()
    assert clusters_of(gram_of(np.zeros((3, 3))), f=1) == ()
