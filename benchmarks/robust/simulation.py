"""One study under one attack, from the first round to the released model.

The order of a round is the product's: training, admission, judgement, aggregation. Hospitals
draw the same batches and the same noise whoever aggregates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.robust.arms import Arm, ArmName, Federation, RoundInput
from benchmarks.robust.cohort import Cohort, Mix, Setting, split_images
from benchmarks.robust.datasets import CLASSES, DataSet, Float32Array, Images
from benchmarks.robust.learners import (
    HeadLearner,
    HeadRecipe,
    Learner,
    LocalUpdates,
    NetworkLearner,
    NetworkRecipe,
)
from matl.attacks import (
    ATTACKS,
    Aggregate,
    AttackEntry,
    Honest,
    Knowledge,
    Profile,
    Room,
    Rows,
    Samples,
    with_promised_noise,
    with_trigger,
)
from matl_common.ids import NodeId
from matl_coordinator.core.admission import Contents, check_contents
from matl_coordinator.core.judgement import Enrolment
from matl_coordinator.core.robust.root import RootRow, update_noise_std
from matl_coordinator.scoring.split import Split, split_holdout

NO_ATTACK: Final = "none"
"""Every hospital is honest: whom does the rule exclude then?"""
FOLDS: Final = 4
BACKDOOR_TARGET: Final = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Shares are of hospitals, or of hospital-rounds."""

    data_set: str
    members: int
    byzantine: int
    mix: str
    private: bool
    seed: int
    attack: str
    arm: str
    accuracy: float
    """Of the released model on the test images, as a fraction."""
    worst_silo: float
    """Least, over honest hospitals, of the test accuracy with that hospital's class mix."""
    backdoor_success: float | None
    """Share of triggered test images taken for the target; None without a trigger."""
    held_rounds: int
    rounds: int
    hostile_excluded: float | None
    """At the end: in quarantine or refused. None where nobody is hostile."""
    honest_excluded: float
    hostile_weightless: float | None
    """Of the hostile hospital-rounds that were not held, those that counted for nothing."""
    honest_weightless: float
    trust: Mapping[str, float]
    """At the end, for reading; hostile hospitals are marked with a star."""


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """A split with its learner, as one attack finds it."""

    setting: Setting
    attack: str
    cohort: Cohort
    learner: Learner
    rounds: int
    federation: Federation

    @property
    def entry(self) -> AttackEntry | None:
        return None if self.attack == NO_ATTACK else ATTACKS[self.attack]


def prepare(images: Images, setting: Setting, attack: str) -> Study:
    """Deal the images out, poison those of the attackers, and enrol everybody."""
    cohort, learner = _unharmed(images, setting)
    entry = None if attack == NO_ATTACK else ATTACKS[attack]
    if entry is None:
        cohort = replace(cohort, hostile=np.zeros(setting.members, dtype=np.bool_))
    elif entry.poison is not None:
        cohort = _poisoned(cohort, entry, seed=setting.seed)
        learner = _learner(cohort, setting)
    federation = Federation(
        plan=learner.plan,
        enrolled=_enrolled(cohort, entry),
        byzantine=setting.byzantine,
        honest=frozenset(
            node for node, bad in zip(cohort.nodes, cohort.hostile, strict=True) if not bad
        ),
    )
    rounds = HeadRecipe().rounds if setting.private else NetworkRecipe().rounds
    return Study(setting, attack, cohort, learner, rounds, federation)


# Most attacks of a setting find the same images; the setting after it does not.
@lru_cache(maxsize=1)
def _unharmed(images: Images, setting: Setting) -> tuple[Cohort, Learner]:
    cohort = split_images(images, setting)
    return cohort, _learner(cohort, setting)


def _learner(cohort: Cohort, setting: Setting) -> Learner:
    if setting.private:
        return HeadLearner(cohort, seed=setting.seed, recipe=HeadRecipe())
    return NetworkLearner(cohort, seed=setting.seed, recipe=NetworkRecipe())


def run(study: Study, name: ArmName, folder: Path) -> Outcome:
    """Carry one study out under one rule."""
    return run_under(study, Arm(name, study.federation, folder))


def run_under(study: Study, arm: Arm) -> Outcome:
    """Carry one study out under one coordinator, which has seen nothing yet."""
    split = split_holdout(study.cohort.root_labels, folds=FOLDS)
    base = study.learner.initial()
    previous: Float32Array | None = None
    held = 0
    weightless: list[frozenset[NodeId]] = []
    for number in range(1, study.rounds + 1):
        closed = _closed(study, arm, split, base, previous=previous, number=number)
        decision = arm.decide(closed)
        previous = decision.aggregate
        if decision.aggregate is None:
            held += 1
        else:
            base = base + decision.aggregate
            weightless.append(decision.weightless)
    return _outcome(study, arm, base, held=held, weightless=weightless)


def _closed(
    study: Study,
    arm: Arm,
    split: Split,
    base: Float32Array,
    *,
    previous: Float32Array | None,
    number: int,
) -> RoundInput:
    """Everything up to the end of admission."""
    root_rows = [RootRow(f"root-{c}-{k}", c, k, len(rows)) for (c, k), rows in split.folds.items()]
    root_values = {
        row.name: study.learner.descent(base, split.folds[row.class_index, row.fold])
        for row in root_rows
    }
    opened = RoundInput(
        number=number,
        updates={},
        violations={},
        root=root_rows,
        root_values=root_values,
        root_update=study.learner.root_update(base, round_number=number),
        loss_improvement={},
    )
    local = study.learner.train(base, round_number=number)
    sent = _sent(study, arm, local, opened, previous=previous)
    updates, violations = _admitted(study, sent)
    nodes = list(updates)
    improvement: dict[NodeId, float] = {}
    if arm.name is ArmName.MATL and nodes:
        rows = np.stack([np.zeros_like(base), *updates.values()])
        losses = study.learner.root_losses(base, rows, split.validation)
        improvement = dict(zip(nodes, (losses[0] - losses[1:]).tolist(), strict=True))
    return replace(opened, updates=updates, violations=violations, loss_improvement=improvement)


def _sent(
    study: Study,
    arm: Arm,
    local: LocalUpdates,
    opened: RoundInput,
    *,
    previous: Float32Array | None,
) -> dict[NodeId, Float32Array]:
    sent = dict(zip(study.cohort.nodes, local.sent, strict=True))
    entry = study.entry
    if entry is None or arm.name is ArmName.ORACLE:
        return sent
    hostile = study.cohort.hostile
    sent_by, trained = local.sent.astype(np.float64), local.clean.astype(np.float64)
    known = Honest(
        updates=sent_by[~hostile],
        own=trained[hostile],
        round=opened.number,
        previous=None if previous is None else previous.astype(np.float64),
        signals=trained[~hostile] if study.setting.private else None,
        noise_std=_promised(study) if study.setting.private else None,
        root=np.mean(list(opened.root_values.values()), axis=0, dtype=np.float64),
    )
    if Knowledge.AGGREGATE in entry.needs:
        known = replace(known, aggregate=_rule_under_attack(study, arm, opened))
    craft = entry.craft
    if study.setting.private and entry.room is not Room.PRIVATE:
        craft = with_promised_noise(craft)
    draws = np.random.default_rng([study.setting.seed, 4, opened.number])
    with np.errstate(over="ignore", invalid="ignore"):
        rows = craft(known, draws).astype(np.float32)
    names = [node for node, bad in zip(study.cohort.nodes, hostile, strict=True) if bad]
    return sent | dict(zip(names, rows, strict=True))


def _rule_under_attack(study: Study, arm: Arm, opened: RoundInput) -> Aggregate:
    hostile = study.cohort.hostile
    order = [study.cohort.nodes[i] for i in (*np.flatnonzero(~hostile), *np.flatnonzero(hostile))]

    def aggregate(rows: Rows) -> Rows:
        updates = dict(zip(order, rows.astype(np.float32), strict=True))
        return arm.guess(updates, opened).astype(np.float64)

    return aggregate


def _promised(study: Study) -> Rows:
    plan = study.federation.plan
    return np.array(
        [
            update_noise_std(
                plan.training, plan.privacy, patients=study.federation.enrolled[node].patients
            )
            for node, bad in zip(study.cohort.nodes, study.cohort.hostile, strict=True)
            if bad
        ]
    )


def _admitted(
    study: Study, sent: Mapping[NodeId, Float32Array]
) -> tuple[dict[NodeId, Float32Array], dict[NodeId, str]]:
    """The product's look at the contents of every update."""
    updates, violations = {}, {}
    for node, update in sent.items():
        finite = np.isfinite(update)
        wide = np.where(finite, update, 0.0).astype(np.float64)
        contents = Contents(non_finite=int((~finite).sum()), norm=float(np.linalg.norm(wide)))
        refusal = check_contents(
            contents,
            plan=study.federation.plan,
            enrolled_patients=study.federation.enrolled[node].patients,
        )
        if refusal is None:
            updates[node] = update
        else:
            violations[node] = f"its update was refused: {refusal.reason}"
    return updates, violations


def _poisoned(cohort: Cohort, entry: AttackEntry, *, seed: int) -> Cohort:
    poison = entry.poison
    if poison is None:
        return cohort
    values, labels = cohort.values.copy(), cohort.labels.copy()
    for number in np.flatnonzero(cohort.hostile):
        rows = cohort.members[number]
        draws = np.random.default_rng([seed, 5, int(number)])
        bad = poison(Samples(_squares(values[rows]), labels[rows], CLASSES), draws)
        values[rows], labels[rows] = bad.images.reshape(len(rows), -1), bad.labels
    return replace(cohort, values=values, labels=labels)


def _squares(values: Float32Array) -> Float32Array:
    side = round(values.shape[1] ** 0.5)
    return values.reshape(len(values), side, side)


def _enrolled(cohort: Cohort, entry: AttackEntry | None) -> dict[NodeId, Enrolment]:
    enrolled = {}
    for number, node in enumerate(cohort.nodes):
        profile = Profile(cohort.patients[number], cohort.label_shares[number])
        if entry is not None and entry.claim is not None and cohort.hostile[number]:
            profile = entry.claim(profile)
        enrolled[node] = Enrolment(profile.patients, profile.label_shares)
    return enrolled


def _outcome(
    study: Study,
    arm: Arm,
    base: Float32Array,
    *,
    held: int,
    weightless: list[frozenset[NodeId]],
) -> Outcome:
    cohort, setting = study.cohort, study.setting
    right = study.learner.predict(base, cohort.test_values) == cohort.test_labels
    recall = np.array([right[cohort.test_labels == c].mean() for c in range(CLASSES)])
    honest = [node for node in cohort.nodes if node in study.federation.honest]
    hostile = [node for node in cohort.nodes if node not in study.federation.honest]
    silos = [np.dot(cohort.label_shares[cohort.nodes.index(node)], recall) for node in honest]
    excluded = arm.excluded()

    def share(nodes: list[NodeId]) -> float:
        return len(excluded.intersection(nodes)) / len(nodes)

    def silent(nodes: list[NodeId]) -> float:
        counted = len(nodes) * max(1, len(weightless))
        return sum(len(each.intersection(nodes)) for each in weightless) / counted

    return Outcome(
        data_set=setting.data_set,
        members=setting.members,
        byzantine=setting.byzantine,
        mix=setting.mix,
        private=setting.private,
        seed=setting.seed,
        attack=study.attack,
        arm=arm.name,
        accuracy=float(right.mean()),
        worst_silo=float(min(silos)),
        backdoor_success=_backdoor_success(study, base),
        held_rounds=held,
        rounds=study.rounds,
        hostile_excluded=share(hostile) if hostile else None,
        honest_excluded=share(honest),
        hostile_weightless=silent(hostile) if hostile else None,
        honest_weightless=silent(honest),
        trust={
            f"{record.node_id}{'' if record.node_id in honest else '*'}": round(record.trust, 3)
            for record in arm.trust
        },
    )


def _backdoor_success(study: Study, base: Float32Array) -> float | None:
    if study.attack != "replacement":
        return None
    cohort = study.cohort
    others = cohort.test_labels != BACKDOOR_TARGET
    images = with_trigger(_squares(cohort.test_values[others]), brightest=1.0)
    found = study.learner.predict(base, images.reshape(len(images), -1))
    return float((found == BACKDOOR_TARGET).mean())


def settings_of(
    data_set: DataSet, *, seeds: int, privacy: tuple[bool, ...] = (False, True)
) -> list[Setting]:
    """Every federation of a data set."""
    return [
        Setting(data_set, members, byzantine, mix, private, seed)
        for private in privacy
        for members, byzantine in ((20, 9), (5, 2))
        for mix in Mix
        for seed in range(seeds)
    ]
