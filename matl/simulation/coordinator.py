"""The coordinator without database, log, network and clock: everything else is the daemon's.

Rounds go through ``core.rounds``, updates through the daemon's admission of contents, its
judge and both passes over files, and models are the files it would release. The same plan,
first model, updates and holdout report give the same models, to the bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
from typing_extensions import Buffer

from matl.simulation.datasets import Float32Array
from matl_common.ids import Digest, NodeId, RoundId, digest_of, digest_of_file
from matl_common.protocol import StudyPlan
from matl_common.signing import Envelope
from matl_common.tensors import hash_chunks, read_trainable, store_model
from matl_coordinator.aggregation import LocalExecutor
from matl_coordinator.core.admission import Contents, Refusal, RefusalCode, check_contents
from matl_coordinator.core.judgement import Enrolment, Judgement
from matl_coordinator.core.robust.registry import Aggregator
from matl_coordinator.core.rounds import (
    Aborted,
    Aggregated,
    CollectionClosed,
    Evaluated,
    Event,
    NodeExcluded,
    NodeWeight,
    Opened,
    Phase,
    Round,
    RoundRules,
    Scored,
    UpdateAdmitted,
    advance,
    next_event,
)
from matl_coordinator.core.trust_record import DEFAULT_POLICY, TrustPolicy, TrustRecord
from matl_coordinator.ports import (
    HoldoutReport,
    ModelRecord,
    RootGradient,
    State,
    UpdateRecord,
    UpdateScorer,
    UpdateStatus,
)
from matl_coordinator.service.averaging import average_with_earlier
from matl_coordinator.service.judging import Judge, Verdict
from matl_coordinator.service.survey import Surveyor, remembered_hashes
from matl_coordinator.store.histories import FileHistories
from matl_coordinator.store.models import FileModelStore

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
_NO_ENVELOPE: Final = Envelope("", b"", "", b"")
_NO_DIGEST: Final = digest_of(b"")


def refusal_of(update: Float32Array, *, plan: StudyPlan, patients: int) -> Refusal | None:
    """The daemon's look at an update's size and contents."""
    if update.nbytes != plan.schema.update_bytes:
        return Refusal(
            RefusalCode.WRONG_SIZE,
            f"{update.nbytes} bytes, the schema has {plan.schema.update_bytes}",
        )
    finite = np.isfinite(update)
    wide = np.where(finite, update, 0.0).astype(np.float64)
    contents = Contents(non_finite=int((~finite).sum()), norm=float(np.linalg.norm(wide)))
    return check_contents(contents, plan=plan, enrolled_patients=patients)


@dataclass(frozen=True, slots=True)
class Closed:
    """A round that is over, and what trust made of it."""

    round: Round
    judgement: Judgement | None
    """``None`` where too few updates were admitted to judge any."""

    @property
    def is_released(self) -> bool:
        return self.round.phase is Phase.RELEASED


class _Folders:
    """``SpooledUpdates`` of the round that is under way, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scratch = folder / "scratch"
        self._scratch.mkdir(exist_ok=True)

    def path(self, round_id: RoundId, node_id: NodeId) -> Path:
        return self._folder / f"{node_id}.update"

    def scratch(self, round_id: RoundId) -> Path:
        return self._scratch

    def clear_scratch(self, round_id: RoundId) -> None:
        for path in self._scratch.iterdir():
            path.unlink()


class _NoScorer:
    """Of a coordinator without a holdout set, which asks nothing."""

    async def root(self, base_model: Digest, *, folder: Path) -> tuple[RootGradient, ...]:
        raise AssertionError("without a holdout set there is no root set")

    async def report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        raise AssertionError("without a holdout set nothing is scored")

    async def reach(self, base_model: Digest, candidate: Path) -> float:
        raise AssertionError("without a holdout set nothing is tried")


def _as_they_are(verdict: Verdict) -> tuple[NodeWeight, ...]:
    return verdict.weights


class Coordinator:
    """One study's coordinator in an empty folder of its own; not safe to share.

    Attributes:
        trust: of every hospital after the last round.
        base: the model that the next round goes on from.
        released: the model that the last round released.
        rounds_released: so far.
    """

    def __init__(
        self,
        plan: StudyPlan,
        *,
        enrolled: Mapping[NodeId, Enrolment],
        aggregator: Aggregator,
        byzantine: int,
        first_model: Iterable[Buffer],
        folder: Path,
        quorum: int = 1,
        scorer: UpdateScorer | None = None,
        policy: TrustPolicy = DEFAULT_POLICY,
        weigh: Callable[[Verdict], tuple[NodeWeight, ...]] = _as_they_are,
    ) -> None:
        """Begin a study.

        Args:
            plan: as it would be signed.
            enrolled: what an operator attests of each hospital.
            aggregator: the rule, as configured.
            byzantine: f, how many hospitals may be hostile.
            first_model: the values of all its tensors in the schema's order.
            folder: exists and is empty; one in memory saves waiting for a disk.
            quorum: admitted updates without which a round is aborted.
            scorer: of updates on the holdout set; ``None`` where there is none (MODE0).
            policy: the constants of trust.
            weigh: what hospitals count for once they were judged; for trying other weights.
        """
        self.trust: tuple[TrustRecord, ...] = ()
        self.rounds_released = 0
        self._plan = plan
        self._enrolled = dict(enrolled)
        self._weigh = weigh
        self._quorum = quorum
        self._models = FileModelStore.open(folder / "models")
        digest = store_model(self._models.incoming, plan.schema, first_model)
        self.base = self.released = self._models.adopt(
            self._models.incoming / f"{digest}.safetensors"
        )
        # As each round found it; rules that look back ask for the last release's.
        self._bases: dict[RoundId, Digest] = {}
        self._round = 0
        self._released_in = 0
        self._spool = _Folders(folder)
        surveyor = Surveyor(
            plan=plan,
            spool=self._spool,
            models=self._models,
            scorer=scorer or _NoScorer(),
            enrolled=lambda: self._enrolled,
            histories=FileHistories.open_folder(folder / "histories"),
            base_model_of=self._bases.get,
            threads=1,
            executor=LocalExecutor(),
            hashes=remembered_hashes(),
        )
        self._judge = Judge(
            plan=plan,
            surveyor=surveyor,
            spool=self._spool,
            models=self._models,
            enrolled=lambda: self._enrolled,
            aggregator=aggregator,
            policy=policy,
            has_root=scorer is not None,
            activity=lambda _: {},
            byzantine=byzantine,
            executor=LocalExecutor(),
        )

    def close_round(self, updates: Mapping[NodeId, Float32Array], *, nonce: bytes = b"") -> Closed:
        """Admit what every hospital sent, judge it, and release the next model or hold the round.

        Args:
            updates: of the plan's length, hostile ones included.
            nonce: of the round; with the admitted updates it chooses the coordinates that some
                rules sample.

        Raises:
            AggregationError: the rule cannot be applied.
        """
        self._round += 1
        rnd = self._opened(frozenset(updates), nonce)
        self._bases[rnd.round_id] = rnd.base_model
        records, violations = [], {}
        for node, update in sorted(updates.items()):
            patients = self._enrolled[node].patients
            refusal = refusal_of(update, plan=self._plan, patients=patients)
            if refusal is None:
                record = self._spooled(rnd.round_id, node, update)
                records.append(record)
                rnd = advance(rnd, UpdateAdmitted(node, record.update_digest))
            else:
                violations[node] = f"its update was refused: {refusal.reason}"
                rnd = advance(rnd, NodeExcluded(node, refusal.reason))
        rnd = self._ticked(rnd)
        if rnd.phase is Phase.ABORTED:
            return Closed(rnd, None)
        return asyncio.run(self._finish(rnd, records, violations))

    def model(self, digest: Digest) -> Float32Array:
        """The trainable values of a model as one vector."""
        return read_trainable(self._models.path(digest))

    def _opened(self, nodes: frozenset[NodeId], nonce: bytes) -> Round:
        rnd = Round(
            round_id=RoundId(self._round),
            nonce=nonce,
            plan_digest=_NO_DIGEST,
            base_model=self.base,
            rules=RoundRules(self._quorum, len(nodes), len(nodes), timedelta(days=1)),
            opens_at=EPOCH,
        )
        return advance(rnd, Opened(EPOCH, nodes))

    def _ticked(self, rnd: Round) -> Round:
        event, _ = next_event(rnd, EPOCH, present=rnd.invited)
        assert isinstance(event, CollectionClosed | Aborted), "every hospital was decided on"
        return advance(rnd, event)

    def _spooled(self, round_id: RoundId, node: NodeId, update: Float32Array) -> UpdateRecord:
        path = self._spool.path(round_id, node)
        update.astype("<f4", copy=False).tofile(path)
        return UpdateRecord(
            round_id=round_id,
            node_id=node,
            update_digest=digest_of_file(path),
            manifest=_NO_ENVELOPE,
            chunk_hashes=b"".join(hash_chunks(path)),
            byte_count=update.nbytes,
            status=UpdateStatus.ADMITTED,
            code=None,
            reason="",
            norm=None,
            decided_at=EPOCH,
            log_index=None,
            log_leaf_hash=None,
        )

    async def _finish(
        self, rnd: Round, records: Sequence[UpdateRecord], violations: Mapping[NodeId, str]
    ) -> Closed:
        verdict = await self._judge.judge(rnd, self.trust, updates=records, violations=violations)
        self.trust = verdict.judgement.records
        event: Event = Scored(self._weigh(verdict), verdict.reach)
        if verdict.hold is not None:
            event = Aborted(EPOCH, f"held: {verdict.hold}")
        rnd = advance(rnd, event)
        if rnd.phase is not Phase.ABORTED:
            rnd = await self._release(rnd, records)
        return Closed(rnd, verdict.judgement)

    async def _release(self, rnd: Round, records: Sequence[UpdateRecord]) -> Round:
        built = await self._judge.build(rnd, updates=records, released_in=self._released_in)
        candidate = built.model
        average = average_with_earlier(
            self._state(rnd),
            candidate,
            average_from=self._plan.average_from,
            models=self._models,
        )
        rnd = advance(rnd, Aggregated(candidate, built.reach, average))
        rnd = advance(rnd, Evaluated(EPOCH, None))
        assert rnd.to_release is not None, "an aggregated round has a model"
        before, self.base, self.released = self.base, candidate, rnd.to_release
        for digest in set(self._models.digests()) - {before, self.base, self.released}:
            self._models.remove(digest)
        self.rounds_released += 1
        self._released_in = rnd.round_id
        return rnd

    def _state(self, rnd: Round) -> State:
        latest = ModelRecord(self.released, 0, self._released_in, EPOCH, self.base)
        return State(None, rnd, self.trust, (), self.rounds_released, latest)
