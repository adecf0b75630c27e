"""Our rules against ByzFL 0.0.11 (github.com/LPD-EPFL/byzfl), a second implementation.

Where the two differ by definition, the difference is shown rather than tolerated.
"""

from collections.abc import Callable
from itertools import combinations
from math import ceil

import numpy as np
import pytest

from matl_coordinator.core.robust.centres import centered_clipping, geometric_median, weiszfeld
from matl_coordinator.core.robust.coordinatewise import coordinate_median, meamed, trimmed_mean
from matl_coordinator.core.robust.distances import krum, mda, multi_krum
from matl_coordinator.core.robust.gram import Float64Array, Gram
from matl_coordinator.core.robust.means import weighted_mean
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.preaggregation import arc, bucketing, clip_to_median_norm, nnm
from matl_coordinator.core.robust.rules import compose
from matl_coordinator.core.robust.spectral import caf, smea
from tests.core.robust_rows import carried_out, gram_of, round_of

byzfl = pytest.importorskip("byzfl", reason="the dev extra has byzfl")
pytestmark = pytest.mark.peers

N, D = 11, 2003
SEEDS = range(4)
Theirs = Callable[[Float64Array], Float64Array]


def rows_of(seed: int, n: int = N, d: int = D) -> Float64Array:
    """Updates of several lengths, the last three hostile."""
    generator = np.random.default_rng(seed)
    rows = 0.3 + generator.uniform(0.5, 1.5, (n, 1)) * generator.standard_normal((n, d))
    rows[-3:] -= 0.8
    return rows


def agree(ours: Float64Array, theirs: Float64Array) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("f", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda gram, _: weighted_mean(gram), lambda _: byzfl.Average()),
        (lambda gram, f: coordinate_median(gram, f=f), lambda _: byzfl.Median()),
        (lambda gram, f: trimmed_mean(gram, f=f), lambda f: byzfl.TrMean(f=f)),
        (lambda gram, f: meamed(gram, f=f), lambda f: byzfl.Meamed(f=f)),
        (lambda gram, f: krum(gram, f=f, extra_neighbours=1), lambda f: byzfl.Krum(f=f)),
        (lambda gram, f: multi_krum(gram, f=f, extra_neighbours=1), lambda f: byzfl.MultiKrum(f=f)),
        (lambda gram, f: mda(gram, f=f), lambda f: byzfl.MDA(f=f)),
    ],
    ids=["mean", "median", "trimmed_mean", "meamed", "krum", "multi_krum", "mda"],
)
def test_rules_give_the_same(
    seed: int, f: int, ours: Callable[[Gram, int], Plan], theirs: Callable[[int], Theirs]
) -> None:
    rows = rows_of(seed)
    agree(carried_out(ours(gram_of(rows), f), rows), theirs(f)(rows.copy()))


def test_krum_counts_one_neighbour_more_there_than_in_the_paper() -> None:
    rows = np.array([[0.0], [1.0], [1.0], [6.0], [9.0], [10.0], [10.0]])
    theirs = byzfl.Krum(f=2)(rows.copy())
    assert carried_out(krum(gram_of(rows), f=2, extra_neighbours=1), rows) == theirs == 6.0
    assert carried_out(krum(gram_of(rows), f=2), rows) == pytest.approx(9.0)
    # And it runs where the paper's proof does not hold: n = 2f + 1.
    assert byzfl.Krum(f=3)(rows.copy()).shape == (1,)


def test_subsets_with_the_same_farthest_pair_tie_and_theirs_takes_the_first() -> None:
    rows = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5], [0.0, -1.4]])
    compact = rows[[0, 1, 3]].mean(axis=0)
    for order in ([0, 1, 2, 3], [0, 1, 3, 2]):
        agree(carried_out(mda(gram_of(rows[order]), f=1), rows[order]), compact)
    agree(byzfl.MDA(f=1)(rows.copy()), rows[[0, 1, 2]].mean(axis=0))
    agree(byzfl.MDA(f=1)(rows[[0, 1, 3, 2]]), compact)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_geometric_median_takes_the_same_steps_and_ends_in_the_same_place(seed: int) -> None:
    rows = rows_of(seed)
    gram, shares = gram_of(rows), np.full(N, 1.0 / N)
    # Theirs takes few steps, from 0, with a fixed smoothing.
    ours = weiszfeld(gram, shares, start=np.zeros(N), steps=3, floor=0.1)
    agree(ours @ rows, byzfl.GeometricMedian(nu=0.1, T=3)(rows.copy()))
    converged = carried_out(geometric_median(gram, steps=1000), rows)
    agree(converged, byzfl.GeometricMedian(nu=1e-6, T=1000)(rows.copy()))


def test_three_steps_from_zero_are_not_yet_the_geometric_median() -> None:
    rows = rows_of(0) + 20.0
    theirs = byzfl.GeometricMedian()(rows.copy())
    ours = carried_out(geometric_median(gram_of(rows)), rows)

    def total(z: Float64Array) -> float:
        return float(np.linalg.norm(rows - z, axis=1).sum())

    assert total(ours) <= total(theirs)
    # Ours moves with the updates; theirs, from 0, does not.
    there = byzfl.GeometricMedian()(rows - 20.0) + 20.0
    assert np.linalg.norm(there - theirs) > 1e-3
    back = carried_out(geometric_median(gram_of(rows - 20.0)), rows - 20.0) + 20.0
    assert np.linalg.norm(back - ours) < 1e-6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tau", [1.0, 30.0, 1000.0])
def test_centred_clipping_gives_the_same_from_zero_and_from_its_last_answer(
    seed: int, tau: float
) -> None:
    rows, following = rows_of(seed), rows_of(seed + 50)
    peer = byzfl.CenteredClipping(L=3, tau=tau)
    first = peer(rows.copy())
    agree(carried_out(centered_clipping(gram_of(rows), tau=tau, steps=3), rows), first)
    gram, everything = round_of(following, root=np.zeros(D), previous=first)
    second = peer(following.copy())
    agree(carried_out(centered_clipping(gram, tau=tau, steps=3), everything), second)


def test_their_centred_clipping_cannot_be_given_a_start() -> None:
    with pytest.raises(TypeError, match="m must be"):
        byzfl.CenteredClipping(m=np.zeros(3))


def exact_smea(rows: Float64Array, f: int) -> tuple[int, ...]:
    def spread(subset: tuple[int, ...]) -> float:
        chosen = rows[list(subset)]
        return float(np.linalg.svd(chosen - chosen.mean(axis=0), compute_uv=False)[0])

    return min(combinations(range(len(rows)), len(rows) - f), key=spread)


def test_one_power_step_misses_the_subset_of_least_variance() -> None:
    # 8 honest, 3 hostile close to them: the subsets' variances differ by little.
    hits = 0
    for seed in range(10):
        rows = np.random.default_rng(seed).standard_normal((N, 500))
        rows[-3:] += 0.12
        best = rows[list(exact_smea(rows, 3))].mean(axis=0)
        agree(carried_out(smea(gram_of(rows), f=3), rows), best)
        np.random.seed(seed)  # noqa: NPY002 - the peer draws from numpy's global generator
        hits += bool(np.allclose(byzfl.SMEA(f=3)(rows.copy()), best, atol=1e-9))
    assert hits <= 5


def test_smea_gives_the_same_where_one_power_step_suffices() -> None:
    # Hostile updates so far off that every direction shows it.
    rows = rows_of(1)
    rows[-3:] = rows[-3:] * 1e4
    agree(carried_out(smea(gram_of(rows), f=3), rows), byzfl.SMEA(f=3)(rows.copy()))


def their_caf_with_exact_directions(
    rows: Float64Array, f: int, *, most_steps: int = 10_000
) -> tuple[Float64Array, int]:
    """ByzFL's loop, its one power step replaced by a decomposition; and its steps."""
    c, least, best, steps = np.ones(len(rows)), np.inf, rows[0], 0
    while c.sum() > len(rows) - 2 * f and steps < most_steps:
        mean = c @ rows / c.sum()
        apart = rows - mean
        _, values, directions = np.linalg.svd(
            np.sqrt(c / c.sum())[:, None] * apart, full_matrices=False
        )
        if values[0] ** 2 < least:
            least, best = values[0] ** 2, mean
        scores = (apart @ directions[0]) ** 2
        c = c * (1 - scores / scores.max())
        steps += 1
    return best, steps


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("f", [1, 2, 4])
def test_caf_is_their_loop_with_exact_directions(seed: int, f: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((N, D))
    rows[-f:] += 0.5
    expected, _ = their_caf_with_exact_directions(rows, f)
    agree(carried_out(caf(gram_of(rows), f=f), rows), expected)


def test_one_power_step_filters_by_a_random_direction() -> None:
    rows = np.random.default_rng(3).standard_normal((N, D))
    rows[-4:] += 0.25
    honest = rows[:-4].mean(axis=0)
    ours = np.linalg.norm(carried_out(caf(gram_of(rows), f=4), rows) - honest)
    theirs = []
    for seed in range(10):
        np.random.seed(seed)  # noqa: NPY002 - the peer draws from numpy's global generator
        theirs.append(np.linalg.norm(byzfl.CAF(f=4)(rows.copy()) - honest))
    # The honest mean plus at most the best that chance gives them.
    assert ours < 0.85 * np.mean(theirs)
    assert max(theirs) > 1.2 * min(theirs)


def test_an_update_that_is_out_slows_their_filter_and_not_ours() -> None:
    rows = np.random.default_rng(0).standard_normal((12, 50)) * 0.1
    rows[9:11, 0] += 30.0
    rows[11] = 1e7
    honest = rows[:9].mean(axis=0)
    # As many steps as there are updates suffice for ours.
    slow, _ = their_caf_with_exact_directions(rows, 3, most_steps=24)
    ours = carried_out(caf(gram_of(rows), f=3), rows)
    assert np.linalg.norm(ours - honest) < 0.5
    assert np.linalg.norm(slow - honest) > 2.0
    _, steps = their_caf_with_exact_directions(rows, 3)
    assert steps > 1000


def test_their_filter_loses_itself_where_updates_coincide() -> None:
    rows = np.tile(np.random.default_rng(0).standard_normal(20), (N, 1))
    with np.errstate(all="ignore"):
        theirs = byzfl.CAF(f=3)(rows.copy())
    assert theirs is None or not np.isfinite(theirs).all() or np.allclose(theirs, rows[0])
    agree(carried_out(caf(gram_of(rows), f=3), rows), rows[0])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("f", [0, 1, 3, 5])
def test_nearest_neighbour_mixing_gives_the_same(seed: int, f: int) -> None:
    rows = rows_of(seed)
    agree(nnm(gram_of(rows), f=f) @ rows, byzfl.NNM(f=f)(rows.copy()))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("f", [0, 1, 3, 5])
def test_adaptive_clipping_gives_the_same(seed: int, f: int) -> None:
    rows = rows_of(seed)
    agree(arc(gram_of(rows), f=f) @ rows, byzfl.ARC(f=f)(rows.copy()))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 11])
def test_bucketing_makes_means_of_as_many_buckets_of_the_same_sizes(size: int) -> None:
    # The draws differ; the rows tell by their digits who is in a bucket.
    rows = np.diag(np.ones(N))
    np.random.seed(0)  # noqa: NPY002 - the peer draws from numpy's global generator
    theirs = byzfl.Bucketing(s=size)(rows.copy())
    ours = bucketing(gram_of(rows), size=size) @ rows
    assert ours.shape == theirs.shape == (ceil(N / size), N)
    np.testing.assert_allclose(np.sort(ours, axis=1), np.sort(theirs, axis=1), atol=1e-12)
    np.testing.assert_array_equal((ours > 0).sum(axis=0), (theirs > 0).sum(axis=0))


@pytest.mark.parametrize("seed", SEEDS)
def test_clipping_to_a_norm_gives_the_same(seed: int) -> None:

    rows = rows_of(seed)
    bound = 1.2 * float(np.median(np.linalg.norm(rows, axis=1)))
    agree(
        clip_to_median_norm(gram_of(rows), factor=1.2) @ rows,
        byzfl.Clipping(c=bound)(rows.copy()),
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda gram: geometric_median(gram, steps=1000), byzfl.GeometricMedian(nu=1e-6, T=1000)),
        (lambda gram: trimmed_mean(gram, f=3), byzfl.TrMean(f=3)),
        (lambda gram: coordinate_median(gram, f=3), byzfl.Median()),
        (lambda gram: multi_krum(gram, f=3, extra_neighbours=1), byzfl.MultiKrum(f=3)),
    ],
    ids=["geometric_median", "trimmed_mean", "median", "multi_krum"],
)
def test_mixing_before_a_rule_gives_the_same(
    seed: int, ours: Callable[[Gram], Plan], theirs: Theirs
) -> None:
    rows = rows_of(seed)
    together = compose(gram_of(rows), lambda gram: nnm(gram, f=3), ours)
    agree(carried_out(together, rows), theirs(byzfl.NNM(f=3)(rows.copy())))


def test_monna_is_one_row_of_mixing() -> None:
    # Their MoNNA averages around a trusted node: a row of NNM.
    rows = rows_of(0)
    agree((nnm(gram_of(rows), f=3) @ rows)[4], byzfl.MoNNA(f=3, idx=4)(rows.copy()))


def test_their_rounding_clips_one_update_less_where_ours_counts_in_integers() -> None:
    differing = [
        (n, f)
        for n in range(3, 250)
        for f in range(1, n // 2 + n % 2)
        if int((2 * f / n) * (n - f)) != 2 * f * (n - f) // n
    ]
    n, f = differing[0]
    assert (n, f) == (242, 33)
    rows = np.diag(np.arange(1.0, n + 1.0))
    ours = np.diagonal(arc(gram_of(rows), f=f) @ rows)
    theirs = np.diagonal(byzfl.ARC(f=f)(rows.copy()))
    assert (ours == ours.max()).sum() == (theirs == theirs.max()).sum() + 1
