"""What makes the arms of one study comparable: who knows what, noise, caps, and each rule's f."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matl.simulation.datasets import Images
from matl.simulation.federation import (
    BACKDOOR_TARGET,
    Simulation,
    _backdoor_success,
    _rule_under_attack,
    _sent,
    prepare,
)
from matl.simulation.study import ArmName
from matl_common.ids import NodeId
from tests.simulation.first_round import begun, decided, private, study


def test_enrolled_class_mixes_are_the_hospitals_own_unless_a_study_leaves_them_out(
    digits: Images,
) -> None:
    known = prepare(digits, study("false_histogram"), seed=3)
    unknown = prepare(digits, study("false_histogram", coordinator={"class_mixes": False}), seed=3)
    for number, node in enumerate(known.cohort.nodes):
        enrolled, true = known.federation.enrolled[node], known.cohort.label_shares[number]
        assert (enrolled.label_shares == true) != known.cohort.hostile[number]
        assert unknown.federation.enrolled[node] == replace(enrolled, label_shares=None)
    # A study of before this could be asked is the same study.
    assert "class_mixes" not in study().key()
    assert "class_mixes" in unknown.study.key()


def test_attackers_add_the_noise_they_promised_unless_leaving_it_out_is_the_attack(
    digits: Images, tmp_path: Path
) -> None:
    def rows(attack: str) -> tuple[Simulation, np.ndarray, np.ndarray]:
        simulation = prepare(digits, private(attack), seed=3)
        arm, local, opened = begun(simulation, ArmName.MEAN, tmp_path)
        sent = _sent(simulation, arm, local, opened, previous=None)
        hostile = simulation.cohort.hostile
        names = [n for n, bad in zip(simulation.cohort.nodes, hostile, strict=True) if bad]
        return simulation, np.stack([sent[name] for name in names]), local.clean[hostile]

    simulation, flipped, trained = rows("sign_flip_1")
    plan, patients = simulation.federation.plan, np.array(simulation.cohort.patients)
    promised = plan.training.learning_rate * plan.privacy.noise_multiplier / patients
    promised = (promised * np.sqrt(plan.training.steps_per_round))[simulation.cohort.hostile]
    noise = (flipped + trained).std(axis=1)
    assert noise / promised == pytest.approx(np.ones(len(noise)), rel=0.2)
    _, noise_free, _ = rows("noise_free_ipm")
    assert np.ptp(noise_free, axis=0).max() == 0.0


def test_the_oracle_has_the_sizes_capped_as_the_product_has_and_of_the_honest_alone(
    digits: Images, tmp_path: Path
) -> None:
    sizes = {"patients": (10_000, 5_000, 3_000, 2_000, 1_000), "alpha": 0.5}
    hostile = {"attack": "sign_flip_1", "hospitals": ("hospital_d",)}
    simulation = prepare(digits, study(hospitals=sizes, hostile=hostile), seed=3)
    found = decided(simulation, ArmName.ORACLE, tmp_path).shares
    # f is 2: capped at 2,076 patients the two largest of all five hold just under 45 %.
    capped = {"hospital_a": 2076, "hospital_b": 2076, "hospital_c": 2076, "hospital_e": 1000}
    assert found == pytest.approx({node: size / 7228 for node, size in capped.items()})
    mean = decided(simulation, ArmName.MEAN, tmp_path).shares
    assert mean[NodeId("hospital_a")] == pytest.approx(10 / 21)


@pytest.mark.parametrize(("refused", "trimmed"), [(0, 9), (3, 6), (12, 0)])
def test_baselines_stand_as_many_hostile_hospitals_as_the_product_claims_less_those_refused(
    digits: Images, tmp_path: Path, refused: int, trimmed: int
) -> None:
    simulation = prepare(digits, study("none"), seed=3)
    arm, _, closed = begun(simulation, ArmName.TRIMMED_MEAN, tmp_path)
    left = dict(list(closed.updates.items())[refused:])
    found = arm.decide(replace(closed, updates=left)).base
    assert found is not None
    rows = np.sort(np.stack(list(left.values())), axis=0)[trimmed : len(left) - trimmed]
    np.testing.assert_allclose(found - closed.base, rows.mean(axis=0), atol=1e-6)


def test_who_knows_the_rule_knows_that_a_step_too_long_is_refused(
    digits: Images, tmp_path: Path
) -> None:
    simulation = prepare(digits, private("optimal_ipm"), seed=3)
    arm, local, opened = begun(simulation, ArmName.MEAN, tmp_path)
    honest, own = local.sent[~simulation.cohort.hostile], local.sent[simulation.cohort.hostile]
    left = {node: opened.updates[node] for node in simulation.federation.honest}
    expected = arm.guess(left, opened)
    tried = _rule_under_attack(simulation, arm, opened)
    np.testing.assert_allclose(tried(np.concatenate([honest, -1e6 * own])), expected, atol=1e-6)
    assert not np.allclose(tried(np.concatenate([honest, -own])), expected, atol=1e-6)


def test_only_images_of_other_classes_count_as_taken_by_a_trigger(digits: Images) -> None:
    simulation = prepare(digits, study("backdoor"), seed=3)
    truth = simulation.cohort.test_labels
    nothing = np.zeros(1, dtype=np.float32)

    class Knowing:
        """Says what it is told to."""

        def __init__(self, said: np.ndarray) -> None:
            self._said = said

        def predict(self, model: np.ndarray, values: np.ndarray) -> np.ndarray:
            assert len(values) == len(self._said), "images of the target's own class tell nothing"
            return self._said

    def success(said: np.ndarray) -> float | None:
        tricked: Any = Knowing(said)
        return _backdoor_success(
            replace(simulation, learner=tricked), np.zeros(1, dtype=np.float32)
        )

    others = truth[truth != BACKDOOR_TARGET]
    assert success(others) == 0.0
    assert success(np.full(len(others), BACKDOOR_TARGET)) == 1.0
    assert _backdoor_success(prepare(digits, study(), seed=3), nothing) is None
