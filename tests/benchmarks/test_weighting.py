"""The benchmark of weights: its formulas, and that it changes nothing else."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.weighting import (
    ATTACKS,
    MEMBERS,
    Measured,
    WeighedArm,
    Weighting,
    _largest_hostile,
    cells_of,
    federation,
    weigh,
)
from matl.simulation.cohort import hostile_of
from matl.simulation.datasets import DataSet, load_images
from matl.simulation.federation import prepare, run, run_under
from matl.simulation.study import ArmName

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
    study = federation(DataSet.DIGITS, 1, float("inf"), "none")
    simulation = prepare(load_images(DataSet.DIGITS), study, seed=0)
    first = simulation.learner.initial()

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    def weighed(weighting: Weighting) -> WeighedArm:
        return WeighedArm(
            weighting, simulation.federation, folder(weighting.name), first_model=first
        )

    usual = run(simulation, ArmName.MATL, folder("product"))
    arm = weighed(Weighting.CAPPED_SIZE)
    assert run_under(simulation, arm) == usual
    assert run_under(simulation, weighed(Weighting.EQUAL)).accuracy != usual.accuracy
    assert not np.array_equal(arm.last(), arm.released()), "the mean of the second half"


def test_the_largest_hospital_is_among_the_hostile_ones() -> None:
    study = federation(DataSet.DIGITS, 2, 0.5, ATTACKS[0])
    seed = next(_largest_hostile(study))
    assert hostile_of(study, seed=seed)[0]
    assert hostile_of(study, seed=seed).sum() == 2


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
