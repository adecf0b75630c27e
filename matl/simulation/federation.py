"""One study under one attack, from the first round to the released model.

The order of a round is the product's: training, admission, judgement, aggregation. Hospitals
draw the same batches and the same noise whoever aggregates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Final

import numpy as np

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
from matl.simulation.arms import Arm, Federation, RoundInput, excluded_by, make_arm
from matl.simulation.cohort import Cohort, hostile_of, split_images
from matl.simulation.coordinator import refusal_of
from matl.simulation.datasets import Float32Array, Images
from matl.simulation.learners import Descents, Learner, LocalUpdates, make_learner
from matl.simulation.outcome import Outcome, score, weighed
from matl.simulation.parts import Trainer, in_blocks
from matl.simulation.study import ArmName, Coordinator, Hostile, Study
from matl_common.ids import NodeId
from matl_coordinator.core.judgement import Enrolment
from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.registry import DEFAULT_RULE
from matl_coordinator.core.robust.root import RootRow, update_noise_std
from matl_coordinator.scoring.beyond import train_alike
from matl_coordinator.scoring.split import Split, split_holdout

FOLDS: Final = 4
BACKDOOR_TARGET: Final = 0


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """A split with its learner, as the study's attack finds it."""

    study: Study
    seed: int
    cohort: Cohort
    learner: Learner
    federation: Federation
    trainer: Trainer

    @property
    def entry(self) -> AttackEntry | None:
        return ATTACKS.get(self.study.hostile.attack)


def prepare(images: Images, study: Study, *, seed: int, trainer: Trainer = in_blocks) -> Simulation:
    """Deal the images out, poison those of the attackers, and enrol everybody.

    Args:
        images: the study's data set.
        study: what is simulated.
        seed: of all that is drawn.
        trainer: who trains the hospitals.

    Raises:
        ConfigurationError: the study asks for more than the images give.
    """
    calm = study.model_copy(update={"hostile": Hostile(), "coordinator": Coordinator()})
    cohort, learner = _unharmed(images, calm, seed)
    entry = ATTACKS.get(study.hostile.attack)
    if entry is not None:
        cohort = replace(cohort, hostile=hostile_of(study, seed=seed))
        if entry.poison is not None:
            cohort = _poisoned(cohort, entry, seed=seed)
            learner = make_learner(cohort, study, seed=seed)
    federation = Federation(
        plan=learner.plan,
        enrolled=_enrolled(cohort, entry, class_mixes=study.coordinator.class_mixes),
        byzantine=study.byzantine,
        honest=frozenset(
            node for node, bad in zip(cohort.nodes, cohort.hostile, strict=True) if not bad
        ),
        rule=study.coordinator.rule or DEFAULT_RULE,
    )
    return Simulation(study, seed, cohort, learner, federation, trainer)


def run(simulation: Simulation, name: ArmName, folder: Path) -> Outcome:
    """Carry one study out under one rule; ``folder`` exists and is empty."""
    first = simulation.learner.initial()
    arm = make_arm(name, simulation.federation, folder, first_model=first)
    return run_under(simulation, arm)


def run_under(simulation: Simulation, arm: Arm) -> Outcome:
    """Carry one study out under one coordinator, which has seen nothing yet."""
    split = split_holdout(simulation.cohort.root_labels, folds=FOLDS)
    base = simulation.learner.initial()
    previous: Float32Array | None = None
    shares: list[tuple[int, Mapping[NodeId, float]]] = []
    for number in range(1, simulation.study.training.rounds + 1):
        closed = _closed(simulation, arm, split, base, previous=previous, number=number)
        decision = arm.decide(closed)
        previous = None
        if decision.base is not None:
            previous, base = decision.base - base, decision.base
        shares.append((number, decision.shares if decision.base is not None else {}))
    return _outcome(simulation, arm, shares)


def _closed(
    simulation: Simulation,
    arm: Arm,
    split: Split,
    base: Float32Array,
    *,
    previous: Float32Array | None,
    number: int,
) -> RoundInput:
    """Everything up to the end of admission."""
    learner = simulation.learner
    root_rows = [RootRow(f"root-{c}-{k}", c, k, len(rows)) for (c, k), rows in split.folds.items()]
    opened = RoundInput(
        number=number,
        base=base,
        sent={},
        updates={},
        violations={},
        root=root_rows,
        descent=partial(_descent, learner, split, base),
        root_update=cache(partial(learner.root_update, base, round_number=number)),
        pooled_update=cache(partial(learner.pooled_update, base, round_number=number)),
        loss_improvement={},
        losses_before=np.empty(0),
        losses=lambda update: learner.root_losses(base, update[None], split.validation)[0],
    )
    if arm.name is ArmName.CENTRALISED:
        return opened
    local = _trained(simulation, arm, base, number)
    sent = _sent(simulation, arm, local, opened, previous=previous)
    updates, violations = _admitted(simulation, sent)
    nodes = list(updates)
    closed = replace(opened, sent=sent, updates=updates, violations=violations)
    if arm.name is not ArmName.MATL or not nodes:
        return closed
    rows = np.stack([np.zeros_like(base), *updates.values()])
    losses = learner.root_losses(base, rows, split.validation)
    means = losses.mean(axis=1)
    improvement = dict(zip(nodes, (means[0] - means[1:]).tolist(), strict=True))
    return replace(closed, loss_improvement=improvement, losses_before=losses[0])


def _descent(
    learner: Learner, split: Split, base: Float32Array, part: RootRow, step: Float32Array | None
) -> Float32Array:
    rows = split.folds[part.class_index, part.fold]
    return learner.descent(base if step is None else base + step, rows)


def _crafts(simulation: Simulation, arm: Arm) -> AttackEntry | None:
    """The attack on updates; None where everybody sends what he trained.

    So do attackers under the oracle: it counts none of them, and says whom admission refuses.
    """
    is_attacked = arm.name is not ArmName.ORACLE and simulation.cohort.hostile.any()
    return simulation.entry if is_attacked else None


def _trained(simulation: Simulation, arm: Arm, base: Float32Array, number: int) -> LocalUpdates:
    """One round at all hospitals; NaN at attackers who look at nothing that they would train."""
    learner, hostile = simulation.learner, simulation.cohort.hostile
    entry = _crafts(simulation, arm)
    if entry is None or entry.trains:
        return simulation.trainer(learner, base, number, range(len(hostile)))
    honest = np.flatnonzero(~hostile)
    found = simulation.trainer(learner, base, number, [int(each) for each in honest])
    sent = np.full((len(hostile), len(base)), np.nan, dtype=np.float32)
    clean = sent if found.clean is found.sent else sent.copy()
    sent[honest], clean[honest] = found.sent, found.clean
    return LocalUpdates(sent, clean)


def _sent(
    simulation: Simulation,
    arm: Arm,
    local: LocalUpdates,
    opened: RoundInput,
    *,
    previous: Float32Array | None,
) -> dict[NodeId, Float32Array]:
    cohort, is_private = simulation.cohort, simulation.study.is_private
    sent = dict(zip(cohort.nodes, local.sent, strict=True))
    entry = _crafts(simulation, arm)
    if entry is None:
        return sent
    hostile = cohort.hostile
    sent_by, trained = local.sent.astype(np.float64), local.clean.astype(np.float64)
    known = Honest(
        updates=sent_by[~hostile],
        own=trained[hostile],
        round=opened.number,
        previous=None if previous is None else previous.astype(np.float64),
        signals=trained[~hostile] if is_private else None,
        noise_std=_promised(simulation) if is_private else None,
    )
    if Knowledge.ROOT in entry.needs:
        downhill = [opened.descent(part, None) for part in opened.root]
        known = replace(known, root=np.mean(downhill, axis=0, dtype=np.float64))
    if Knowledge.AGGREGATE in entry.needs:
        known = replace(known, aggregate=_rule_under_attack(simulation, arm, opened))
    if Knowledge.CLASSES in entry.needs:
        who = [int(number) for number in np.flatnonzero(hostile)]
        descents = simulation.learner.class_descents(who)
        # Where the coordinator looks: at both ends of the step that the honest would take.
        ends = opened.base, opened.base + known.mean.astype(np.float32)
        found = [descents(each) for each in ends]
        known = replace(known, class_gradients=np.concatenate(found).astype(np.float64))
        if Knowledge.TRAINING in entry.needs:
            moved = _trained_alike(simulation, opened.base, descents)
            known = replace(known, class_training=moved.astype(np.float64))
    craft = entry.craft
    if is_private and entry.room is not Room.PRIVATE:
        craft = with_promised_noise(craft)
    draws = np.random.default_rng([simulation.seed, 4, opened.number])
    with np.errstate(over="ignore", invalid="ignore"):
        rows = craft(known, draws).astype(np.float32)
    names = [node for node, bad in zip(cohort.nodes, hostile, strict=True) if bad]
    return sent | dict(zip(names, rows, strict=True))


def _trained_alike(simulation: Simulation, base: Float32Array, descents: Descents) -> Float32Array:
    """What the coordinator trains to compare with, on the attackers' patients."""
    training = simulation.learner.plan.training
    return train_alike(
        lambda moved: descents(base if moved is None else base + moved),
        steps=training.steps_per_round,
        learning_rate=training.learning_rate,
    )


def _rule_under_attack(simulation: Simulation, arm: Arm, opened: RoundInput) -> Aggregate:
    hostile, nodes = simulation.cohort.hostile, simulation.cohort.nodes
    order = [nodes[i] for i in (*np.flatnonzero(~hostile), *np.flatnonzero(hostile))]

    def aggregate(rows: Rows) -> Rows:
        # An attacker who knows the rule knows what is refused before it.
        updates, _ = _admitted(simulation, dict(zip(order, rows.astype(np.float32), strict=True)))
        try:
            return arm.guess(updates, opened).astype(np.float64)
        except AggregationError:
            # Too few are left for the rule, and a round that is held moves nothing.
            return np.zeros(rows.shape[1])

    return aggregate


def _promised(simulation: Simulation) -> Rows:
    plan, enrolled = simulation.federation.plan, simulation.federation.enrolled
    return np.array(
        [
            update_noise_std(plan.training, plan.privacy, patients=enrolled[node].patients)
            for node, bad in zip(simulation.cohort.nodes, simulation.cohort.hostile, strict=True)
            if bad
        ]
    )


def _admitted(
    simulation: Simulation, sent: Mapping[NodeId, Float32Array]
) -> tuple[dict[NodeId, Float32Array], dict[NodeId, str]]:
    """The product's look at the contents of every update."""
    updates, violations = {}, {}
    plan, enrolled = simulation.federation.plan, simulation.federation.enrolled
    for node, update in sent.items():
        refusal = refusal_of(update, plan=plan, patients=enrolled[node].patients)
        if refusal is None:
            updates[node] = update
        else:
            violations[node] = f"its update was refused: {refusal.reason}"
    return updates, violations


# The study after it finds other images.
@lru_cache(maxsize=1)
def _unharmed(images: Images, calm: Study, seed: int) -> tuple[Cohort, Learner]:
    cohort = split_images(images, calm, seed=seed)
    return cohort, make_learner(cohort, calm, seed=seed)


def _poisoned(cohort: Cohort, entry: AttackEntry, *, seed: int) -> Cohort:
    poison = entry.poison
    if poison is None:
        return cohort
    values, labels = cohort.values.copy(), cohort.labels.copy()
    members = list(cohort.members)
    for number in np.flatnonzero(cohort.hostile):
        rows = members[number]
        draws = np.random.default_rng([seed, 5, int(number)])
        bad = poison(Samples(_squares(values[rows]), labels[rows], cohort.classes), draws)
        values[rows], labels[rows] = bad.images.reshape(len(rows), -1), bad.labels
    return replace(cohort, values=values, labels=labels)


def _squares(values: Float32Array) -> Float32Array:
    """Pixels as pictures; rows of features as pictures one pixel high."""
    side = round(values.shape[1] ** 0.5)
    if side**2 != values.shape[1]:
        return values[:, None]
    return values.reshape(len(values), side, side)


def _enrolled(
    cohort: Cohort, entry: AttackEntry | None, *, class_mixes: bool
) -> dict[NodeId, Enrolment]:
    enrolled = {}
    for number, node in enumerate(cohort.nodes):
        profile = Profile(cohort.patients[number], cohort.label_shares[number])
        if entry is not None and entry.claim is not None and cohort.hostile[number]:
            profile = entry.claim(profile)
        enrolled[node] = Enrolment(profile.patients, profile.label_shares if class_mixes else None)
    return enrolled


def _outcome(
    simulation: Simulation, arm: Arm, shares: list[tuple[int, Mapping[NodeId, float]]]
) -> Outcome:
    cohort, study = simulation.cohort, simulation.study
    model = arm.released()
    guesses = simulation.learner.predict(model, cohort.test_values)
    scores = score(cohort.test_labels, guesses, classes=cohort.classes, ordered=cohort.ordered)
    honest = [node for node in cohort.nodes if node in simulation.federation.honest]
    hostile = [node for node in cohort.nodes if node not in simulation.federation.honest]
    silos = [np.dot(cohort.label_shares[cohort.nodes.index(n)], scores.recall) for n in honest]
    excluded = excluded_by(arm)
    said = weighed(shares, honest=honest, hostile=hostile)
    released = sum(bool(each) for _, each in shares)
    return Outcome(
        data_set=study.data.set,
        members=study.members,
        byzantine=study.byzantine,
        hostile=len(hostile),
        mix=study.mix_name,
        epsilon=study.privacy.epsilon,
        seed=simulation.seed,
        attack=study.hostile.attack,
        arm=arm.name,
        accuracy=scores.accuracy,
        balanced_accuracy=scores.balanced_accuracy,
        kappa=scores.kappa,
        worst_silo=float(min(silos)),
        site_accuracy=tuple(
            float((simulation.learner.predict(model, cohort.values[rows]) == labels).mean())
            for rows in cohort.site_tests
            for labels in [cohort.true_labels[rows]]
        ),
        backdoor_success=_backdoor_success(simulation, model) if released else None,
        held_rounds=study.training.rounds - released,
        rounds=study.training.rounds,
        hostile_excluded=len(excluded.intersection(hostile)) / len(hostile) if hostile else None,
        honest_excluded=len(excluded.intersection(honest)) / len(honest),
        hostile_weightless=said.hostile_weightless,
        honest_weightless=said.honest_weightless,
        hostile_weight=said.hostile_weight,
        detected_in=said.detected_in,
        longest_honest_exclusion=said.longest_honest_exclusion,
        trust={
            f"{record.node_id}{'' if record.node_id in honest else '*'}": round(record.trust, 3)
            for record in arm.trust
        },
    )


def _backdoor_success(simulation: Simulation, model: Float32Array) -> float | None:
    if simulation.study.hostile.attack not in {"replacement", "backdoor"}:
        return None
    cohort = simulation.cohort
    others = cohort.test_labels != BACKDOOR_TARGET
    images = with_trigger(_squares(cohort.test_values[others]), brightest=1.0)
    found = simulation.learner.predict(model, images.reshape(len(images), -1))
    return float((found == BACKDOOR_TARGET).mean())
