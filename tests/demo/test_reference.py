"""The reference arms and the attacks, on features that a linear head separates."""

import numpy as np
import pytest

from matl.demo.hostile import forge
from matl.demo.reference import HospitalData, ReferenceArms, TestSet, moved, train_references
from matl.demo.study import SUSPECT, Attack
from matl_common.ids import NodeId
from matl_common.vision.linear_head import LinearHead, Projection, initial_head
from matl_participant.training.head import HeadTraining

CLASSES, DIMENSIONS = 5, 8
TRAINING = HeadTraining(
    steps=4, learning_rate=8.0, noise_multiplier=0.0, max_grad_norm=1.0, declared_patients=1
)
FIRST = initial_head(
    Projection(np.zeros(DIMENSIONS, np.float32), np.eye(DIMENSIONS, dtype=np.float32)),
    classes=CLASSES,
)


def patients(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    features = 3.0 * np.eye(DIMENSIONS)[labels] + rng.standard_normal((count, DIMENSIONS))
    return features.astype(np.float32), labels.astype(np.int64)


def hospital(letter: str, count: int, *, reversed_labels: bool = False) -> HospitalData:
    features, labels = patients(count, ord(letter))
    recorded = 4 - labels if reversed_labels else labels
    return HospitalData(NodeId(f"hospital_{letter}"), features, recorded, labels, count)


def trained(attack: Attack, *, training: HeadTraining = TRAINING) -> ReferenceArms:
    reversed_labels = attack in {Attack.NONE, Attack.SCALING}
    hospitals = [
        *(hospital(letter, size) for letter, size in zip("abcd", (400, 200, 120, 80), strict=True)),
        hospital("e", 40, reversed_labels=reversed_labels),
    ]
    test = TestSet(*patients(500, 1))
    return train_references(FIRST, hospitals, test, rounds=5, training=training, attack=attack)


def test_pooling_every_patient_learns() -> None:
    arms = trained(Attack.NONE)
    assert len(arms.centralised) == len(arms.fedavg) == len(arms.fedavg_weighted) == 5
    assert arms.centralised[-1] > 0.9


def test_the_pool_holds_the_true_labels_and_no_noise() -> None:
    noisy = HeadTraining(4, 8.0, 50.0, 1.0, 1)
    assert trained(Attack.NONE, training=noisy).centralised == trained(Attack.NAN).centralised


def test_averaging_by_size_barely_notices_a_small_mislabelling_hospital() -> None:
    arms = trained(Attack.NONE)
    assert arms.fedavg_weighted[-1] > arms.centralised[-1] - 0.03


@pytest.mark.hostile
def test_averaging_by_size_gives_a_small_attacker_its_small_share() -> None:
    arms = trained(Attack.SIGN_FLIP)
    assert arms.fedavg_weighted[-1] > arms.fedavg[-1] + 0.3


def test_averages_carry_the_noise_of_their_hospitals() -> None:
    noisy = HeadTraining(4, 8.0, 50.0, 1.0, 1)
    assert trained(Attack.NONE, training=noisy).fedavg[-1] < trained(Attack.NONE).fedavg[-1] - 0.1


@pytest.mark.hostile
@pytest.mark.parametrize("attack", [a for a in Attack if a is not Attack.NONE])
def test_a_plain_average_collapses_under_attack(attack: Attack) -> None:
    assert trained(attack).fedavg[-1] < 0.45


@pytest.mark.hostile
@pytest.mark.parametrize("attack", [Attack.SIGN_FLIP, Attack.NOISE])
def test_a_cautious_attacker_stays_below_the_norm_that_is_admitted(attack: Attack) -> None:
    forged = forge(np.ones(100, np.float32), attack, largest_norm=12.0)
    assert 10.0 < float(np.linalg.norm(forged)) < 12.0


@pytest.mark.hostile
def test_attacks_are_what_they_are_called() -> None:
    honest = np.arange(1, 5, dtype=np.float32)
    assert np.array_equal(forge(honest, Attack.NONE), honest)
    assert np.array_equal(forge(honest, Attack.SIGN_FLIP), -5 * honest)
    assert np.array_equal(forge(honest, Attack.SCALING, largest_norm=1.0), 100 * honest)
    assert np.isnan(forge(honest, Attack.NAN)).all()
    noise = forge(honest, Attack.NOISE)
    assert np.linalg.norm(noise) == pytest.approx(100 * np.linalg.norm(honest), rel=1e-4)


def test_a_flat_update_is_weights_then_bias() -> None:
    update = np.arange(CLASSES * DIMENSIONS + CLASSES, dtype=np.float32)
    head: LinearHead = moved(FIRST, update)
    assert head.weight[1, 2] == DIMENSIONS + 2
    assert head.bias[0] == CLASSES * DIMENSIONS


def test_a_head_that_is_not_a_number_is_as_good_as_one_fixed_answer() -> None:
    test = TestSet(*patients(500, 1))
    broken = moved(FIRST, np.full(CLASSES * DIMENSIONS + CLASSES, np.nan, np.float32))
    assert test.accuracy(broken) == np.mean(test.labels == 0)


def test_hospital_e_is_the_one_that_attacks() -> None:
    assert hospital("e", 1).node_id == SUSPECT
