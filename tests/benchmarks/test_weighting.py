"""The benchmark of weights: its formulas, and that it changes nothing else."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.robust.arms import ArmName
from benchmarks.robust.cohort import Mix, Setting
from benchmarks.robust.datasets import DataSet, load_images
from benchmarks.robust.simulation import prepare, run, run_under
from benchmarks.weighting import (
    MEMBERS,
    AveragingLearner,
    Measured,
    WeighedArm,
    Weighting,
    cells_of,
    weigh,
)

# A study takes a second of a core, and longer where many share one.
pytestmark = pytest.mark.timeout(600)

PATIENTS = (10_000, 5_000, 3_000, 2_000, 1_000)


@pytest.mark.parametrize("f", [1, 2])
@pytest.mark.parametrize("weighting", [Weighting.CAPPED_SIZE, Weighting.CAPPED_SQUARE])
def test_capped_weights_leave_the_largest_half_at_most(weighting: Weighting, f: int) -> None:
    weights = weigh(weighting, PATIENTS, f=f)
    assert sum(weights[:f]) <= sum(weights) / 2
    assert weights[MEMBERS - 1] == weigh(Weighting(weighting), PATIENTS, f=0)[MEMBERS - 1]


def test_without_a_cap_weights_go_by_size_or_its_square() -> None:
    assert weigh(Weighting.EQUAL, PATIENTS, f=1) == [1.0] * 5
    assert weigh(Weighting.SIZE, PATIENTS, f=1) == list(PATIENTS)
    assert weigh(Weighting.SQUARE, PATIENTS, f=1) == [size**2 for size in PATIENTS]


def test_weighing_as_the_product_does_gives_what_the_product_gives(tmp_path: Path) -> None:
    setting = Setting(DataSet.DIGITS, MEMBERS, 1, Mix.IID, private=True, seed=0)
    study = prepare(load_images(DataSet.DIGITS), setting, "none")
    usual = run(study, ArmName.MATL, tmp_path)
    weighed = run_under(study, WeighedArm(Weighting.CAPPED_SIZE, study.federation, tmp_path))
    equal = run_under(study, WeighedArm(Weighting.EQUAL, study.federation, tmp_path))
    assert weighed == usual
    assert equal.accuracy != usual.accuracy


def test_the_mean_is_that_of_the_second_half(tmp_path: Path) -> None:
    setting = Setting(DataSet.DIGITS, MEMBERS, 1, Mix.IID, private=True, seed=0)
    study = prepare(load_images(DataSet.DIGITS), setting, "none")
    learner = AveragingLearner(study.learner, rounds=4)
    base = learner.initial()
    models = [np.full_like(base, value) for value in (1.0, 2.0, 30.0, -29.0)]
    for number, start in enumerate([base, *models[:-1]], start=1):
        learner.train(start, round_number=number)
    values = study.cohort.test_values[:50]
    found = learner.predict(models[-1], values)
    np.testing.assert_array_equal(found, study.learner.predict(np.full_like(base, 0.5), values))
    np.testing.assert_array_equal(learner.last, study.learner.predict(models[-1], values))


def test_gains_are_taken_split_by_split() -> None:
    def measured(weighting: Weighting, seed: int, accuracy: float) -> Measured:
        return Measured("digits", "iid", 1, "none", seed, weighting, 0.95, accuracy, 0, None)

    runs = [
        measured(Weighting.SQUARE, 1, 0.92),
        measured(Weighting.CAPPED_SIZE, 0, 0.8),
        measured(Weighting.CAPPED_SIZE, 1, 0.9),
        measured(Weighting.SQUARE, 0, 0.84),
    ]
    (square,) = [cell for cell in cells_of(runs) if cell.weighting == Weighting.SQUARE]
    assert (round(square.gain, 9), round(square.gain_error, 9)) == (3.0, 1.0)
    assert (round(square.accuracy, 9), round(square.averaging_gain, 9)) == (88.0, 7.0)
