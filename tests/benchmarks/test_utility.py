import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.utility.candidates import (
    descents,
    kernel_descents,
    least_squares,
    started_descents,
)
from benchmarks.utility.cohort import Cohort, PublicPool, deal
from benchmarks.utility.evidence import choose_recipe
from benchmarks.utility.extraction import PART_IMAGES, Images, Source, extract
from benchmarks.utility.levers import Data, Effort, pull_levers
from benchmarks.utility.mechanisms import (
    DELTA,
    Descent,
    InputMap,
    LeastSquares,
    Mechanism,
    Weighting,
    charged_noise,
    classify,
    distributed,
    federated,
    inputs_of,
    map_inputs,
    pooled,
    shares,
    stand_in,
)
from benchmarks.utility.scores import interval
from benchmarks.utility.selection import choose, cut
from benchmarks.utility.study import gap_points, run
from matl_common.privacy.budget import Budget, would_exceed
from matl_common.privacy.mechanisms import GaussianEvent
from matl_common.vision.metrics import cohen_kappa

pytestmark = pytest.mark.privacy

# As many features and public images as the widest candidate has directions.
WIDTH = 520
CENTRES = 3.0 * np.random.default_rng(1).normal(size=(4, WIDTH))
SIZES = (10_000, 5_000, 3_000, 2_000, 1_000)
EFFORT = Effort(selection_splits=1, selection_draws=1, draws=2)


def images(count: int, *, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    features = CENTRES[labels] + 4.0 * rng.normal(size=(count, WIDTH))
    return Images(features.astype(np.float32), labels)


def cohort(count: int = 420) -> Cohort:
    origins = np.zeros(1600, dtype=np.int64)
    pool = PublicPool(images(1600, seed=1), classes=4, ordered=True, origins=origins)
    return Cohort(pool, deal(images(count, seed=2), split=0), images(200, seed=3))


def data(one: Cohort) -> Data:
    return Data([one], [one], patients=21_000, sizes=SIZES)


def test_hyper_parameters_are_chosen_without_any_image_of_a_hospital_or_of_the_test_set() -> None:
    whole = cohort()
    nothing = replace(whole, hospitals=(), test=images(0, seed=4))
    candidates = [
        Descent(InputMap(size, 0.5), steps, 64.0, public_steps=before)
        for size, steps, before in product((8, 32), (4, 16), (0, 8))
    ]
    # Without noise a choice is a function of what it is made from.
    assert choose_recipe(candidates, data(nothing), EFFORT, math.inf) == choose_recipe(
        candidates, data(whole), EFFORT, math.inf
    )


def test_levers_choose_the_same_whatever_the_hospitals_hold() -> None:
    def mechanisms(one: Cohort) -> list[Mechanism]:
        levers = pull_levers(
            data(one),
            EFFORT,
            at=math.inf,
            together=lambda _: few,
            kernels=lambda: few,
            started=lambda _: few,
        )
        return [lever.runs.mechanism for lever in levers]

    few = [Descent(InputMap(size, 0.5), 8, 64.0, public_steps=8) for size in (8, 32)]
    whole = cohort(105)
    nonsense = tuple(Images(-each.features, each.labels[::-1]) for each in whole.hospitals)
    swapped = replace(whole, hospitals=nonsense, test=images(50, seed=9))
    assert mechanisms(swapped) == mechanisms(whole)


def numbered_pool(cameras: int, count: int = 600) -> PublicPool:
    numbers = np.arange(count)
    found = Images(numbers[:, None].astype(np.float32), numbers // cameras % 5)
    return PublicPool(found, classes=5, ordered=True, origins=numbers % cameras)


@pytest.mark.parametrize("split", [0, 1, 2])
def test_a_map_is_fitted_on_other_cameras_than_those_it_is_judged_on(split: int) -> None:
    parts = cut(numbered_pool(3), split)
    assert len(parts.fitting) == 400
    for part in (parts.standing_in, parts.judging):
        assert set(part.features[:, 0] % 3) == {split}
    assert not set(parts.fitting.features[:, 0] % 3) & {split}


@pytest.mark.parametrize("cameras", [1, 2])
def test_no_image_stands_in_for_hospitals_and_judges_them(cameras: int) -> None:
    parts = cut(numbered_pool(cameras), 0)
    used = [set(part.features[:, 0]) for part in (parts.fitting, parts.standing_in, parts.judging)]
    assert all(one.isdisjoint(other) for one, other in pairwise([*used, used[0]]))


def test_stand_ins_of_a_camera_have_a_mix_of_classes_of_their_own() -> None:
    parts = cut(numbered_pool(2), 0)
    counts = np.bincount(parts.standing_in.labels, minlength=5)
    assert counts.max() > 1.5 * counts.min()
    other = np.bincount(cut(numbered_pool(2), 2).standing_in.labels, minlength=5)
    assert not np.array_equal(counts, other)


def test_the_best_on_public_images_is_chosen_and_every_score_is_kept() -> None:
    useless = Descent(InputMap(8, 0.5), steps=1, learning_rate=0.0)
    good = Descent(InputMap(8, 0.5), steps=8, learning_rate=64.0)
    found = choose(
        [useless, good],
        cohort().public,
        sizes=SIZES,
        weighting=Weighting.SQUARES,
        epsilon=1.0,
        splits=1,
        draws=1,
    )
    assert found.best == good
    assert found.accuracy[good] > found.accuracy[useless]


@pytest.mark.parametrize("steps", [1, 16])
def test_releases_cost_the_budget_and_one_more_would_pass_it(steps: int) -> None:
    noise = charged_noise(1.0, steps=steps)
    budget = Budget(1.0, DELTA)
    assert not would_exceed(budget, [], GaussianEvent(noise, steps))
    assert would_exceed(budget, [], GaussianEvent(noise, steps + 1))
    assert charged_noise(math.inf, steps=steps) == 0.0


def test_squares_weight_hospitals_so_that_the_aggregate_has_the_least_noise() -> None:
    noise = {how: np.linalg.norm(shares(SIZES, how) / np.array(SIZES)) for how in Weighting}
    assert min(noise, key=lambda how: noise[how]) is Weighting.SQUARES
    assert noise[Weighting.SQUARES] == pytest.approx(1.0 / np.linalg.norm(SIZES))
    capped = shares(SIZES, Weighting.CAPPED)
    assert np.allclose(capped.sum(), 1.0)
    assert capped[:2].sum() <= 0.5 + 1e-3


def released_noise(mechanism: Descent | LeastSquares, federation_of: str) -> float:
    """Spread of a trained head over draws, at ε = 1."""
    whole = cohort(2100)
    federation = {
        "pooled": pooled(whole.hospitals, patients=2100),
        "federated": federated(whole.hospitals, Weighting.PATIENTS, patients=2100),
        "tenfold": federated(whole.hospitals, Weighting.PATIENTS, patients=21_000),
        "distributed": distributed(whole.hospitals, honest=3, patients=2100),
        "stand-in": stand_in(
            images(300, seed=6), [len(each) for each in whole.hospitals], Weighting.PATIENTS
        ),
    }[federation_of]
    mapped = map_inputs(mechanism.inputs, federation, whole.public.images, classes=4)
    heads = np.stack([mechanism.train(mapped, epsilon=1.0) for _ in range(30)])
    return float(heads.std(axis=0).mean())


def test_noise_is_that_of_who_adds_it() -> None:
    one_step = Descent(InputMap(16, 0.5), steps=1, learning_rate=1.0)
    central = released_noise(one_step, "pooled")
    assert released_noise(one_step, "federated") == pytest.approx(central * math.sqrt(5), rel=0.1)
    assert released_noise(one_step, "stand-in") == pytest.approx(central * math.sqrt(5), rel=0.1)
    assert released_noise(one_step, "tenfold") == pytest.approx(
        central * math.sqrt(5) / 10, rel=0.1
    )
    assert released_noise(one_step, "distributed") == pytest.approx(
        central * math.sqrt(5 / 3), rel=0.1
    )


@pytest.mark.parametrize(
    "mechanism",
    [
        Descent(InputMap(16, 0.5), steps=16, learning_rate=64.0),
        Descent(InputMap(16, 0.5, hidden=True), steps=16, learning_rate=64.0),
        Descent(InputMap(16, 0.5, sharpness=1.0), steps=16, learning_rate=64.0),
        Descent(InputMap(16, 0.5), steps=8, learning_rate=64.0, public_steps=8),
        LeastSquares(InputMap(16, 0.5), gram_share=0.2, ridge=1e-3),
        LeastSquares(InputMap(16, 0.5), gram_share=0.0, ridge=1e-3),
    ],
)
def test_every_mechanism_learns_and_every_draw_of_noise_differs(mechanism: Mechanism) -> None:
    whole = cohort(2100)
    federation = federated(whole.hospitals, Weighting.SQUARES, patients=21_000)
    mapped = map_inputs(mechanism.inputs, federation, whole.public.images, classes=4)
    one, other = (mechanism.train(mapped, epsilon=8.0) for _ in range(2))
    assert not (one == other).any()
    inputs = inputs_of(whole.test, mechanism.inputs, whole.public.images)
    guesses = classify(inputs, one)
    assert float(np.mean(guesses == whole.test.labels)) > 0.8


def test_candidates_are_distinct() -> None:
    for candidates in (
        descents(),
        descents(math.inf),
        descents(hidden=True),
        kernel_descents(),
        started_descents(),
        started_descents(math.inf),
        least_squares(),
    ):
        assert len(set(candidates)) == len(candidates)


def test_hospitals_are_disjoint_and_have_the_tutorials_proportions() -> None:
    numbered = Images(np.arange(210, dtype=np.float32)[:, None], np.zeros(210, dtype=np.int64))
    parts = deal(numbered, split=1)
    assert [len(part) for part in parts] == [100, 50, 30, 20, 10]
    rows = np.concatenate([part.features[:, 0] for part in parts])
    assert sorted(rows) == list(range(210))
    assert not np.array_equal(
        rows, np.concatenate([p.features[:, 0] for p in deal(numbered, split=2)])
    )


def source(count: int, reads: list[range]) -> Source:
    def read(numbers: range) -> Tensor:
        reads.append(numbers)
        return torch.stack([torch.full((3, 32, 32), number / count) for number in numbers])

    return Source("drawn", "test", [number % 3 for number in range(count)], read)


def test_features_are_made_once_part_by_part_and_only_as_far_as_asked(tmp_path: Path) -> None:
    reads: list[range] = []
    some = extract(source(PART_IMAGES + 20, reads), tmp_path, share=0.2)
    assert len(some) == 54
    first = len(reads)
    whole = extract(source(PART_IMAGES + 20, reads), tmp_path)
    assert len(whole) == PART_IMAGES + 20
    assert [numbers.start for numbers in reads[first:]] == [PART_IMAGES]
    assert np.array_equal(whole.features[:54], some.features)
    assert list(whole.labels[:4]) == [0, 1, 2, 0]
    assert all(one.stop <= other.start for one, other in pairwise(reads))


def test_a_gap_is_paired_split_by_split() -> None:
    cohorts: Sequence[Cohort] = [cohort(), replace(cohort(), test=images(200, seed=8))]
    mechanism = Descent(InputMap(16, 0.5), steps=8, learning_rate=64.0)
    reference, private = (
        run(
            "arm",
            mechanism,
            cohorts,
            epsilon=epsilon,
            federation=lambda one: pooled(one.hospitals, patients=21_000),
            draws=3,
        )
        for epsilon in (math.inf, 1.0)
    )
    assert [len(split) for split in reference.scores] == [1, 1]
    assert [len(split) for split in private.scores] == [3, 3]
    expected = reference.accuracy.mean - private.accuracy.mean
    assert gap_points(reference, private).mean == pytest.approx(expected)


def test_intervals_and_kappa_are_those_of_the_textbook() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    # Cohen (1960), as told in every textbook: 35 of 50 agree, 25 by chance.
    assert cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)


def test_a_start_from_public_labels_is_learnt_and_spends_no_noise() -> None:
    whole = cohort()
    mechanism = Descent(InputMap(16, 0.5), steps=0, learning_rate=64.0, public_steps=8)
    mapped = map_inputs(
        mechanism.inputs,
        federated(whole.hospitals, Weighting.SQUARES, patients=21_000),
        whole.public.images,
        classes=4,
    )
    start, again = (mechanism.train(mapped, epsilon=math.inf) for _ in range(2))
    assert np.array_equal(start, again)
    inputs = inputs_of(whole.test, mechanism.inputs, whole.public.images)
    assert float(np.mean(classify(inputs, start) == whole.test.labels)) > 0.8
