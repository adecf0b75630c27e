"""From admitted updates to trust, weights and the next model.

Two passes over the spooled updates: their geometry together with the holdout set's
gradients, and the aggregate. What the numbers mean is decided in ``core``. The same
updates, trust and holdout set give the same model, to the bit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matl_common.errors import IntegrityError
from matl_common.identity.allowlist import AllowedNode
from matl_common.ids import Digest, NodeId, digest_of_file
from matl_common.protocol import StudyPlan
from matl_common.tensors import hash_chunks
from matl_coordinator.aggregation import Row, aggregate_chunks, apply_update, measure
from matl_coordinator.core.robust.gram import Gram, leave_one_out_cosines
from matl_coordinator.core.robust.root import project_on_root, update_noise_std
from matl_coordinator.core.robust.rules import Rule
from matl_coordinator.core.rounds import NodeWeight, Round
from matl_coordinator.core.trust import update_trust
from matl_coordinator.core.trust_record import (
    HoldoutScore,
    PeerAgreement,
    TrustRecord,
    with_newcomers,
)
from matl_coordinator.core.weighting import Hold, aggregation_weights, trust_weight
from matl_coordinator.ports import HoldoutReport, ModelStore, Scorer, Spool, UpdateRecord


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a round's updates did to trust, and what each counts for."""

    records: tuple[TrustRecord, ...]
    weights: tuple[NodeWeight, ...]
    """One for each admitted hospital; empty when the round is held."""
    hold: str | None
    """Why no model can be made of these updates."""


class Judge:
    """Reads spooled updates; owns no state."""

    def __init__(
        self,
        *,
        plan: StudyPlan,
        spool: Spool,
        models: ModelStore,
        scorer: Scorer,
        enrolled: Mapping[NodeId, AllowedNode],
        rule: Rule,
        byzantine: int,
        threads: int,
    ) -> None:
        self._plan = plan
        self._spool = spool
        self._models = models
        self._scorer = scorer
        self._enrolled = enrolled
        self._rule = rule
        self._byzantine = byzantine
        self._threads = threads

    async def judge(
        self,
        rnd: Round,
        trust: tuple[TrustRecord, ...],
        *,
        updates: Sequence[UpdateRecord],
        violations: Mapping[NodeId, str],
    ) -> Judgement:
        """Score the admitted updates and share out the aggregate.

        Args:
            rnd: a round that is scoring.
            trust: as of the round before.
            updates: what was declared of each update.
            violations: what a hospital sent that no honest one sends.

        Raises:
            WorkerError: the scoring worker failed.
            IntegrityError: an update on disk is not the one that was admitted.
            AggregationError: the updates cannot be compared.
        """
        rows = await asyncio.to_thread(self._rows, rnd, updates)
        report = await self._scorer.report(
            rnd.base_model,
            {NodeId(row.name): row.path for row in rows},
            folder=self._spool.scratch(rnd.round_id),
        )
        gram = await asyncio.to_thread(self._measure, rows, report)
        trust = with_newcomers(trust, self._enrolled)
        by_node = {record.node_id: record for record in trust}
        weighted = gram.with_weights(
            {node: trust_weight(by_node[node]) * self._patients(node) for node in gram.nodes}
        )
        records = update_trust(
            trust,
            self._scores(weighted, report),
            round_id=rnd.round_id,
            agreement=self._agreement(weighted),
            violations=violations,
        )
        shared = aggregation_weights(
            records,
            {node: self._patients(node) for node in self._enrolled},
            present=gram.nodes,
            f=self._byzantine,
        )
        if isinstance(shared, Hold):
            return Judgement(records, (), shared.reason)
        weights = tuple(NodeWeight(node, share) for node, share in sorted(shared.shares.items()))
        return Judgement(records, weights, None)

    async def build(self, rnd: Round, *, updates: Sequence[UpdateRecord]) -> Digest:
        """Aggregate a scored round and keep the new model; returns its digest.

        Raises:
            IntegrityError: an update, or the base model, on disk is not what was admitted.
            AggregationError: the rule cannot be applied, or the result is not finite.
        """
        return await asyncio.to_thread(self._build, rnd, updates)

    def _build(self, rnd: Round, updates: Sequence[UpdateRecord]) -> Digest:
        shares = {each.node_id: each.weight for each in rnd.weights if each.weight > 0.0}
        rows = [row for row in self._rows(rnd, updates) if row.name in shares]
        elements = self._plan.schema.update_elements
        gram = measure(rows, elements=elements, threads=self._threads).with_weights(shares)
        chunks = aggregate_chunks(self._rule(gram), rows, elements=elements, threads=self._threads)
        base, incoming = self._models.path(rnd.base_model), self._models.incoming
        if digest_of_file(base) != rnd.base_model:
            raise IntegrityError(
                f"the file of model {rnd.base_model[:12]} is not that model; restore it"
            )
        digest = apply_update(base, chunks, incoming)
        return self._models.adopt(incoming / f"{digest}.safetensors")

    def _rows(self, rnd: Round, updates: Sequence[UpdateRecord]) -> list[Row]:
        """The admitted updates on disk, after a look that they are still what was admitted."""
        declared = {each.node_id: each.chunk_hashes for each in updates}
        rows = []
        for each in rnd.admitted:
            path = self._spool.path(rnd.round_id, each.node_id)
            found = b"".join(hash_chunks(path))
            if found != declared[each.node_id]:
                raise IntegrityError(
                    f"the spooled update of {each.node_id} is not the one that was admitted; "
                    "look for a failing disk, or for who can write to the state folder"
                )
            rows.append(Row(each.node_id, path))
        return rows

    def _measure(self, rows: list[Row], report: HoldoutReport) -> Gram:
        return measure(
            rows,
            [Row(each.row.name, each.path) for each in report.root],
            elements=self._plan.schema.update_elements,
            threads=self._threads,
        )

    def _scores(self, gram: Gram, report: HoldoutReport) -> tuple[HoldoutScore, ...]:
        projections = project_on_root(
            gram,
            [each.row for each in report.root],
            label_shares=self._label_shares(gram.nodes),
        )
        return tuple(
            HoldoutScore(
                node_id=each.node_id,
                projection=each.projection,
                variance=each.standard_error**2
                + (self._noise(each.node_id) * each.reference_norm) ** 2,
                loss_improvement=report.loss_improvement[each.node_id],
            )
            for each in projections
        )

    def _label_shares(self, nodes: tuple[NodeId, ...]) -> dict[NodeId, list[float]]:
        shares = {}
        for node in nodes:
            histogram = self._enrolled[node].label_histogram
            if histogram is not None and sum(histogram) > 0:
                shares[node] = [count / sum(histogram) for count in histogram]
        return shares

    def _agreement(self, gram: Gram) -> dict[NodeId, PeerAgreement]:
        cosines = leave_one_out_cosines(gram)
        # The cosine of a fixed direction with isotropic noise has this deviation.
        noise = 1.0 / math.sqrt(gram.elements)
        is_private = self._plan.privacy.noise_multiplier > 0.0
        return {
            node: PeerAgreement(float(cosine), noise if is_private else 0.0)
            for node, cosine in zip(gram.nodes, cosines, strict=True)
        }

    def _patients(self, node: NodeId) -> int:
        return self._enrolled[node].enrolled_patients

    def _noise(self, node: NodeId) -> float:
        return update_noise_std(
            self._plan.training, self._plan.privacy, patients=self._patients(node)
        )
