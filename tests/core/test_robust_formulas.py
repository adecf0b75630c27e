"""Every rule against its formula, written out over coordinates rather than inner products."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from matl_coordinator.core.robust.centres import centered_clipping, geometric_median
from matl_coordinator.core.robust.distances import bulyan, krum, mda, multi_krum
from matl_coordinator.core.robust.gram import Float64Array, PrivacyNoise
from matl_coordinator.core.robust.matl import matl, weighted_median
from matl_coordinator.core.robust.preaggregation import arc, bucketing, nnm
from matl_coordinator.core.robust.rooted import fltrust, zeno_plus_plus
from matl_coordinator.core.robust.similarity import foolsgold
from matl_coordinator.core.robust.spectral import caf, dnc, smea
from tests.core.robust_rows import (
    aggregator,
    carried_out,
    gram_of,
    mean_around_median,
    round_of,
)

SEEDS = range(6)


def rows_of(seed: int, n: int = 11, d: int = 30) -> Float64Array:
    """Updates of several lengths around a common direction, the last three far off."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((n, d)) * generator.uniform(0.5, 2.0, (n, 1)) + 1.0
    rows[-3:] -= 2.5
    return rows


def krum_scores(rows: Float64Array, neighbours: int) -> list[float]:
    return [
        sum(sorted(float((a - b) @ (a - b)) for j, b in enumerate(rows) if j != i)[:neighbours])
        for i, a in enumerate(rows)
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("f", [0, 1, 2, 3, 4])
def test_krum_takes_the_update_and_multi_krum_the_mean_of_those_nearest_their_neighbours(
    seed: int, f: int, extra: int
) -> None:
    rows = rows_of(seed)
    scores = krum_scores(rows, 11 - f - 2 + extra)
    one = carried_out(krum(gram_of(rows), f=f, extra_neighbours=extra), rows)
    np.testing.assert_allclose(one, rows[np.argmin(scores)], atol=1e-12)
    several = carried_out(multi_krum(gram_of(rows), f=f, extra_neighbours=extra), rows)
    np.testing.assert_allclose(several, rows[np.argsort(scores)[: 11 - f]].mean(axis=0), atol=1e-12)


def test_the_number_of_neighbours_decides_whom_krum_takes() -> None:
    # f = 2 of n = 7: three neighbours by the paper, four with one more.
    rows = np.array([[0.0], [1.0], [1.0], [6.0], [9.0], [10.0], [10.0]])
    paper = krum(gram_of(rows), f=2)
    wider = krum(gram_of(rows), f=2, extra_neighbours=1)
    assert np.argmin(krum_scores(rows, 3)) == paper.mixing[0].argmax() == 4
    assert np.argmin(krum_scores(rows, 4)) == wider.mixing[0].argmax() == 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("f", [0, 1, 2])
def test_bulyan_takes_krums_choices_one_by_one_and_averages_around_their_median(
    seed: int, f: int
) -> None:
    rows = rows_of(seed)
    left, chosen = list(range(11)), list[int]()
    while len(chosen) < 11 - 2 * f:
        scores = krum_scores(rows[left], max(1, len(left) - f - 2))
        # Two that are each other's nearest tie where one neighbour counts.
        ties = [i for i, score in enumerate(scores) if np.isclose(score, min(scores))]
        totals = krum_scores(rows[left], len(left))
        chosen.append(left.pop(min(ties, key=lambda i: totals[i])))
    np.testing.assert_allclose(
        carried_out(bulyan(gram_of(rows), f=f), rows),
        mean_around_median(rows[chosen], 11 - 4 * f),
        atol=1e-12,
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("f", [0, 1, 3, 5])
def test_mda_and_smea_take_the_best_of_all_subsets(seed: int, f: int) -> None:
    rows = rows_of(seed)
    subsets = [list(each) for each in combinations(range(11), 11 - f)]

    def diameter(subset: list[int]) -> tuple[float, float]:
        # Subsets with the same farthest pair tie, and then the sum of all distances counts.
        squares = [float(np.sum((rows[i] - rows[j]) ** 2)) for i, j in combinations(subset, 2)]
        return max(squares), sum(squares)

    def spread(subset: list[int]) -> tuple[float, float]:
        apart = rows[subset] - rows[subset].mean(axis=0)
        return float(np.linalg.svd(apart, compute_uv=False)[0]), 0.0

    for rule, measure in ((mda, diameter), (smea, spread)):
        best = min(subsets, key=measure)
        np.testing.assert_allclose(
            carried_out(rule(gram_of(rows), f=f), rows), rows[best].mean(axis=0), atol=1e-12
        )


def caf_by_coordinates(rows: Float64Array, f: int) -> Float64Array:
    n = len(rows)
    c, least = np.ones(n), np.inf
    best: Float64Array = rows.mean(axis=0)
    while c.sum() > n - 2 * f:
        mean = c @ rows / c.sum()
        centred = rows - mean
        _, values, directions = np.linalg.svd(np.sqrt(c / c.sum())[:, None] * centred)
        if values[0] ** 2 < least:
            best, least = mean, values[0] ** 2
        scores = (centred @ directions[0]) ** 2
        c = c * (1 - scores / scores[c > 0].max()).clip(0)
    return best


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("f", [0, 1, 2, 4])
def test_caf_filters_along_the_principal_direction(seed: int, f: int) -> None:
    rows = rows_of(seed)
    np.testing.assert_allclose(
        carried_out(caf(gram_of(rows), f=f), rows), caf_by_coordinates(rows, f), atol=1e-9
    )


@pytest.mark.parametrize("n", [5, 20, 200])
def test_caf_ends_when_most_updates_are_one(n: int) -> None:
    # Inner-product manipulation sends clones; the honest may coincide as well.
    rows = np.tile(np.random.default_rng(n).standard_normal(9), (n, 1))
    f = (n - 1) // 2
    np.testing.assert_allclose(carried_out(caf(gram_of(rows), f=f), rows), rows[0], atol=1e-12)
    rows[:f] = -3.0 * rows[0]
    np.testing.assert_allclose(carried_out(caf(gram_of(rows), f=f), rows), rows[-1], atol=1e-9)


def test_a_distant_update_that_is_out_does_not_shield_others_from_caf() -> None:
    # Nine honest around 0; one so far out that scores divided by its own would be 0.
    rows = np.random.default_rng(0).standard_normal((12, 50)) * 0.1
    rows[9:11, 0] += 30.0
    rows[11] = 1e7
    result = carried_out(caf(gram_of(rows), f=3), rows)
    assert np.linalg.norm(result - rows[:9].mean(axis=0)) < 0.5


def dnc_by_coordinates(rows: Float64Array, columns: list[list[int]], drop: int) -> Float64Array:
    kept = set(range(len(rows)))
    for chosen in columns:
        centred = rows[:, chosen] - rows[:, chosen].mean(axis=0)
        direction = np.linalg.svd(centred)[2][0]
        scores = (centred @ direction) ** 2
        kept &= set(np.argsort(scores)[: len(rows) - drop].tolist())
    result: Float64Array = rows[sorted(kept)].mean(axis=0)
    return result


@pytest.mark.parametrize("seed", SEEDS)
def test_dnc_keeps_what_no_set_of_coordinates_drops(seed: int) -> None:
    rows = rows_of(seed)
    columns = [list(range(15)), list(range(10, 25)), list(range(20, 30))]
    gram = replace(
        gram_of(rows), subsets=tuple(rows[:, each] @ rows[:, each].T for each in columns)
    )
    for iterations, factor, drop in ((3, 1.0, 2), (2, 1.0, 2), (1, 1.5, 3)):
        result = dnc(gram, f=2, iterations=iterations, filter_factor=factor)
        expected = dnc_by_coordinates(rows, columns[:iterations], drop)
        np.testing.assert_allclose(carried_out(result, rows), expected, atol=1e-9)
    whole = dnc(gram_of(rows), f=2)
    np.testing.assert_allclose(
        carried_out(whole, rows), dnc_by_coordinates(rows, [list(range(30))], 2), atol=1e-9
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_geometric_median_is_where_the_weighted_directions_cancel(seed: int) -> None:
    rows = rows_of(seed)
    weights = np.random.default_rng(seed).uniform(0.5, 2.0, 11)
    gram = gram_of(rows, weights=weights.tolist())
    z = carried_out(geometric_median(gram, steps=2000), rows)
    gaps = rows - z
    pull = (weights / np.linalg.norm(gaps, axis=1)) @ gaps
    assert np.linalg.norm(pull) < 1e-6


def test_the_geometric_median_of_a_line_is_its_weighted_median() -> None:
    rows = np.array([[0.0], [1.0], [10.0]])
    middle = geometric_median(gram_of(rows, weights=[1, 1, 1]))
    assert carried_out(middle, rows) == pytest.approx(1.0, abs=1e-3)
    heavy = geometric_median(gram_of(rows, weights=[1, 1, 5]))
    assert carried_out(heavy, rows) == pytest.approx(10.0, abs=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tau", [0.0, 0.7, 1e6])
def test_centred_clipping_steps_from_the_previous_aggregate(seed: int, tau: float) -> None:
    rows = rows_of(seed)
    previous = np.full(30, 0.5)
    gram, everything = round_of(rows, root=np.ones(30), previous=previous)
    for gram_, all_rows, start in (
        (gram, everything, previous),
        (gram_of(rows), rows, np.zeros(30)),
    ):
        v = start
        for _ in range(3):
            gaps = rows - v
            distances = np.linalg.norm(gaps, axis=1)
            radius = tau or float(np.median(distances))
            v = v + (gaps * np.minimum(1.0, radius / distances)[:, None]).mean(axis=0)
        result = carried_out(centered_clipping(gram_, tau=tau, steps=3), all_rows)
        np.testing.assert_allclose(result, v, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rooted_rules_weigh_by_cosine_and_pass_by_descent(seed: int) -> None:
    rows = rows_of(seed)
    root = np.random.default_rng(seed + 100).standard_normal(30) + 0.7
    gram, everything = round_of(rows, root=root, previous=np.zeros(30))
    r = 0.5 * root
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ (r / np.linalg.norm(r))
    trust = np.maximum(cosines, 0.0)
    np.testing.assert_allclose(
        carried_out(fltrust(gram, step=0.5), everything),
        trust @ (unit * np.linalg.norm(r)) / trust.sum(),
        atol=1e-9,
    )
    assert 0 < (cosines < 0.1).sum() < 11
    scaled = unit * np.linalg.norm(r)
    squared = float(r @ r)
    passed = scaled @ r - 0.15 * (scaled * scaled).sum(axis=1) >= -0.05 * squared
    np.testing.assert_allclose(
        carried_out(zeno_plus_plus(gram, rho=0.15, epsilon=0.05, step=0.5), everything),
        scaled[passed].mean(axis=0),
        atol=1e-9,
    )


def foolsgold_by_loops(history: Float64Array, confidence: float) -> Float64Array:
    """The paper's algorithm 1, line by line."""
    n = len(history)
    norms = np.sqrt(np.diagonal(history))
    cs = [[history[i, j] / norms[i] / norms[j] for j in range(n)] for i in range(n)]
    v = [max(0.0, *(cs[i][j] for j in range(n) if j != i)) for i in range(n)]
    alpha = []
    for i in range(n):
        row = [cs[i][j] * (v[i] / v[j] if v[j] > v[i] else 1.0) for j in range(n) if j != i]
        alpha.append(min(1.0, max(0.0, 1.0 - max(row))))
    result = []
    for a in alpha:
        a_scaled = min(a / max(alpha), 0.99)
        if a_scaled == 0:
            result.append(0.0)
            continue
        logit = confidence * (np.log(a_scaled / (1 - a_scaled)) + 0.5)
        result.append(float(np.clip(logit, 0, 1)))
    return np.array(result)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("confidence", [1.0, 0.2])
def test_foolsgold_weighs_by_how_unlike_the_past_updates_are(seed: int, confidence: float) -> None:
    rows = rows_of(seed)
    past = np.random.default_rng(seed).standard_normal((11, 12))
    past[3] = past[4] + 0.3 * past[5]
    sizes = np.arange(1.0, 12.0)
    gram = replace(gram_of(rows, weights=sizes.tolist()), history=past @ past.T)
    weights = sizes * foolsgold_by_loops(past @ past.T, confidence)
    np.testing.assert_allclose(
        carried_out(foolsgold(gram, confidence=confidence), rows),
        weights @ rows / weights.sum(),
        atol=1e-9,
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("f", [0, 1, 3, 5])
def test_nnm_averages_neighbours_and_arc_clips_the_longest(seed: int, f: int) -> None:
    rows = rows_of(seed)
    mixed = nnm(gram_of(rows), f=f) @ rows
    for index, row in enumerate(rows):
        nearest = np.argsort(np.linalg.norm(rows - row, axis=1))[: 11 - f]
        np.testing.assert_allclose(mixed[index], rows[nearest].mean(axis=0), atol=1e-12)
    norms = np.linalg.norm(rows, axis=1)
    count = (2 * f * (11 - f)) // 11
    bound = np.sort(norms)[11 - count - 1]
    clipped = rows * np.minimum(1.0, bound / norms)[:, None]
    np.testing.assert_allclose(arc(gram_of(rows), f=f) @ rows, clipped, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 11, 20])
def test_buckets_hold_every_update_once_and_are_drawn_anew(size: int) -> None:
    rows = rows_of(0)
    mixing = bucketing(gram_of(rows), size=size, seed=3)
    assert mixing.shape[0] == -(-11 // size)
    assert ((mixing > 0).sum(axis=0) == 1).all()
    np.testing.assert_allclose(mixing.sum(axis=1), 1.0)
    members = (mixing > 0).sum(axis=1)
    assert (members[:-1] == size).all() or len(members) == 1
    if 1 < size < 11:
        other = [bucketing(gram_of(rows), size=size, seed=seed) for seed in range(4, 9)]
        assert any((each != mixing).any() for each in other)
        # Another round, whose norms differ, is drawn otherwise.
        assert any(
            (bucketing(gram_of(rows * scale), size=size, seed=3) != mixing).any()
            for scale in (1.1, 1.2, 1.3)
        )
    np.testing.assert_array_equal(bucketing(gram_of(rows), size=size, seed=3), mixing)


def matl_by_coordinates(
    rows: Float64Array, weights: Float64Array, bounds: Float64Array, *, steps: int, tau: float
) -> Float64Array:
    shares = weights / weights.sum()
    norms = np.linalg.norm(rows, axis=1)
    x = rows * np.minimum(1.0, bounds / norms)[:, None]
    distances = np.linalg.norm(x[:, None] - x[None, :], axis=2)
    counted = [i for i in range(len(x)) if shares[i] > 0]
    medoid = min(counted, key=lambda i: float(shares @ distances[i]))
    chosen, held = [], 0.0
    for i in sorted(counted, key=lambda i: float(distances[medoid, i])):
        chosen.append(i)
        held += shares[i]
        if held > 0.5:
            break
    v = shares[chosen] @ x[chosen] / shares[chosen].sum()
    floor = 1e-6 * np.median(np.linalg.norm(x - v, axis=1)[counted])
    for _ in range(steps):
        pull = shares / np.maximum(floor, np.linalg.norm(x - v, axis=1))
        v = pull @ x / pull.sum()
    gaps = np.linalg.norm(x - v, axis=1)
    radius = tau * max(weighted_median(gaps, shares), np.median(gaps[counted]))
    result: Float64Array = v + (shares * np.minimum(1.0, radius / gaps)) @ (x - v)
    return result


@pytest.mark.parametrize("seed", SEEDS)
def test_matls_rule_clips_centres_and_steps(seed: int) -> None:
    rows = rows_of(seed)
    rows[0] *= 6.0
    weights = np.random.default_rng(seed).uniform(0.5, 2.0, 11)
    weights[3] = 0.0
    median = np.median(np.linalg.norm(rows, axis=1)[weights > 0])
    for clip, steps, tau in ((1.5, 5, 2.0), (1.0, 1, 0.5), (3.0, 9, 1.0)):
        expected = matl_by_coordinates(
            rows, weights, np.full(11, clip * median), steps=steps, tau=tau
        )
        plan = matl(gram_of(rows, weights=weights.tolist()), clip=clip, steps=steps, tau=tau)
        assert plan.mixing[0, 3] == 0.0
        np.testing.assert_allclose(carried_out(plan, rows), expected, atol=1e-9)


@pytest.mark.parametrize("largest", [2.0, 3.0, 30.0])
def test_matls_rule_lets_the_others_count_beside_one_that_holds_half_the_weight(
    largest: float,
) -> None:
    rows = np.eye(3, 5) + 0.5
    weights = [largest, 1.0, 1.0]
    plan = matl(gram_of(rows, weights=weights))
    # Nobody is far from the others, so nobody is clipped: the mean by weight.
    np.testing.assert_allclose(plan.mixing[0], np.array(weights) / sum(weights), atol=1e-9)


def test_matls_rule_bounds_what_is_far_from_one_that_holds_half_the_weight() -> None:
    rows = np.vstack([np.eye(3, 5) + 0.5, -60.0 * np.ones((1, 5))])
    plan = matl(gram_of(rows, weights=[3.0, 1.0, 1.0, 1.0]), clip=1e9)
    far = np.linalg.norm(carried_out(plan, rows) - rows[0])
    honest = max(np.linalg.norm(rows[0] - row) for row in rows[1:3])
    assert far <= (2.0 / 6.0) * honest + (1.0 / 6.0) * 2.0 * honest + 1e-9


def test_matls_rule_allows_each_hospital_the_length_of_its_own_noise() -> None:
    generator = np.random.default_rng(5)
    d, signal = 400, np.zeros(400)
    signal[0] = 0.5
    std = np.array([0.01, 0.01, 0.01, 0.02, 0.04, 0.1])
    rows = signal + std[:, None] * generator.standard_normal((6, d))
    # The first lies about its length: far above what its noise and a signal can give.
    rows[0] *= 10.0
    weights = np.ones(6)
    noise = PrivacyNoise(std, signal_bound=1.0)
    gram = replace(gram_of(rows), noise=noise)
    left = np.median((rows**2).sum(axis=1) - d * std**2)
    bounds = np.sqrt(np.minimum(1.5**2 * left, 1.0) + d * std**2)
    expected = matl_by_coordinates(rows, weights, bounds, steps=5, tau=2.0)
    np.testing.assert_allclose(carried_out(matl(gram), rows), expected, atol=1e-9)
    # By its length alone the last would be scaled to half; by its noise it hardly is.
    norms = np.linalg.norm(rows, axis=1)
    assert 1.5 * np.median(norms) < 0.6 * norms[5]
    assert bounds[5] > 0.9 * norms[5]
    assert bounds[0] < 0.25 * norms[0]


def test_matls_rule_does_not_trim_by_distance_where_noise_dominates() -> None:
    generator = np.random.default_rng(6)
    std = np.full(8, 0.2)
    rows = np.full(400, 0.01) + 0.2 * generator.standard_normal((8, 400))
    weights = np.arange(1.0, 9.0)
    loud = replace(gram_of(rows, weights=weights.tolist()), noise=PrivacyNoise(std, 3.9))
    mixing = matl(loud).mixing[0]
    np.testing.assert_allclose(mixing, weights / weights.sum(), rtol=0.1)
    # Just below the bound it trims: the centre is the geometric median, not the mean.
    quiet = replace(gram_of(rows, weights=weights.tolist()), noise=PrivacyNoise(std, 4.1))
    assert not np.allclose(matl(quiet, tau=0.5).mixing, matl(loud, tau=0.5).mixing, rtol=1e-3)


def test_weight_zero_does_not_count_for_where_noise_dominates() -> None:
    rows = np.random.default_rng(7).standard_normal((7, 100)) * np.arange(1.0, 8.0)[:, None]
    std = np.array([0.1, 0.1, 0.1, 9.0, 9.0, 9.0, 9.0])
    noise = PrivacyNoise(std, signal_bound=5.0)
    gram = replace(gram_of(rows, weights=[1, 1, 1, 0, 0, 0, 0]), noise=noise)
    only = replace(gram_of(rows[:3]), noise=PrivacyNoise(std[:3], signal_bound=5.0))
    counted = matl(gram, tau=0.2).mixing[0, :3]
    np.testing.assert_allclose(counted, matl(only, tau=0.2).mixing[0], atol=1e-12)
    assert not np.allclose(counted / counted.sum(), 1.0 / 3.0, atol=1e-3)


def test_matls_rule_lets_no_signal_pass_that_training_cannot_give() -> None:
    rows = np.random.default_rng(8).standard_normal((5, 100))
    gram = replace(gram_of(rows), noise=PrivacyNoise(np.full(5, 0.001), signal_bound=0.1))
    scales = 0.1 / np.linalg.norm(rows, axis=1)
    direct = matl(gram_of(scales[:, None] * rows))
    np.testing.assert_allclose(matl(gram).mixing[0], direct.mixing[0] * scales, rtol=0.02)


def test_matls_rule_bears_updates_shorter_than_the_noise_promised() -> None:
    rows = 1e-3 * np.random.default_rng(9).standard_normal((5, 100))
    gram = replace(gram_of(rows), noise=PrivacyNoise(np.full(5, 0.1), signal_bound=0.5))
    np.testing.assert_allclose(carried_out(matl(gram), rows), rows.mean(axis=0), atol=1e-9)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [1.0, 2.0], [5.0]])
def test_the_weighted_median_holds_half_of_the_weight_at_or_below_it(values: list[float]) -> None:
    array = np.array(values)
    for weights in ([1.0] * len(values), [0.2, 0.7, 0.1][: len(values)]):
        shares = np.array(weights)
        result = weighted_median(array, shares)
        at_or_below = shares[array <= result].sum()
        below = shares[array < result].sum()
        assert at_or_below >= 0.5 * shares.sum() - 1e-9 > below - 1e-9
        assert result in values


@pytest.mark.parametrize(
    "names", [("nnm", "geometric_median"), ("arc", "coordinate_median"), ("nnm", "trimmed_mean")]
)
def test_a_pre_aggregation_comes_before_the_rule(names: tuple[str, str]) -> None:
    pre, rule = names
    rows = rows_of(2)
    mixing: Callable[..., Float64Array] = {"nnm": nnm, "arc": arc}[pre]
    mixed = mixing(gram_of(rows), f=3) @ rows
    together = aggregator(rule, pre, f=3)
    np.testing.assert_allclose(
        carried_out(together(gram_of(rows)), rows),
        carried_out(aggregator(rule, f=3)(gram_of(mixed)), mixed),
        atol=1e-9,
    )


def test_pre_aggregations_are_applied_in_the_order_given() -> None:
    rows = rows_of(3) * np.linspace(1.0, 9.0, 11)[:, None]
    both = aggregator("weighted_mean", "arc", "nnm", f=3)
    clipped = arc(gram_of(rows), f=3) @ rows
    mixed = nnm(gram_of(clipped), f=3) @ clipped
    np.testing.assert_allclose(
        carried_out(both(gram_of(rows)), rows), mixed.mean(axis=0), atol=1e-9
    )
    other = aggregator("weighted_mean", "nnm", "arc", f=3)
    assert not np.allclose(carried_out(other(gram_of(rows)), rows), mixed.mean(axis=0), atol=1e-3)
