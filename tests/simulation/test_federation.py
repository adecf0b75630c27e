"""One simulated study: its hospitals, its noise, its attackers, and who decides."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matl.attacks import ATTACKS
from matl.simulation import federation
from matl.simulation.arms import _Holdout, make_arm
from matl.simulation.coordinator import Closed, Coordinator
from matl.simulation.datasets import Images
from matl.simulation.federation import (
    _sent,
    prepare,
    run,
)
from matl.simulation.learners import Learner, LocalUpdates
from matl.simulation.outcome import weighed
from matl.simulation.parts import in_blocks
from matl.simulation.study import ArmName, Study
from matl_common.ids import NodeId, digest_of
from matl_common.protocol import Recipe
from matl_coordinator.scoring.path import common_step
from tests.simulation.first_round import HEAD, closed_round, decided, private, study, trained


@pytest.mark.parametrize("times", [1.0, 64.0])
async def test_updates_are_scored_along_the_step_they_take_together(
    digits: Images, tmp_path: Path, times: float
) -> None:
    simulation = prepare(digits, study("none"), seed=3)
    base = simulation.learner.initial()
    sent = trained(simulation, base).sent
    closed = closed_round(simulation, np.float32(times) * sent)
    weights = {node: float(number) for number, node in enumerate(closed.updates)}
    files = dict.fromkeys(closed.updates, tmp_path)
    report = await _Holdout(simulation.federation.plan.training, closed).report(
        digest_of(b"model"), files, weights=weights, folder=tmp_path
    )
    step = common_step(closed.updates.__getitem__, weights)
    assert step is not None
    assert (report.reach < 1.0) == (times > 1.0)
    step *= np.float32(min(1.0, 2.0 * report.reach))
    for each in report.path:
        found = np.fromfile(each.path, dtype="<f4")
        ends = closed.descent(each.row, None), closed.descent(each.row, step)
        assert np.abs(ends[1] - ends[0]).max() > 1e-4
        np.testing.assert_allclose(found, (ends[0] + ends[1]) / 2, rtol=1e-5, atol=1e-8)


def test_within_training_is_also_honest_in_what_the_coordinator_trains_to_compare_with(
    digits: Images, tmp_path: Path
) -> None:
    simulation = prepare(digits, study("within_training"), seed=3)
    learner, hostile = simulation.learner, simulation.cohort.hostile
    base, training = learner.initial(), learner.plan.training
    local = trained(simulation, base)
    opened = closed_round(simulation, local.sent)
    arm = make_arm(ArmName.MATL, simulation.federation, tmp_path, first_model=base)
    sent = np.stack(list(_sent(simulation, arm, local, opened, previous=None).values()))
    who = [int(number) for number in np.flatnonzero(hostile)]
    descents, moved = learner.class_descents(who), np.zeros_like(base)
    for _ in range(training.steps_per_round):
        slope = descents(base + moved).mean(axis=0)
        moved += np.float32(training.learning_rate) * slope
    own, found = local.clean[hostile] @ moved, sent[hostile] @ moved
    np.testing.assert_allclose(found, own, atol=1e-3 * np.abs(own).max())
    assert np.abs(sent[hostile] - local.clean[hostile]).max() > 0.01


def test_updates_are_compared_with_what_training_on_the_root_set_does_beyond_its_gradients(
    digits: Images, tmp_path: Path
) -> None:
    simulation = prepare(digits, study("none"), seed=3)
    learner = simulation.learner
    base, training = learner.initial(), learner.plan.training
    closed = closed_round(simulation, trained(simulation, base).sent)
    weights = dict.fromkeys(closed.updates, 1.0)
    files = dict.fromkeys(closed.updates, tmp_path)
    report = asyncio.run(
        _Holdout(training, closed).report(
            digest_of(b"model"), files, weights=weights, folder=tmp_path
        )
    )
    assert report.beyond is not None
    rest = np.fromfile(report.beyond.path, dtype="<f4").astype(np.float64)
    assert report.beyond.digest == digest_of(report.beyond.path.read_bytes())
    step = common_step(closed.updates.__getitem__, weights)
    for at in (None, step):
        for part in closed.root:
            of_class = np.mean(
                [closed.descent(r, at) for r in closed.root if r.class_index == part.class_index],
                axis=0,
                dtype=np.float64,
            )
            cosine = rest @ of_class / (np.linalg.norm(rest) * np.linalg.norm(of_class))
            assert abs(cosine) < 1e-3
    moved = learner.root_update(base, round_number=1)
    assert rest @ moved > 0.05 * np.linalg.norm(rest) * np.linalg.norm(moved)


def test_within_classes_is_honest_wherever_on_the_step_the_coordinator_looks(
    digits: Images, tmp_path: Path
) -> None:
    simulation = prepare(digits, study("within_classes"), seed=3)
    learner, hostile = simulation.learner, simulation.cohort.hostile
    base = learner.initial()
    local = trained(simulation, base)
    opened = closed_round(simulation, local.sent)
    arm = make_arm(ArmName.MATL, simulation.federation, tmp_path, first_model=base)
    sent = np.stack(list(_sent(simulation, arm, local, opened, previous=None).values()))
    ends = base, base + local.sent[~hostile].mean(axis=0)
    who = [int(number) for number in np.flatnonzero(hostile)]
    looked = np.concatenate([*map(learner.class_descents(who), ends)])
    basis, _ = np.linalg.qr(looked.T.astype(np.float64))
    own, found = local.clean[hostile] @ basis, sent[hostile] @ basis
    np.testing.assert_allclose(found, own, atol=1e-3 * np.abs(own).max())
    assert np.abs(sent[hostile] - local.clean[hostile]).max() > 0.01


def test_poisoned_labels_reach_the_attackers_training_and_nobody_elses(digits: Images) -> None:
    honest, poisoned = (prepare(digits, study(name), seed=3) for name in ("none", "label_shift"))
    base = honest.learner.initial()
    before = trained(honest, base).clean
    after = trained(poisoned, base).clean
    changed = np.abs(before - after).max(axis=1) > 1e-6
    assert np.array_equal(changed, poisoned.cohort.hostile)
    for each in (honest, poisoned):
        pooled = each.learner.pooled_update(base, round_number=1)
        np.testing.assert_array_equal(
            pooled, honest.learner.pooled_update(base, round_number=1), "true labels, always"
        )


def test_noise_in_a_private_update_is_what_the_policy_promises(digits: Images) -> None:
    simulation = prepare(digits, private(), seed=3)
    base = simulation.learner.initial()
    one, other = (trained(simulation, base, round_number=number) for number in (1, 2))
    plan, patients = simulation.federation.plan, np.array(simulation.cohort.patients)
    step = plan.training.learning_rate * plan.privacy.noise_multiplier / patients
    promised = step * np.sqrt(plan.training.steps_per_round)
    # Full batches: two rounds from one model differ by their noise alone.
    for found in ((one.sent - other.sent) / np.sqrt(2.0), one.sent - one.clean):
        assert found.std(axis=1) / promised == pytest.approx(np.ones(20), rel=0.2)


def test_pooled_training_takes_the_mean_of_the_hospitals_steps_by_size(digits: Images) -> None:
    calm = study(training=HEAD | {"steps": 1})
    simulation = prepare(digits, calm, seed=0)
    base = simulation.learner.initial()
    sizes = np.array(simulation.cohort.patients, dtype=np.float64)
    clean = trained(simulation, base).clean
    expected = (sizes / sizes.sum()) @ clean
    pooled = simulation.learner.pooled_update(base, round_number=1)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_the_oracle_counts_no_hostile_hospital_and_the_means_count_all(
    digits: Images, tmp_path: Path
) -> None:
    simulation = prepare(digits, study("sign_flip_1"), seed=3)
    honest, everybody = simulation.federation.honest, set(simulation.cohort.nodes)
    for name, expected in (
        (ArmName.ORACLE, honest),
        (ArmName.MEAN, everybody),
        (ArmName.MEAN_EQUAL, everybody),
        (ArmName.CENTRALISED, everybody),
    ):
        assert set(decided(simulation, name, tmp_path).shares) == expected
    assert set(decided(simulation, ArmName.MATL, tmp_path).shares) == everybody


def test_fedavg_as_in_the_tutorial_is_the_plain_mean(digits: Images, tmp_path: Path) -> None:
    simulation = prepare(digits, study(), seed=0)
    base = simulation.learner.initial()
    sent = trained(simulation, base).sent
    found = decided(simulation, ArmName.MEAN_EQUAL, tmp_path).base
    assert found is not None
    np.testing.assert_allclose(found, base + sent.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("recipe", list(Recipe))
def test_matl_compares_profiles_of_heads_alone_and_refuses_missing_noise_in_networks_too(
    digits: Images, tmp_path: Path, recipe: Recipe
) -> None:
    simulation = prepare(digits, private(), seed=3)
    nodes, base = simulation.cohort.nodes, simulation.learner.initial()
    local = trained(simulation, base)
    sent = np.concatenate([local.clean[:1], local.sent[1:]])
    plan = simulation.federation.plan
    plan = replace(plan, training=replace(plan.training, recipe=recipe))
    federation = replace(simulation.federation, plan=plan)
    arm = make_arm(ArmName.MATL, federation, tmp_path, first_model=base)
    arm.decide(closed_round(simulation, sent))
    assert nodes[0] in arm.refused
    parts = [record.components for record in arm.trust if record.node_id not in arm.refused]
    compared = {each is not None and each.profile_z is not None for each in parts}
    assert compared == {recipe is Recipe.HEAD}


def test_a_majority_that_sends_ten_times_too_much_takes_the_model_nowhere_it_should_not_go(
    digits: Images, tmp_path: Path
) -> None:
    loud = {"hostile": {"attack": "scaled_10", "share": 0.6}, "training": {"rounds": 8}}
    accuracies = {}
    for name in (ArmName.ORACLE, ArmName.MEAN, ArmName.MATL):
        (tmp_path / name).mkdir()
        simulation = prepare(digits, study("scaled_10", **loud), seed=1)
        accuracies[name] = run(simulation, name, tmp_path / name).accuracy
    assert accuracies[ArmName.MATL] > accuracies[ArmName.ORACLE] - 0.05
    assert accuracies[ArmName.MEAN] < accuracies[ArmName.ORACLE] - 0.2


def test_nor_does_a_minority_under_a_rule_that_shortens_nothing(
    digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud = {"hostile": {"attack": "scaled_10", "share": 0.45}, "training": {"rounds": 8}}
    simulation = prepare(digits, study("scaled_10", **loud), seed=1)
    by_mean = replace(simulation, federation=replace(simulation.federation, rule="weighted_mean"))
    reaches = []
    close = Coordinator.close_round

    def closed(
        coordinator: Coordinator, updates: Mapping[NodeId, np.ndarray], *, nonce: bytes = b""
    ) -> Closed:
        before = coordinator.model(coordinator.base)
        found = close(coordinator, updates, nonce=nonce)
        rnd = found.round
        change = coordinator.model(coordinator.base) - before
        aggregate = sum(each.weight * updates[each.node_id] for each in rnd.weights)
        np.testing.assert_allclose(change, rnd.reach * aggregate, rtol=1e-2, atol=1e-5)
        reaches.append(rnd.reach)
        return found

    monkeypatch.setattr(Coordinator, "close_round", closed)
    accuracies = {}
    for name in (ArmName.ORACLE, ArmName.MATL):
        (tmp_path / name).mkdir()
        accuracies[name] = run(by_mean, name, tmp_path / name).accuracy
    assert min(reaches) < 1.0
    assert accuracies[ArmName.MATL] > accuracies[ArmName.ORACLE] - 0.05


def test_values_that_are_not_finite_are_refused_in_every_arm_and_never_reach_the_model(
    digits: Images, tmp_path: Path
) -> None:
    simulation = prepare(digits, study("nan"), seed=1)
    for name in (ArmName.MATL, ArmName.MATL_PEERS, ArmName.MEAN, ArmName.MEDIAN):
        (tmp_path / name).mkdir()
        found = run(simulation, name, tmp_path / name)
        assert found.hostile_excluded == 1.0, name
        assert found.hostile_weight == 0.0, name
        assert np.isfinite(found.accuracy), name
        assert found.held_rounds == 0, name


def test_a_rule_that_is_left_too_few_updates_holds_the_round(
    digits: Images, tmp_path: Path
) -> None:
    simulation = prepare(digits, study(), seed=0)
    arm = make_arm(
        ArmName.BULYAN, simulation.federation, tmp_path, first_model=simulation.learner.initial()
    )
    sent = np.tile(simulation.learner.initial(), (20, 1))
    closed = closed_round(simulation, sent)
    few = dict(list(closed.updates.items())[:1])
    decision = arm.decide(replace(closed, updates=few))
    assert decision.base is None
    assert not decision.shares


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (ArmName.MEAN, []),
        (ArmName.MATL, []),
        (ArmName.FLTRUST, ["root_update"] * 3),
        (ArmName.CENTRALISED, ["pooled_update"] * 3),
    ],
)
def test_what_only_some_rules_look_at_is_trained_for_them_alone_and_once_a_round(
    digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: ArmName, what: list[str]
) -> None:
    # Whose attackers ask for the rule's aggregate again and again.
    simulation = prepare(digits, study("optimal_ipm"), seed=3)
    found: list[str] = []
    for each in ("root_update", "pooled_update"):
        of_learner = getattr(simulation.learner, each)

        def counted(
            base: Any, *, round_number: int, each: str = each, own: Any = of_learner
        ) -> Any:
            found.append(each)
            return own(base, round_number=round_number)

        monkeypatch.setattr(simulation.learner, each, counted)
    run(simulation, name, tmp_path)
    assert found == what


@pytest.mark.parametrize(
    ("attack", "name", "spared"),
    [
        ("alie", ArmName.MEAN, True),
        ("sign_flip_5", ArmName.MEAN, False),
        ("none", ArmName.MEAN, False),
        ("alie", ArmName.ORACLE, False),
    ],
)
def test_attackers_train_unless_they_send_what_owes_nothing_to_it(
    digits: Images, tmp_path: Path, attack: str, name: ArmName, *, spared: bool
) -> None:
    asked: list[list[int]] = []

    def trainer(learner: Learner, base: Any, number: int, whose: Sequence[int]) -> LocalUpdates:
        asked.append(list(whose))
        return in_blocks(learner, base, number, whose)

    simulation = prepare(digits, study(attack), seed=3, trainer=trainer)
    run(simulation, name, tmp_path)
    honest = [int(each) for each in np.flatnonzero(~simulation.cohort.hostile)]
    assert asked == [honest if spared else list(range(20))] * 3


@pytest.mark.parametrize("name", [ArmName.MATL, ArmName.FLTRUST])
@pytest.mark.parametrize("asked", [study("mimic"), private("mimic"), private("hub")])
def test_attackers_who_are_spared_training_do_what_they_did_with_it(
    digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Study, name: ArmName
) -> None:
    attack = asked.hostile.attack
    found = []
    for trains in (False, True):
        entry = replace(ATTACKS[attack], trains=trains)
        monkeypatch.setattr(federation, "ATTACKS", {attack: entry})
        folder = tmp_path / str(trains)
        folder.mkdir()
        found.append(run(prepare(digits, asked, seed=3), name, folder))
    assert repr(found[0]) == repr(found[1])
    assert found[0].hostile_weight is not None


def test_detection_is_the_first_round_after_the_last_in_which_an_attacker_counted() -> None:
    a, b, bad = NodeId("a"), NodeId("b"), NodeId("bad")
    rounds = [
        (1, {a: 0.5, b: 0.0, bad: 0.5}),
        (2, {a: 1.0}),
        (3, {}),
        (4, {a: 0.9, bad: 0.1}),
        (5, {a: 0.5, b: 0.5}),
        (6, {a: 0.5, b: 0.5}),
    ]
    found = weighed(rounds, honest=[a, b], hostile=[bad])
    assert found.detected_in == 5
    assert found.longest_honest_exclusion == 4, "who is held waits too"
    assert found.hostile_weight == pytest.approx(0.6 / 5)
    assert found.hostile_weightless == pytest.approx(3 / 5)
    assert found.honest_weightless == pytest.approx(5 / 12)
    assert weighed(rounds[:4], honest=[a], hostile=[bad]).detected_in is None
    assert weighed(rounds, honest=[a], hostile=[]).hostile_weight is None


def test_a_study_of_held_rounds_says_nothing_of_attackers_and_that_the_honest_waited() -> None:
    a, bad = NodeId("a"), NodeId("bad")
    found = weighed([(1, {}), (2, {})], honest=[a], hostile=[bad])
    assert (found.hostile_weight, found.hostile_weightless, found.detected_in) == (None,) * 3
    assert (found.honest_weightless, found.longest_honest_exclusion) == (1.0, 2)
