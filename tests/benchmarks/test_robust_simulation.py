"""The robustness evidence: its simulation, its figures, and a whole quick run."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import evidence_robust
from benchmarks.robust.arms import Arm, ArmName, RoundInput
from benchmarks.robust.cohort import Cohort, Mix, Setting, split_images
from benchmarks.robust.datasets import DataSet, Images, load_images
from benchmarks.robust.report import misses
from benchmarks.robust.simulation import FOLDS, NO_ATTACK, Outcome, prepare, settings_of
from benchmarks.robust.summary import cells_of, summarise
from matl_common.errors import ConfigurationError
from matl_common.protocol import Recipe
from matl_coordinator.core.robust.root import RootRow
from matl_coordinator.scoring.split import split_holdout

# The quick run takes ten seconds of a core, and minutes where many share one.
pytestmark = pytest.mark.timeout(600)

SETTING = Setting(DataSet.DIGITS, 20, 9, Mix.DIRICHLET, private=False, seed=3)


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images(DataSet.DIGITS)


@pytest.fixture(scope="module")
def cohort(digits: Images) -> Cohort:
    return split_images(digits, SETTING)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    folder = tmp_path_factory.mktemp("evidence")
    evidence_robust.main(quick=True, processes=1, out=folder)
    assert (folder / "robust-quick.png").stat().st_size > 0
    result: Mapping[str, Any] = json.loads((folder / "robust-quick.json").read_text())
    return result


def test_a_quick_run_leaves_every_figure_that_carries_a_target(quick: Mapping[str, Any]) -> None:
    assert {"machine", "date", "command", "measurements", "summary"} <= set(quick)
    for name in ("worst_gap_points_45pct", "tpr", "fpr"):
        for key in (name, f"{name}_eps1"):
            assert isinstance(quick["summary"][key], float), key


def test_in_a_quick_run_sign_flips_ruin_the_mean_and_not_our_rule(
    quick: Mapping[str, Any],
) -> None:
    flips = [c for c in quick["measurements"]["cells"] if c["attack"] == "sign_flip_5"]
    gaps = {(c["mix"], c["private"], c["arm"]): c["gap_points"] for c in flips}
    settings = {(mix, private) for mix, private, _ in gaps}
    assert settings
    for mix, private in settings:
        assert gaps[mix, private, "mean"] > 30.0
        assert gaps[mix, private, "matl"] < 2.0


def test_in_a_quick_run_mislabelling_hospitals_are_excluded_and_no_others(
    quick: Mapping[str, Any],
) -> None:
    cells = [
        c
        for c in quick["measurements"]["cells"]
        if c["attack"] == "label_complement" and c["arm"] == "matl"
    ]
    assert cells
    for cell in cells:
        assert cell["tpr"] >= 0.8
        assert cell["fpr"] <= 0.05


def test_the_parts_of_a_split_share_no_image_and_the_root_set_is_balanced(
    digits: Images, cohort: Cohort
) -> None:
    owned = np.concatenate(cohort.members)
    assert len(np.unique(owned)) == len(owned)
    assert np.bincount(cohort.root_labels).tolist() == [50] * 10
    held = {row.tobytes() for row in np.concatenate([cohort.root_values, cohort.public_values])}
    ours = {row.tobytes() for row in digits.values[owned]}
    # Two images of the set may be equal; hardly any are.
    assert len(held & ours) <= 2


def test_hospitals_differ_in_their_classes_only_where_the_split_is_not_iid(
    digits: Images, cohort: Cohort
) -> None:
    even = split_images(digits, replace(SETTING, mix=Mix.IID))
    assert np.mean([max(shares) for shares in cohort.label_shares]) > 0.3
    assert np.mean([max(shares) for shares in even.label_shares]) < 0.25


def test_a_split_is_the_same_every_time_and_another_for_another_seed(
    digits: Images, cohort: Cohort
) -> None:
    again = split_images(digits, SETTING)
    other = split_images(digits, replace(SETTING, seed=4))
    assert all(np.array_equal(a, b) for a, b in zip(cohort.members, again.members, strict=True))
    assert np.array_equal(cohort.hostile, again.hostile)
    assert not np.array_equal(cohort.members[0], other.members[0])


def test_poisoned_labels_reach_the_attackers_training_and_nobody_elses(digits: Images) -> None:
    honest, poisoned = (prepare(digits, SETTING, name) for name in (NO_ATTACK, "label_shift"))
    base = honest.learner.initial()
    before = honest.learner.train(base, round_number=1).clean
    after = poisoned.learner.train(base, round_number=1).clean
    changed = np.abs(before - after).max(axis=1) > 1e-6
    assert np.array_equal(changed, poisoned.cohort.hostile)


def test_noise_in_a_private_update_is_what_the_policy_promises(digits: Images) -> None:
    study = prepare(digits, replace(SETTING, private=True), NO_ATTACK)
    base = study.learner.initial()
    one, other = (study.learner.train(base, round_number=number) for number in (1, 2))
    plan, patients = study.federation.plan, np.array(study.cohort.patients)
    step = plan.training.learning_rate * plan.privacy.noise_multiplier / patients
    promised = step * np.sqrt(plan.training.steps_per_round)
    # Full batches: two rounds from one model differ by their noise alone.
    for found in ((one.sent - other.sent) / np.sqrt(2.0), one.sent - one.clean):
        assert found.std(axis=1) / promised == pytest.approx(np.ones(20), rel=0.2)


def test_the_oracle_counts_no_hostile_hospital_and_the_mean_counts_all(
    digits: Images, tmp_path: Path
) -> None:
    study = prepare(digits, SETTING, "sign_flip_1")
    base = study.learner.initial()
    sent = study.learner.train(base, round_number=1).sent
    closed = RoundInput(
        number=1,
        updates=dict(zip(study.cohort.nodes, sent, strict=True)),
        violations={},
        root=[],
        root_values={},
        root_update=base,
        loss_improvement={},
    )
    hostile = {
        node for node, bad in zip(study.cohort.nodes, study.cohort.hostile, strict=True) if bad
    }
    for name, expected in ((ArmName.ORACLE, hostile), (ArmName.MEAN, set())):
        assert Arm(name, study.federation, tmp_path).decide(closed).weightless == expected


@pytest.mark.parametrize("recipe", list(Recipe))
def test_matl_compares_profiles_of_heads_alone_and_refuses_missing_noise_in_networks_too(
    digits: Images, tmp_path: Path, recipe: Recipe
) -> None:
    study = prepare(digits, replace(SETTING, private=True), NO_ATTACK)
    learner, nodes = study.learner, study.cohort.nodes
    split = split_holdout(study.cohort.root_labels, folds=FOLDS)
    base = learner.initial()
    local = learner.train(base, round_number=1)
    updates = dict(zip(nodes, local.sent, strict=True)) | {nodes[0]: local.clean[0]}
    rows = [RootRow(f"root-{c}-{k}", c, k, len(own)) for (c, k), own in split.folds.items()]
    closed = RoundInput(
        number=1,
        updates=updates,
        violations={},
        root=rows,
        root_values={
            row.name: learner.descent(base, split.folds[row.class_index, row.fold]) for row in rows
        },
        root_update=base,
        loss_improvement=dict.fromkeys(nodes, 0.01),
    )
    plan = study.federation.plan
    plan = replace(plan, training=replace(plan.training, recipe=recipe))
    arm = Arm(ArmName.MATL, replace(study.federation, plan=plan), tmp_path)
    arm.decide(closed)
    assert nodes[0] in arm.refused
    parts = [record.components for record in arm.trust if record.node_id not in arm.refused]
    compared = {each is not None and each.profile_z is not None for each in parts}
    assert compared == {recipe is Recipe.HEAD}


def outcome(
    arm: str, *, accuracy: float, attack: str = "sign_flip_1", seed: int = 0, caught: float = 0.0
) -> Outcome:
    return Outcome(
        data_set="digits",
        members=20,
        byzantine=9,
        mix="iid",
        private=False,
        seed=seed,
        attack=attack,
        arm=arm,
        accuracy=accuracy,
        worst_silo=accuracy,
        backdoor_success=None,
        held_rounds=0,
        rounds=30,
        hostile_excluded=caught,
        honest_excluded=0.1,
        hostile_weightless=caught,
        honest_weightless=0.0,
        trust={},
    )


def test_the_worst_gap_is_the_largest_mean_over_seeds_and_harmless_attacks_need_no_catching() -> (
    None
):
    runs = []
    for seed, ours in ((0, 0.88), (1, 0.86)):
        runs += [
            outcome("oracle", accuracy=0.9, seed=seed),
            outcome("mean", accuracy=0.2, seed=seed),
            outcome("matl", accuracy=ours, seed=seed, caught=1.0),
            outcome("oracle", accuracy=0.9, attack="alie", seed=seed),
            outcome("mean", accuracy=0.895, attack="alie", seed=seed),
            outcome("matl", accuracy=0.9, attack="alie", seed=seed),
        ]
    figures = summarise(cells_of(runs))
    assert figures["worst_gap_points_45pct"] == pytest.approx(3.0)
    assert figures["worst_attack_45pct"] == "sign_flip_1 (iid)"
    assert figures["tpr"] == 1.0
    assert figures["tpr_all_attacks"] == 0.5
    assert figures["fpr"] == pytest.approx(0.1)


def test_figures_beyond_their_targets_are_named_with_the_attack() -> None:
    lines = misses(
        {
            "worst_gap_points_45pct": 3.0,
            "worst_attack_45pct": "mimic (iid)",
            "tpr": 0.5,
            "tpr_worst_attack": "mimic (iid): 10%",
            "fpr": 0.06,
            "fpr_eps1": 0.05,
        }
    )
    assert len(lines) == 3
    assert "mimic" in lines[0]


def test_all_federations_are_run_with_every_attack_that_fits() -> None:
    settings = settings_of(DataSet.FASHION, seeds=3)
    assert len(settings) == len(set(settings)) == 2 * 2 * 2 * 3
    first, later = settings[0], settings[1]
    assert "noise_free_ipm" not in evidence_robust.attacks_on(first)
    assert "noise_free_ipm" in evidence_robust.attacks_on(replace(first, private=True))
    assert "label_shift" in evidence_robust.attacks_on(later)


def test_a_missing_fashion_mnist_names_the_package_to_install(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="apt-get install dataset-fashion-mnist"):
        load_images(DataSet.FASHION, fashion=tmp_path)


def test_idx_files_are_read_in_the_order_they_were_written(tmp_path: Path) -> None:
    pictures = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
    classes = np.array([7, 0, 9], dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", pictures), ("labels-idx1", classes)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
            path = tmp_path / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + values.tobytes()))
    images = load_images(DataSet.FASHION, fashion=tmp_path)
    assert images.labels.tolist() == [7, 0, 9]
    assert images.values[2] == pytest.approx(np.array([8, 9, 10, 11]) / 255)


def test_a_second_start_takes_over_what_the_first_has_finished(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    job = evidence_robust.Job(SETTING, "mimic", (ArmName.MATL,), Path())
    found = [outcome("matl", accuracy=0.5)]
    evidence_robust.Finished(path).add(job, found)
    assert evidence_robust.Finished(path).get(job) == found
    assert evidence_robust.Finished(path).get(replace(job, attack="alie")) is None
    # Results of another version of the product are not taken over.
    path.write_text(path.read_text().replace(evidence_robust.fingerprint(), "0" * 16))
    assert evidence_robust.Finished(path).get(job) is None
