"""Drives rounds from phase to phase; the only caller of the clock's ticks.

``Conductor.step`` looks at the state and does the one thing that is due: schedule,
open, close, score, aggregate, evaluate, release. It keeps no state of its own that
matters, so after a crash the first step goes on where the last one stood.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import median

import structlog

from matl_common.durable import lacks_room
from matl_common.errors import MatlError
from matl_common.identity.allowlist import Allowlist
from matl_common.identity.pkcs11.session import TokenError
from matl_common.ids import NodeId, RoundId
from matl_common.memory import release_memory
from matl_common.tlog.entry import Entry
from matl_coordinator.core.admission import RefusalCode
from matl_coordinator.core.rounds import (
    Aborted,
    Admitted,
    Aggregated,
    Evaluated,
    Evaluation,
    Event,
    Phase,
    Round,
    RoundRules,
    Scored,
    advance,
    next_event,
)
from matl_coordinator.core.trust_record import TrustRecord
from matl_coordinator.ports import (
    Change,
    Meter,
    ModelRecord,
    ModelStore,
    PutModel,
    PutRound,
    PutStudy,
    PutTrust,
    Scorer,
    SharedStoreError,
    Spool,
    StaleWriterError,
    State,
    StoreError,
    UpdateRecord,
)
from matl_coordinator.roster import Roster
from matl_coordinator.schedule import Schedule, next_due
from matl_coordinator.service.alarms import Alarm, alarms_of
from matl_coordinator.service.averaging import average_with_earlier
from matl_coordinator.service.entries import (
    Fact,
    alarm_entry,
    entry,
    round_entries,
    score_entries,
)
from matl_coordinator.service.judging import Judge, Verdict
from matl_coordinator.service.presence import Presence
from matl_coordinator.service.register import Decision, Register
from matl_coordinator.service.survey import coordinate_seed

NON_COMPLIANT = "non_compliant"
"""Why an admitted update was refused when it was scored: no trace of the promised noise."""

_NAMED = 3
"""Of the hospitals whose updates were longest, a warning names so many."""
_TOO_FAR = "the whole of it would have cost the holdout set; see runbooks/byzantine-alarm"
_REMEDY = "no round opens until an operator has looked: matl participants, then matl resume"

log = structlog.get_logger(__name__)


Certify = Callable[[Round, Verdict, datetime], tuple[Entry, ...]]
"""Signs what a round's updates were scored, for the log. May block."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the conductor goes by; fixed while the daemon runs."""

    schedule: Schedule
    rounds_planned: int
    keep_spooled: int
    worker_attempts: int
    average_from: int
    """As in the study plan."""
    has_holdout: bool
    """Whether models can be evaluated."""
    cartel_alarm_share: float
    tick_seconds: float = 1.0
    """How often to look at the clock when nothing happens."""
    retry_seconds: float = 1.0
    """Pause after a failed attempt."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a judgement rests on, beside what never changes."""

    trust: tuple[TrustRecord, ...]
    admitted: tuple[Admitted, ...]
    allowlist: Allowlist | None


class Conductor:
    """Runs on the register's event loop."""

    def __init__(
        self,
        *,
        register: Register,
        spool: Spool,
        models: ModelStore,
        scorer: Scorer,
        judge: Judge,
        certify: Certify,
        try_signing: Callable[[], object],
        presence: Presence,
        roster: Roster,
        rules: Callable[[], RoundRules],
        meter: Meter,
        settings: Settings,
        clock: Callable[[], datetime],
        entropy: Callable[[int], bytes],
        elapsed: Callable[[], float],
    ) -> None:
        self._register = register
        self._spool = spool
        self._models = models
        self._scorer = scorer
        self._judge = judge
        self._certify = certify
        self._try_signing = try_signing
        self._presence = presence
        self._roster = roster
        self._rules = rules
        self._meter = meter
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self._elapsed = elapsed
        # The round that collects, and since when by that clock.
        self._collecting: tuple[RoundId, float] | None = None
        # An operator asked for a round; remembered until it is scheduled.
        self._asked = asyncio.Event()
        # The last round after which old updates were dropped.
        self._tidied = 0
        # Failed attempts at the current phase's work: (round, phase, count).
        self._failures: tuple[int, Phase, int] = (0, Phase.SCHEDULED, 0)

    def start_round(self) -> None:
        """Let the next round open at the next step."""
        self._asked.set()

    async def run(self) -> None:
        """Step until cancelled.

        Raises:
            StaleWriterError: another coordinator took over.
        """
        while True:
            try:
                state = await self._register.state()
                pause = await self.step(state)
                await self._register.wait_for_change(state, seconds=pause)
            except StaleWriterError:
                raise
            except StoreError as error:
                self._meter.store_failed()
                log.error("store_failed", reason=str(error))
                await asyncio.sleep(self._settings.retry_seconds)
            except (MatlError, OSError) as error:
                # Nothing was decided; a daemon without a conductor would open no round again.
                log.error("step_failed", reason=str(error))
                await asyncio.sleep(self._settings.retry_seconds)

    async def step(self, state: State) -> float:
        """Do what is due in ``state``; returns how long to wait for a change, in seconds."""
        self._meter.present(len(self._presence.present()))
        self._meter.log_grew(self._register.log_size)
        rnd = state.round
        if rnd is None or rnd.phase.is_final:
            return await self._between_rounds(state)
        match rnd.phase:
            case Phase.SCHEDULED | Phase.COLLECTING:
                return await self._attempt(rnd, self._tick(rnd))
            case Phase.SCORING:
                return await self._attempt(rnd, self._score(state, rnd))
            case Phase.AGGREGATING:
                return await self._attempt(rnd, self._aggregate(state, rnd))
            case _:
                return await self._attempt(rnd, self._evaluate(rnd))

    def waiting(self, state: State, now: datetime) -> tuple[str, datetime | None]:
        """What the study waits for, and when the next round is due, for people to read."""
        rnd = state.round
        if state.rounds_released >= self._settings.rounds_planned:
            return "the study is complete", None
        if rnd is not None and not rnd.phase.is_final:
            current = self._with_present_rules(rnd)
            return self._next_event(current, now)[1], None
        if state.study is not None and state.study.paused:
            return f"paused: {state.study.pause_reason}", None
        due = self._due(state, now)
        return ("the next round", due) if due else ("an operator to start a round", None)

    def _due(self, state: State, now: datetime) -> datetime | None:
        if self._asked.is_set():
            return now
        last = None if state.round is None else state.round.opened_at or state.round.ended_at
        return next_due(self._settings.schedule, last_opened=last, now=now)

    async def _between_rounds(self, state: State) -> float:
        await self._tidy(state)
        now = self._clock()
        if state.study is None or state.study.paused:
            return self._settings.tick_seconds
        if state.rounds_released >= self._settings.rounds_planned:
            return self._settings.tick_seconds
        due = self._due(state, now)
        if due is None or due > now:
            return self._settings.tick_seconds
        # A round that nobody could be invited to would only pass.
        await asyncio.to_thread(self._try_signing)
        await self._register.decide(self._schedule_next)
        self._asked.clear()
        return 0.0

    def _schedule_next(self, state: State) -> Decision[None]:
        previous = state.round
        assert state.study is not None, "a study is founded before its conductor runs"
        is_open = previous is not None and not previous.phase.is_final
        if is_open or state.study.paused:
            return Decision(None)
        assert state.latest_model is not None, "a study begins with a model"
        now = self._clock()
        rnd = Round(
            round_id=RoundId(1 if previous is None else previous.round_id + 1),
            nonce=self._entropy(32),
            plan_digest=state.study.plan_digest,
            base_model=state.latest_model.base,
            rules=self._rules(),
            opens_at=now,
        )
        written = entry(
            "round_scheduled",
            at=now,
            round=rnd.round_id,
            base_model=rnd.base_model,
            nonce=rnd.nonce.hex(),
        )
        return Decision(None, (PutRound(rnd),), (written,))

    async def _tick(self, rnd: Round) -> float:
        rnd = self._with_present_rules(rnd)
        event, _ = self._next_event(rnd, self._clock())
        if event is None:
            return self._settings.tick_seconds
        await self._advance(rnd, event)
        return 0.0

    def _next_event(self, rnd: Round, now: datetime) -> tuple[Event | None, str]:
        present = self._presence.present()
        if rnd.phase is not Phase.COLLECTING:
            return next_event(rnd, now, present=present)
        if self._collecting is None or self._collecting[0] != rnd.round_id:
            self._collecting = (rnd.round_id, self._elapsed())
        waited = timedelta(seconds=self._elapsed() - self._collecting[1])
        return next_event(rnd, now, present=present, collected_for=waited)

    def _with_present_rules(self, rnd: Round) -> Round:
        """A round that has not opened goes by today's configuration, not by that of its day."""
        if rnd.phase is not Phase.SCHEDULED:
            return rnd
        return replace(rnd, rules=self._rules())

    async def _attempt(self, rnd: Round, work: Awaitable[float | None]) -> float:
        """Do a phase's work; a failure costs a retry, and in the end the round."""
        try:
            return await work or 0.0
        except (StoreError, TokenError, SharedStoreError):
            # Waits for what is away, at no cost to the round.
            raise
        except (MatlError, OSError) as error:
            if lacks_room(error):
                # So does a full disk, which an operator empties.
                self._meter.phase_failed(rnd.phase)
                raise
            return await self._failed(rnd, error)

    async def _failed(self, rnd: Round, error: Exception) -> float:
        number, phase, count = self._failures
        count = count + 1 if (number, phase) == (rnd.round_id, rnd.phase) else 1
        self._failures = (rnd.round_id, rnd.phase, count)
        self._meter.phase_failed(rnd.phase)
        attempts = self._settings.worker_attempts
        log.error(
            "phase_failed",
            round=rnd.round_id,
            phase=rnd.phase.value,
            attempt=count,
            attempts=attempts,
            reason=str(error),
        )
        if count >= attempts:
            reason = f"{rnd.phase.value} failed {count} times, last: {error}"
            # Another round now would cost every hospital budget and end the same way.
            await self._advance(
                rnd, Aborted(self._clock(), reason[:500]), pause_because=reason[:500]
            )
            log.error("study_paused", round=rnd.round_id, reason=reason, remedy=_REMEDY)
            return 0.0
        return self._settings.retry_seconds

    async def _advance(
        self,
        rnd: Round,
        event: Event,
        *,
        changes: tuple[Change, ...] = (),
        entries: tuple[Entry, ...] = (),
        pause_because: str | None = None,
        facts: Mapping[str, Fact] | None = None,
        judged: _Judged | None = None,
    ) -> Round | None:
        """Apply an event, if the round is still where ``rnd`` was, with all that goes with it.

        Args:
            rnd: the round as it was when ``event`` came about.
            event: what happened to it.
            changes: made in the same transaction.
            entries: logged before the round's own.
            pause_because: also pause the study, until an operator has looked.
            facts: added to the round's log entry.
            judged: what ``changes`` follow from; if it is no longer so, because an operator
                has given an order or changed the allow-list meanwhile, nothing happens.
        """

        def decide(state: State) -> Decision[Round | None]:
            current = state.round
            if current is None or (current.round_id, current.phase) != (rnd.round_id, rnd.phase):
                return Decision(None)
            if judged is not None and judged != _Judged(
                state.trust, current.admitted, self._roster.settled
            ):
                reason = "an operator changed trust or the allow-list"
                log.info("judged_again", round=rnd.round_id, reason=reason)
                return Decision(None)
            after = advance(self._with_present_rules(current), event)
            written = (*entries, *round_entries(after, event, at=self._clock(), **facts or {}))
            put: tuple[Change, ...] = (PutRound(after), *changes)
            if pause_because is not None and state.study is not None:
                study = replace(state.study, paused=True, pause_reason=pause_because)
                put = (*put, PutStudy(study))
                paused = entry("study_paused", at=self._clock(), reason=pause_because)
                written = (*written, paused)
            return Decision(after, put, written)

        after, _ = await self._register.decide(decide)
        if after is not None:
            self._report(after)
        return after

    def _report(self, after: Round) -> None:
        log.info(
            "round_phase",
            round=after.round_id,
            phase=after.phase.value,
            admitted=len(after.admitted),
            invited=len(after.invited),
            reason=after.abort_reason,
        )
        self._meter.round_changed(after)

    async def _score(self, state: State, rnd: Round) -> None:
        event, _ = next_event(rnd, self._clock(), present=frozenset())
        if event is not None:
            await self._advance(rnd, event)
            return
        judged = _Judged(state.trust, rnd.admitted, self._roster.on_record)
        verdict = await self._judge.judge(
            rnd, state.trust, updates=state.updates, violations=violations_in(state)
        )
        now, judgement = self._clock(), verdict.judgement
        # A key in a token takes its time, for every hospital.
        receipts = await asyncio.to_thread(self._certify, rnd, verdict, now)
        event = Scored(verdict.weights, verdict.reach)
        if verdict.hold is not None:
            event = Aborted(now, f"held: {verdict.hold}")
        alarms = alarms_of(judgement.power, cartel_share=self._settings.cartel_alarm_share)
        after = await self._advance(
            rnd,
            event,
            changes=(PutTrust(rnd.round_id, judgement.records),),
            entries=(
                *score_entries(rnd, verdict, seed=coordinate_seed(rnd), at=now),
                *receipts,
                *(alarm_entry(each, round_id=rnd.round_id, at=now) for each in alarms),
            ),
            pause_because=verdict.hold,
            facts={"weights": {each.node_id: each.weight for each in verdict.weights} or None},
            judged=judged,
        )
        if after is None:
            return
        self._report_trust(judgement.records, after)
        self._report_verdict(verdict, alarms, after, updates=state.updates)

    def _report_verdict(
        self,
        verdict: Verdict,
        alarms: tuple[Alarm, ...],
        after: Round,
        *,
        updates: Sequence[UpdateRecord],
    ) -> None:
        judgement = verdict.judgement
        self._meter.power_measured(judgement.power)
        self._meter.step_tried(verdict.reach)
        if verdict.reach < 1.0:
            _warn_of("step_shortened", after, verdict.reach, updates)
        for node, reason in sorted(judgement.refused.items()):
            self._meter.update_refused(NON_COMPLIANT)
            log.warning("update_not_compliant", round=after.round_id, node=node, reason=reason)
        for cluster in judgement.clusters:
            log.warning(
                "updates_nearly_identical", round=after.round_id, nodes=", ".join(sorted(cluster))
            )
        for alarm in alarms:
            self._meter.alarm_raised(alarm.kind)
            log.critical(
                f"alarm_{alarm.kind}",
                round=after.round_id,
                # JSON has no infinity, which stands for "nobody else took part".
                figure=round(alarm.figure, 3) if math.isfinite(alarm.figure) else None,
                bound=round(alarm.bound, 3),
                reason=alarm.reason,
                remedy=alarm.remedy,
            )
        if verdict.hold is not None:
            log.error("study_paused", round=after.round_id, reason=verdict.hold, remedy=_REMEDY)

    def _report_trust(self, records: tuple[TrustRecord, ...], after: Round) -> None:
        self._meter.trust_changed(records, after)
        weights = {each.node_id: each.weight for each in after.weights}
        for record in records:
            log.info(
                "trust",
                round=after.round_id,
                node=record.node_id,
                trust=round(record.trust, 3),
                state=record.state.value,
                weight=round(weights.get(record.node_id, 0.0), 3),
                reason=record.reason,
            )

    async def _aggregate(self, state: State, rnd: Round) -> None:
        released_in = 0 if state.latest_model is None else state.latest_model.round_id
        built = await self._judge.build(rnd, updates=state.updates, released_in=released_in)
        average = await asyncio.to_thread(
            average_with_earlier,
            state,
            built.model,
            average_from=self._settings.average_from,
            models=self._models,
        )
        after = await self._advance(
            rnd,
            Aggregated(built.model, built.reach, average),
            facts={
                "model": built.model,
                "updates": {each.node_id: each.update_digest for each in rnd.admitted},
            },
        )
        if after is None:
            return
        self._meter.step_tried(built.reach)
        if built.reach < rnd.reach:
            _warn_of("aggregate_shortened", after, built.reach, state.updates)

    async def _evaluate(self, rnd: Round) -> None:
        model, average = rnd.to_release, rnd.average
        assert model is not None, "an evaluating round has a model to release"
        evaluation: Evaluation | None = None
        if self._settings.has_holdout:
            evaluation = await self._scorer.evaluate(model)
        now, size = self._clock(), self._models.path(model).stat().st_size
        round_model = None if average is None else rnd.candidate
        after = await self._advance(
            rnd,
            Evaluated(now, evaluation),
            changes=(PutModel(ModelRecord(model, size, rnd.round_id, now, round_model)),),
            facts={
                "model": model,
                "round_model": round_model,
                "averaged": None if average is None else average.models,
                **_evaluation_facts(evaluation),
            },
        )
        if after is not None:
            log.info(
                "model_released",
                round=rnd.round_id,
                model=model[:12],
                averaged=1 if average is None else average.models,
                accuracy=None if evaluation is None else round(evaluation.accuracy, 4),
                kappa=None if evaluation is None else round(evaluation.quadratic_weighted_kappa, 4),
            )

    async def _tidy(self, state: State) -> None:
        """Drop the spooled updates of rounds that are no longer kept, once a round."""
        if state.round is None or state.round.round_id == self._tidied:
            return
        oldest_kept = state.round.round_id - self._settings.keep_spooled + 1
        await asyncio.to_thread(self._spool.discard_before, RoundId(max(1, oldest_kept)))
        await asyncio.to_thread(release_memory)
        self._tidied = state.round.round_id


def _warn_of(shortened: str, after: Round, reach: float, updates: Sequence[UpdateRecord]) -> None:
    """Say that less than all was taken, and who sent the longest updates: trust may not show it."""
    norms = {
        each.node_id: each.norm
        for each in updates
        if each.node_id in after.admitted_nodes and each.norm is not None
    }
    longest = sorted(norms, key=lambda node: (-norms[node], node))[:_NAMED]
    log.warning(
        shortened,
        round=after.round_id,
        reach=reach,
        longest_norms=", ".join(f"{node} {norms[node]:.3g}" for node in longest),
        median_norm=float(f"{median(norms.values()):.3g}") if norms else None,
        reason=_TOO_FAR,
    )


def _evaluation_facts(evaluation: Evaluation | None) -> dict[str, Fact]:
    if evaluation is None:
        return {}
    return {
        "accuracy": evaluation.accuracy,
        "balanced_accuracy": evaluation.balanced_accuracy,
        "kappa": evaluation.quadratic_weighted_kappa,
        "per_class_recall": list(evaluation.per_class_recall),
        "images": evaluation.images,
    }


def violations_in(state: State) -> dict[NodeId, str]:
    """Hospitals whose update in the newest round no honest hospital sends."""
    return {
        record.node_id: f"its update was refused: {record.reason}"
        for record in state.updates
        if record.code in (RefusalCode.NOT_FINITE, RefusalCode.NORM)
    }
