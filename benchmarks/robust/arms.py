"""What is compared: MATL's trust with its default rule, other rules, and an oracle.

Every decision is the product's: admission, trust, weights, rules, both passes over files.
Nothing here restates a rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.robust.datasets import Float32Array
from matl_common.ids import NodeId, RoundId
from matl_common.protocol import StudyPlan
from matl_common.tensors import update_views
from matl_coordinator.aggregation import Row, aggregate_chunks, measure
from matl_coordinator.core.compliance import QuietPart, quiet_part
from matl_coordinator.core.judgement import Enrolment, judge_round
from matl_coordinator.core.profile import has_profiles
from matl_coordinator.core.robust.gram import PREVIOUS_AGGREGATE, Gram, Needs, PrivacyNoise
from matl_coordinator.core.robust.registry import (
    DEFAULT_RULE,
    PRE_AGGREGATIONS,
    RULES,
    Aggregator,
    Choice,
    make_aggregator,
)
from matl_coordinator.core.robust.root import RootRow, update_noise_std
from matl_coordinator.core.robust.sizes import size_cap
from matl_coordinator.core.trust_record import TrustRecord, TrustState
from matl_coordinator.service.survey import classifier_of


class ArmName(StrEnum):
    """Who aggregates."""

    ORACLE = "oracle"
    """Knows who is hostile: the others' mean by capped enrolled sizes."""
    MATL = "matl"
    """The product as it is configured by default."""
    MEAN = "mean"
    """Every admitted update, by enrolled size: FedAvg."""
    MEDIAN = "median"
    MULTI_KRUM = "multi-krum"
    NNM_GM = "nnm+gm"
    FLTRUST = "fltrust"


_CHOICES: Final[Mapping[ArmName, tuple[str, str | None]]] = {
    ArmName.ORACLE: ("weighted_mean", None),
    ArmName.MATL: (DEFAULT_RULE, None),
    ArmName.MEAN: ("weighted_mean", None),
    ArmName.MEDIAN: ("coordinate_median", None),
    ArmName.MULTI_KRUM: ("multi_krum", None),
    ArmName.NNM_GM: ("geometric_median", "nnm"),
    ArmName.FLTRUST: ("fltrust", None),
}


ROOT_UPDATE: Final = "root-update"


def is_available(name: ArmName) -> bool:
    """Whether the product has the rules of this arm."""
    rule, pre = _CHOICES[name]
    return rule in RULES and (pre is None or pre in PRE_AGGREGATIONS)


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


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class RoundInput:
    """What the coordinator has in hand when a round closes."""

    number: int
    updates: Mapping[NodeId, Float32Array]
    """Admitted ones."""
    violations: Mapping[NodeId, str]
    """Who was refused for what no honest hospital sends."""
    root: Sequence[RootRow]
    root_values: Mapping[str, Float32Array]
    root_update: Float32Array
    """What training on the root set gives: FLTrust's server update."""
    loss_improvement: Mapping[NodeId, float]


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What a round came to."""

    aggregate: Float32Array | None
    """None where the round is held."""
    weightless: frozenset[NodeId]
    """Hospitals that counted for nothing, the refused included."""


class Arm:
    """One coordinator; owns what it remembers between rounds and the files of the last one."""

    def __init__(self, name: ArmName, federation: Federation, folder: Path) -> None:
        self.name = name
        self.trust: tuple[TrustRecord, ...] = ()
        self.refused: frozenset[NodeId] = frozenset()
        self._federation = federation
        self._folder = folder
        self._previous: Float32Array | None = None
        patients = {node: each.patients for node, each in federation.enrolled.items()}
        cap = size_cap(list(patients.values()), f=federation.byzantine)
        self._capped = {node: float(min(size, cap)) for node, size in patients.items()}
        self._uncapped = {node: float(size) for node, size in patients.items()}
        self._weights: Mapping[NodeId, float] = self._first_weights()

    def decide(self, closed: RoundInput) -> Decision:
        """Aggregate one round, or hold it."""
        hold = self._judge(closed) if self.name is ArmName.MATL else None
        counted = [node for node in closed.updates if self._weights.get(node, 0.0) > 0.0]
        weightless = frozenset(self._federation.enrolled) - frozenset(counted)
        if hold is not None or not counted:
            return Decision(None, frozenset(self._federation.enrolled))
        aggregate = self._aggregate({node: closed.updates[node] for node in counted}, closed)
        self._previous = aggregate
        return Decision(aggregate, weightless)

    def guess(self, updates: Mapping[NodeId, Float32Array], root: RoundInput) -> Float32Array:
        """What an attacker that knows the rule and the weights expects; changes nothing."""
        counted = {
            node: update for node, update in updates.items() if self._weights.get(node, 0.0) > 0.0
        }
        if not counted:
            return np.zeros_like(next(iter(updates.values())))
        return self._aggregate(counted, root)

    def excluded(self) -> frozenset[NodeId]:
        """Who is shut out after the last round: in quarantine, or refused in that round."""
        quarantined = {r.node_id for r in self.trust if r.state is TrustState.QUARANTINED}
        return frozenset(quarantined) | self.refused

    def _first_weights(self) -> Mapping[NodeId, float]:
        match self.name:
            case ArmName.ORACLE:
                return {node: self._capped[node] for node in self._federation.honest}
            case ArmName.MATL:
                return self._capped
            case _:
                return self._uncapped

    def _judge(self, closed: RoundInput) -> str | None:
        """Let the product judge; returns why the round is held, if it is."""
        gram = self._measured(closed.updates, closed.root_values, Needs())
        judged = judge_round(
            gram,
            root=closed.root,
            loss_improvement=closed.loss_improvement,
            trust=self.trust,
            enrolled=self._federation.enrolled,
            violations=closed.violations,
            round_id=RoundId(closed.number),
            byzantine=self._federation.byzantine,
            steps=self._federation.plan.training.steps_per_round,
            quiet=self._quiet(closed.updates),
            compare_profiles=has_profiles(self._federation.plan),
        )
        self.trust = judged.records
        self.refused = frozenset(judged.refused) | frozenset(closed.violations)
        self._weights = judged.shares
        return judged.hold

    def _aggregate(
        self, updates: Mapping[NodeId, Float32Array], closed: RoundInput
    ) -> Float32Array:
        aggregator = self._aggregator(len(updates))
        extras: dict[str, Float32Array] = {}
        if aggregator.needs.root:
            extras[ROOT_UPDATE] = closed.root_update
        if aggregator.needs.previous and self._previous is not None:
            extras[PREVIOUS_AGGREGATE] = self._previous
        gram = self._measured(updates, extras, aggregator.needs)
        if aggregator.needs.root:
            names = np.array(gram.row_names, dtype=object)
            gram = replace(gram, reference=(names == ROOT_UPDATE).astype(np.float64))
        plan = aggregator(gram.with_weights(self._weights))
        rows = self._spooled(updates) + self._spooled(extras)
        chunks = aggregate_chunks(plan, rows, elements=gram.elements)
        return np.concatenate(list(chunks))

    def _aggregator(self, present: int) -> Aggregator:
        rule, pre = _CHOICES[self.name]
        # Refused ones are hostile. A rule that wants more updates than there are tolerates
        # less: it gets the largest f that it accepts.
        refused = len(self._federation.enrolled) - present
        f = max(0, self._federation.byzantine - refused)
        chosen = [] if pre is None else [Choice(pre)]
        while f > 0 and make_aggregator(Choice(rule), chosen, f=f).least_n > present:
            f -= 1
        return make_aggregator(Choice(rule), chosen, f=f)

    def _measured(
        self,
        updates: Mapping[NodeId, Float32Array],
        extras: Mapping[str, Float32Array],
        needs: Needs,
    ) -> Gram:
        plan = self._federation.plan
        std = {node: self._noise_std(node) for node in updates}
        is_private = plan.privacy.noise_multiplier > 0.0
        gram = measure(
            self._spooled(updates),
            self._spooled(extras),
            elements=plan.schema.update_elements,
            needs=needs,
            noise=std if is_private else None,
        )
        if not is_private:
            return gram
        training = plan.training
        bound = training.learning_rate * training.steps_per_round * plan.privacy.max_grad_norm
        return replace(gram, noise=PrivacyNoise(np.array(list(std.values())), bound))

    def _noise_std(self, node: NodeId) -> float:
        plan = self._federation.plan
        patients = self._federation.enrolled[node].patients
        return update_noise_std(plan.training, plan.privacy, patients=patients)

    def _quiet(self, updates: Mapping[NodeId, Float32Array]) -> dict[NodeId, QuietPart] | None:
        """Where training leaves nothing but noise."""
        plan = self._federation.plan
        names = classifier_of(plan.schema)
        if names is None or plan.privacy.noise_multiplier == 0.0:
            return None
        weight, bias = names
        views = {node: update_views(update, plan.schema) for node, update in updates.items()}
        return {node: quiet_part(each[weight], each[bias]) for node, each in views.items()}

    def _spooled(
        self, vectors: Mapping[NodeId, Float32Array] | Mapping[str, Float32Array]
    ) -> list[Row]:
        rows = []
        for name, vector in vectors.items():
            path = self._folder / f"{name}.f32"
            vector.astype("<f4", copy=False).tofile(path)
            rows.append(Row(name, path))
        return rows
