"""Who aggregates: the product's coordinator, a rule by itself, and two that know more.

Every decision is the product's: admission, trust, weights, rules, both passes over files.
Nothing here restates a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from matl.simulation.coordinator import Coordinator
from matl.simulation.datasets import Float32Array
from matl.simulation.study import ArmName
from matl_common.ids import Digest, NodeId, digest_of_file
from matl_common.modes import MATLMode
from matl_common.protocol import Recipe, StudyPlan, TrainingPlan
from matl_common.tensors import read_trainable
from matl_coordinator.aggregation import Row, aggregate_chunks, measure
from matl_coordinator.core.averaging import models_before
from matl_coordinator.core.claim import claimed_tolerance
from matl_coordinator.core.judgement import Enrolment
from matl_coordinator.core.robust.dominance import update_signal_bound
from matl_coordinator.core.robust.gram import (
    PREVIOUS_AGGREGATE,
    AggregationError,
    Gram,
    Needs,
    PrivacyNoise,
)
from matl_coordinator.core.robust.registry import (
    DEFAULT_RULE,
    Aggregator,
    Choice,
    make_aggregator,
)
from matl_coordinator.core.robust.root import BEYOND_ROW, RootRow, update_noise_std
from matl_coordinator.core.robust.sizes import size_cap
from matl_coordinator.core.rounds import NodeWeight
from matl_coordinator.core.trust_record import TrustRecord, TrustState
from matl_coordinator.ports import BeyondRow, HoldoutReport, RootGradient
from matl_coordinator.scoring.beyond import beyond_gradients
from matl_coordinator.scoring.path import common_step, descent_along
from matl_coordinator.scoring.reach import Float64Array, Losses, try_change, try_step
from matl_coordinator.service.judging import Verdict

ROOT_UPDATE: Final = "root-update"

_RULES: Final[Mapping[ArmName, tuple[str, str | None]]] = {
    ArmName.ORACLE: ("weighted_mean", None),
    ArmName.MEAN: ("weighted_mean", None),
    ArmName.MEAN_EQUAL: ("weighted_mean", None),
    ArmName.MEDIAN: ("coordinate_median", None),
    ArmName.TRIMMED_MEAN: ("trimmed_mean", None),
    ArmName.KRUM: ("krum", None),
    ArmName.MULTI_KRUM: ("multi_krum", None),
    ArmName.BULYAN: ("bulyan", None),
    ArmName.NNM_GM: ("geometric_median", "nnm"),
    ArmName.FLTRUST: ("fltrust", None),
}
_TRUSTED: Final = {ArmName.MATL: MATLMode.MODE1, ArmName.MATL_PEERS: MATLMode.MODE0}


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """What the coordinator knows before the first round."""

    plan: StudyPlan
    enrolled: Mapping[NodeId, Enrolment]
    """As claimed: nobody checks, which is the worst case."""
    byzantine: int
    honest: frozenset[NodeId]
    """For the oracle only."""
    rule: str = DEFAULT_RULE


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class RoundInput:
    """What the coordinator has in hand when a round closes."""

    number: int
    base: Float32Array
    sent: Mapping[NodeId, Float32Array]
    """As sent: nobody has looked at them."""
    updates: Mapping[NodeId, Float32Array]
    """Admitted ones."""
    violations: Mapping[NodeId, str]
    """Who was refused for what no honest hospital sends."""
    root: Sequence[RootRow]
    descent: Callable[[RootRow, Float32Array | None], Float32Array]
    """Minus the gradient over that part of the root set, at ``base`` plus an update or without."""
    root_update: Callable[[], Float32Array]
    """What training on the root set gives: FLTrust's server update."""
    pooled_update: Callable[[], Float32Array]
    """What training on all hospitals' true data in one place gives."""
    loss_improvement: Mapping[NodeId, float]
    losses_before: Float64Array
    """Of each image of the holdout set's validation part, at ``base``; empty unless asked for."""
    losses: Losses
    """Of the same, at ``base`` plus a change."""


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What a round came to."""

    base: Float32Array | None
    """What the next round goes on from; None where the round is held."""
    shares: Mapping[NodeId, float]
    """Of the aggregate, as weighed before a rule selects; empty where the round is held."""


class Arm(Protocol):
    """One coordinator; owns what it remembers between rounds and the files of the last one."""

    name: ArmName
    refused: frozenset[NodeId]
    """In the last round."""

    @property
    def trust(self) -> tuple[TrustRecord, ...]:
        """After the last round; empty where nobody keeps any."""
        ...

    def decide(self, closed: RoundInput) -> Decision:
        """Aggregate one round, or hold it."""
        ...

    def guess(self, updates: Mapping[NodeId, Float32Array], root: RoundInput) -> Float32Array:
        """What an attacker that knows the rule and the weights expects; changes nothing."""
        ...

    def released(self) -> Float32Array:
        """The model that counts in the end."""
        ...


def make_arm(
    name: ArmName, federation: Federation, folder: Path, *, first_model: Float32Array
) -> Arm:
    """The coordinator of one arm, with an existing, empty folder for its files."""
    if name in _TRUSTED:
        return TrustedArm(name, federation, folder, first_model=first_model)
    return PlainArm(name, federation, folder, first_model=first_model)


def excluded_by(arm: Arm) -> frozenset[NodeId]:
    """Who is shut out after the last round: in quarantine, or refused in that round."""
    quarantined = {r.node_id for r in arm.trust if r.state is TrustState.QUARANTINED}
    return frozenset(quarantined) | arm.refused


@dataclass(slots=True)
class _Holdout:
    """A ``ports.UpdateScorer`` of the round under way, whose answers were computed before."""

    training: TrainingPlan
    now: RoundInput | None = field(default=None)

    async def root(self, base_model: Digest, *, folder: Path) -> tuple[RootGradient, ...]:
        """As ``ports.UpdateScorer``."""
        return self._rows("root", folder, step=None)

    async def report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        """As ``ports.UpdateScorer``."""
        now = self._closed()
        step = common_step(now.updates.__getitem__, {node: weights[node] for node in updates})
        reach, step = try_step(step, before=now.losses_before, losses=now.losses)
        return HoldoutReport(
            self._rows("path", folder, step=step),
            self._beyond(folder, step),
            {n: now.loss_improvement[n] for n in updates},
            reach,
        )

    async def reach(self, base_model: Digest, candidate: Path) -> float:
        """As ``ports.UpdateScorer``."""
        now = self._closed()
        change = read_trainable(candidate) - now.base
        return try_change(change, before=now.losses_before, losses=now.losses)

    def _beyond(self, folder: Path, step: Float32Array | None) -> BeyondRow | None:
        now, training = self._closed(), self.training
        if training.recipe is Recipe.HEAD:
            # As the product: what its gradients do not explain is mostly a hospital's class mix.
            return None
        values = beyond_gradients(
            {(part.class_index, part.fold): partial(now.descent, part) for part in now.root},
            step,
            steps=training.steps_per_round,
            learning_rate=training.learning_rate,
            before=now.losses_before,
            losses=now.losses,
        )
        if values is None:
            return None
        path = folder / f"{BEYOND_ROW}.f32"
        values.astype("<f4", copy=False).tofile(path)
        return BeyondRow(path, digest_of_file(path))

    def _rows(
        self, kind: str, folder: Path, *, step: Float32Array | None
    ) -> tuple[RootGradient, ...]:
        now, found = self._closed(), []
        for part in now.root:
            row = replace(part, name=f"{kind}-{part.class_index}-{part.fold}")
            path = folder / f"{row.name}.f32"
            values = descent_along(partial(now.descent, part), step)
            values.astype("<f4", copy=False).tofile(path)
            found.append(RootGradient(row, path, digest_of_file(path)))
        return tuple(found)

    def _closed(self) -> RoundInput:
        assert self.now is not None, "a round is under way"
        return self.now


class TrustedArm:
    """The product: ``matl`` with a holdout set, ``matl-mode0`` without."""

    def __init__(
        self,
        name: ArmName,
        federation: Federation,
        folder: Path,
        *,
        first_model: Float32Array,
        weigh: Callable[[Verdict], tuple[NodeWeight, ...]] = lambda verdict: verdict.weights,
    ) -> None:
        self.name = name
        self.refused: frozenset[NodeId] = frozenset()
        mode = _TRUSTED[name]
        members = len(federation.enrolled)
        # Without a holdout set less is claimed, and no more than that may be configured.
        byzantine = min(federation.byzantine, claimed_tolerance(mode, members).f)
        self._rule = _Rule(federation, folder, Choice(federation.rule), None, byzantine=byzantine)
        self._holdout = _Holdout(federation.plan.training)
        self._shares: Mapping[NodeId, float] = capped_sizes(federation)
        self._coordinator = Coordinator(
            federation.plan,
            enrolled=federation.enrolled,
            aggregator=make_aggregator(Choice(federation.rule), f=byzantine),
            byzantine=byzantine,
            first_model=[first_model.astype("<f4").tobytes()],
            folder=folder,
            scorer=self._holdout if mode is MATLMode.MODE1 else None,
            weigh=weigh,
        )

    @property
    def trust(self) -> tuple[TrustRecord, ...]:
        return self._coordinator.trust

    def decide(self, closed: RoundInput) -> Decision:
        """As ``Arm.decide``."""
        self._holdout.now = closed
        before = closed.base
        found = self._coordinator.close_round(closed.sent)
        judged = frozenset() if found.judgement is None else frozenset(found.judgement.refused)
        self.refused = judged | found.round.excluded_nodes
        if not found.is_released:
            return Decision(None, {})
        self._shares = {each.node_id: each.weight for each in found.round.weights}
        base = self.last()
        self._rule.previous = base - before
        return Decision(base, self._shares)

    def guess(self, updates: Mapping[NodeId, Float32Array], root: RoundInput) -> Float32Array:
        """As ``Arm.guess``."""
        return self._rule.aggregate(updates, self._shares, root)

    def last(self) -> Float32Array:
        """The last round's own model, which a released mean may differ from."""
        return self._coordinator.model(self._coordinator.base)

    def released(self) -> Float32Array:
        """As ``Arm.released``."""
        return self._coordinator.model(self._coordinator.released)


class PlainArm:
    """A rule on every admitted update, and the two arms that know more than a coordinator can."""

    def __init__(
        self, name: ArmName, federation: Federation, folder: Path, *, first_model: Float32Array
    ) -> None:
        self.name = name
        self.trust: tuple[TrustRecord, ...] = ()
        self.refused: frozenset[NodeId] = frozenset()
        self._plan = federation.plan
        rule, pre = _RULES.get(name, ("weighted_mean", None))
        self._rule = _Rule(
            federation,
            folder,
            Choice(rule),
            None if pre is None else Choice(pre),
            byzantine=federation.byzantine,
        )
        self._weights = self._fixed_weights(federation)
        self._models = [first_model]

    def decide(self, closed: RoundInput) -> Decision:
        """As ``Arm.decide``."""
        self.refused = frozenset(closed.violations)
        counted = {
            node: self._weights[node] for node in closed.updates if self._weights.get(node, 0) > 0
        }
        if self.name is ArmName.CENTRALISED:
            counted, change = dict(self._weights), closed.pooled_update()
        elif counted:
            try:
                change = self._rule.aggregate(closed.updates, counted, closed)
            except AggregationError:
                # Too few are left for the rule: the product holds such a round.
                return Decision(None, {})
        else:
            return Decision(None, {})
        self._rule.previous = change
        self._models.append(self._models[-1] + change)
        total = sum(counted.values())
        return Decision(self._models[-1], {node: each / total for node, each in counted.items()})

    def guess(self, updates: Mapping[NodeId, Float32Array], root: RoundInput) -> Float32Array:
        """As ``Arm.guess``."""
        return self._rule.aggregate(updates, self._weights, root)

    def released(self) -> Float32Array:
        """As ``Arm.released``: the mean of as many models as the product would take."""
        rounds = len(self._models) - 1
        earlier = models_before(rounds - 1, average_from=self._plan.average_from)
        models = np.stack(self._models[-1 - earlier :])
        mean: Float32Array = models.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean

    def _fixed_weights(self, federation: Federation) -> Mapping[NodeId, float]:
        match self.name:
            case ArmName.ORACLE:
                capped = capped_sizes(federation)
                return {node: capped[node] for node in federation.honest}
            case ArmName.MEAN_EQUAL:
                return dict.fromkeys(federation.enrolled, 1.0)
            case _:
                return {node: float(each.patients) for node, each in federation.enrolled.items()}


def capped_sizes(federation: Federation) -> Mapping[NodeId, float]:
    """What hospitals count for before anybody was judged."""
    patients = {node: each.patients for node, each in federation.enrolled.items()}
    cap = size_cap(list(patients.values()), f=federation.byzantine)
    return {node: float(min(size, cap)) for node, size in patients.items()}


class _Rule:
    """One rule on rows in memory, by both of the product's passes over files."""

    def __init__(
        self,
        federation: Federation,
        folder: Path,
        rule: Choice,
        pre: Choice | None,
        *,
        byzantine: int,
    ) -> None:
        self.previous: Float32Array | None = None
        self._federation = federation
        self._folder = folder
        self._choice = rule
        self._pre = [] if pre is None else [pre]
        self._byzantine = byzantine

    def aggregate(
        self,
        updates: Mapping[NodeId, Float32Array],
        weights: Mapping[NodeId, float],
        closed: RoundInput,
    ) -> Float32Array:
        """Of those updates that count for something; zero where none does."""
        counted = {node: row for node, row in updates.items() if weights.get(node, 0.0) > 0.0}
        if not counted:
            return np.zeros_like(closed.base)
        aggregator = self._aggregator(len(counted))
        extras: dict[str, Float32Array] = {}
        if aggregator.needs.root:
            extras[ROOT_UPDATE] = closed.root_update()
        if aggregator.needs.previous and self.previous is not None:
            extras[PREVIOUS_AGGREGATE] = self.previous
        rows, beside = self._spooled(counted), self._spooled(extras)
        gram = self._measured(rows, beside, aggregator.needs)
        if aggregator.needs.root:
            names = np.array(gram.row_names, dtype=object)
            gram = replace(gram, reference=(names == ROOT_UPDATE).astype(np.float64))
        plan = aggregator(gram.with_weights({node: weights[node] for node in counted}))
        chunks = aggregate_chunks(plan, rows + beside, elements=gram.elements)
        return np.concatenate(list(chunks))

    def _aggregator(self, present: int) -> Aggregator:
        # Refused ones are hostile. A rule that wants more updates than there are tolerates
        # less: it gets the largest f that it accepts.
        f = max(0, self._byzantine - (len(self._federation.enrolled) - present))
        while f > 0 and make_aggregator(self._choice, self._pre, f=f).least_n > present:
            f -= 1
        return make_aggregator(self._choice, self._pre, f=f)

    def _measured(self, rows: Sequence[Row], beside: Sequence[Row], needs: Needs) -> Gram:
        plan = self._federation.plan
        gram = measure(rows, beside, elements=plan.schema.update_elements, needs=needs)
        if plan.privacy.noise_multiplier <= 0.0:
            return gram
        enrolled = self._federation.enrolled
        std = [
            update_noise_std(plan.training, plan.privacy, patients=enrolled[node].patients)
            for node in gram.nodes
        ]
        bound = update_signal_bound(plan.training, plan.privacy)
        return replace(gram, noise=PrivacyNoise(np.array(std), bound))

    def _spooled(
        self, vectors: Mapping[NodeId, Float32Array] | Mapping[str, Float32Array]
    ) -> list[Row]:
        rows = []
        for name, vector in vectors.items():
            path = self._folder / f"{name}.f32"
            vector.astype("<f4", copy=False).tofile(path)
            rows.append(Row(name, path))
        return rows
