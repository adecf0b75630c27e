"""From admitted updates to trust, weights and the next model.

Two passes over the spooled updates: their geometry together with what trust and rule
compare them with, and the aggregate. What the numbers mean is decided in ``core``. The
same updates, trust and holdout set give the same model, to the bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from matl_common.ids import Digest, NodeId, RoundId
from matl_common.protocol import StudyPlan
from matl_common.tensors import MODEL_SUFFIX
from matl_coordinator.aggregation import Executor, aggregate_chunks, apply_update
from matl_coordinator.core.composite import Activity
from matl_coordinator.core.judgement import (
    Enrolment,
    Judgement,
    judge_round,
    standing_weights,
)
from matl_coordinator.core.profile import has_profiles
from matl_coordinator.core.robust.dominance import noise_leads
from matl_coordinator.core.robust.gram import AggregationError, Needs
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.registry import Aggregator
from matl_coordinator.core.rounds import Admitted, NodeWeight, Round
from matl_coordinator.core.trust_record import TrustPolicy, TrustRecord
from matl_coordinator.ports import (
    BeyondRow,
    ModelStore,
    RootGradient,
    SpooledUpdates,
    SpoolError,
    UpdateRecord,
)
from matl_coordinator.service.survey import Judged, Survey, Surveyor, checked_model

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a round's updates did to trust, what each counts for, and what it was held against."""

    judgement: Judgement
    weights: tuple[NodeWeight, ...]
    """One for each admitted hospital; empty when the round is held."""
    reach: float
    """How much of the hospitals' common step the holdout set bears."""
    root: tuple[RootGradient | BeyondRow, ...]
    """What updates were scored with, and what the rule will ask for."""
    rule: str
    """What the updates will be aggregated by, every parameter in it."""
    configured: Aggregator
    """What was asked for, before it was fitted to the updates that count, with ``f``."""
    f: int

    @property
    def hold(self) -> str | None:
        """Why no model can be made of these updates."""
        return self.judgement.hold


@dataclass(frozen=True, slots=True)
class Built:
    """A round's new model, in the store."""

    model: Digest
    reach: float
    """How much of the aggregate it has taken."""


def fitted(aggregator: Aggregator, *, f: int, counting: int, excluded: int) -> Aggregator | None:
    """The aggregator for the updates that count, with as much of ``f`` as they allow.

    Hospitals that trust excluded are no longer among those the rule must withstand, but any
    of them may have been honest: ``f`` is lowered only as far as the rule needs it.

    Args:
        aggregator: as configured.
        f: hospitals that may be hostile.
        counting: updates with a weight above 0.
        excluded: updates that trust left without one.

    Returns:
        ``None`` where the rule needs more updates than count.
    """
    for left in range(f, max(0, f - excluded) - 1, -1):
        candidate = aggregator.with_f(left)
        if candidate.least_n <= counting:
            return candidate
    return None


_Surveyed = tuple[RoundId, tuple[Admitted, ...]]


def _surveyed(rnd: Round) -> _Surveyed:
    return rnd.round_id, rnd.admitted


class Judge:
    """Judges and aggregates; owns no state but what it measured last."""

    def __init__(
        self,
        *,
        plan: StudyPlan,
        surveyor: Surveyor,
        spool: SpooledUpdates,
        models: ModelStore,
        enrolled: Callable[[], Mapping[NodeId, Enrolment]],
        aggregator: Aggregator,
        policy: TrustPolicy,
        has_root: bool,
        activity: Callable[[Round], Mapping[NodeId, Activity]],
        byzantine: int,
        executor: Executor,
    ) -> None:
        self._plan = plan
        self._surveyor = surveyor
        self._spool = spool
        self._models = models
        self._enrolled = enrolled
        self._aggregator = aggregator
        self._policy = policy
        self._has_root = has_root
        self._activity = activity
        self._byzantine = byzantine
        self._executor = executor
        # The last judgement's survey, and of what: a rule that asks for no more than inner
        # products of the updates goes on from it. After a restart it is measured again, of the
        # same rows, so that the model is the same to the bit.
        self._known: tuple[_Surveyed, Survey] | None = None

    @property
    def _goes_on_from_judgement(self) -> bool:
        return not self._has_root and self._aggregator.needs == Needs()

    async def judge(
        self,
        rnd: Round,
        trust: tuple[TrustRecord, ...],
        *,
        updates: Sequence[UpdateRecord],
        violations: Mapping[NodeId, str],
    ) -> Verdict:
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
        enrolled = self._enrolled()
        with self._scratch(rnd):
            survey = await self._surveyor.survey(
                rnd,
                updates,
                nodes=rnd.admitted_nodes,
                # What the rule asks for is measured again; on record is what it will be.
                needs=Needs(root=self._has_root and self._aggregator.needs.root),
                released_in=0,
                judged=Judged(self._step_weights(trust, enrolled) if self._has_root else None),
            )
        if self._goes_on_from_judgement:
            self._known = (_surveyed(rnd), survey)
        activity = await asyncio.to_thread(self._activity, rnd)
        judgement = judge_round(
            survey.gram,
            root=[each.row for each in survey.path] if self._has_root else None,
            loss_improvement=survey.loss_improvement,
            trust=trust,
            enrolled=enrolled,
            violations=violations,
            round_id=rnd.round_id,
            byzantine=self._byzantine,
            steps=self._plan.training.steps_per_round,
            quiet=survey.quiet,
            compare_profiles=has_profiles(self._plan),
            activity=activity,
            policy=self._policy,
        )
        aggregator = self._aggregator
        if judgement.hold is None:
            aggregator, judgement = self._within_rule(judgement, len(rnd.admitted))
        weights: tuple[NodeWeight, ...] = ()
        if judgement.hold is None:
            weights = tuple(
                NodeWeight(node, judgement.shares.get(node, 0.0))
                for node in sorted(rnd.admitted_nodes)
            )
        return Verdict(
            judgement,
            weights,
            survey.reach,
            (*survey.root, *survey.path, *(() if survey.beyond is None else (survey.beyond,))),
            aggregator.describe(),
            configured=self._aggregator,
            f=self._byzantine,
        )

    def _step_weights(
        self, trust: tuple[TrustRecord, ...], enrolled: Mapping[NodeId, Enrolment]
    ) -> dict[NodeId, float]:
        """What each hospital counts for in the step along which all are scored.

        Nobody, where that step would be their noise: an update is scored against its own noise
        then, which comes out against it.
        """
        if noise_leads(
            self._plan.training,
            self._plan.privacy,
            elements=self._plan.schema.update_elements,
            patients=[each.patients for each in enrolled.values()],
        ):
            return dict.fromkeys(enrolled, 0.0)
        return standing_weights(trust, enrolled, byzantine=self._byzantine, policy=self._policy)

    def _within_rule(self, judgement: Judgement, admitted: int) -> tuple[Aggregator, Judgement]:
        """Hold a round that leaves the rule too few updates to keep its promise."""
        counting = sum(share > 0.0 for share in judgement.shares.values())
        found = self._fitted(counting, admitted)
        if found is not None:
            return found, judgement
        reason = (
            f"{counting} updates count and {self._aggregator.describe()} needs "
            f"{self._aggregator.least_n}; release a hospital, or restart with another "
            "rounds.rule or a smaller rounds.byzantine"
        )
        return self._aggregator, replace(judgement, shares={}, hold=reason)

    def _fitted(self, counting: int, admitted: int) -> Aggregator | None:
        return fitted(
            self._aggregator, f=self._byzantine, counting=counting, excluded=admitted - counting
        )

    async def build(
        self,
        rnd: Round,
        *,
        updates: Sequence[UpdateRecord],
        released_in: int,
        reach: float | None = None,
    ) -> Built:
        """Aggregate a scored round and keep the new model.

        Args:
            rnd: a round that is aggregating.
            updates: what was declared of each update.
            released_in: the round that released its base model; 0 for the study's first.
            reach: how much of the aggregate is taken, where that is known; otherwise no more
                than the hospitals' common step was found to bear, and than the holdout set bears.

        Raises:
            WorkerError: the scoring worker failed.
            IntegrityError: an update, or a model, on disk is not what it was.
            AggregationError: the rule cannot be applied, or the result is not finite.
        """
        shares = {each.node_id: each.weight for each in rnd.weights if each.weight > 0.0}
        known, self._known = self._known, None
        with self._scratch(rnd):
            if known is not None and known[0] == _surveyed(rnd):
                survey = known[1]
                await asyncio.to_thread(self._surveyor.rows, rnd, updates, shares)
            else:
                # What everybody sent belongs into the histories, whether it counts or not, and
                # is what was measured for the judgement.
                is_whole = self._aggregator.needs.history or self._goes_on_from_judgement
                survey = await self._surveyor.survey(
                    rnd,
                    updates,
                    nodes=rnd.admitted_nodes if is_whole else shares,
                    needs=self._aggregator.needs,
                    released_in=released_in,
                )
            plan = await asyncio.to_thread(self._planned, rnd, survey, shares)
            store = partial(self._store, rnd, plan, survey)
            taken = rnd.reach if reach is None else reach
            candidate = await asyncio.to_thread(store, reach=taken)
            if reach is None and self._has_root:
                further = await self._tried(rnd, candidate)
                if further < 1.0:
                    _discard(candidate)
                    taken *= further
                    candidate = await asyncio.to_thread(store, reach=taken)
            return Built(await asyncio.to_thread(self._models.adopt, candidate), taken)

    async def _tried(self, rnd: Round, candidate: Path) -> float:
        """How much of the change to a candidate the holdout set bears."""
        try:
            return await self._surveyor.reach(rnd, candidate)
        except BaseException:
            # The round may end here, and the file would stay until the next start.
            _discard(candidate)
            raise

    def _planned(self, rnd: Round, survey: Survey, shares: Mapping[NodeId, float]) -> Plan:
        gram = survey.gram.select(sorted(shares)).with_weights(shares)
        aggregator = self._fitted(len(shares), len(rnd.admitted))
        if aggregator is None:
            raise AggregationError(
                f"{len(shares)} updates count and {self._aggregator.describe()} needs "
                f"{self._aggregator.least_n}; restart with the rounds.rule the round began with"
            )
        return aggregator(gram)

    def _store(self, rnd: Round, plan: Plan, survey: Survey, *, reach: float) -> Path:
        """Make a model of the aggregate, or of part of it; returns its file, not yet adopted."""
        chunks = aggregate_chunks(
            plan,
            [*survey.updates, *survey.extras],
            elements=self._plan.schema.update_elements,
            executor=self._executor,
        )
        base, incoming = checked_model(self._models, rnd.base_model), self._models.incoming
        digest = apply_update(base, chunks, incoming, reach=reach)
        return incoming / f"{digest}{MODEL_SUFFIX}"

    @contextmanager
    def _scratch(self, rnd: Round) -> Iterator[None]:
        """Root rows of a large network are gigabytes: they go as soon as they were used.

        What cannot be deleted takes back nothing that was computed: it goes with its round's
        updates, or at the next start.
        """
        try:
            yield
        finally:
            try:
                self._spool.clear_scratch(rnd.round_id)
            except SpoolError as error:
                log.warning("scratch_left", round=rnd.round_id, reason=str(error))


def _discard(candidate: Path) -> None:
    # What cannot be deleted goes at the next start, and must not hide why it is to go.
    try:
        candidate.unlink(missing_ok=True)
    except OSError as error:
        log.warning("candidate_left", file=candidate.name, reason=str(error))
