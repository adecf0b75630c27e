"""What operators ask of the coordinator: look, pause, start a round, judge a hospital.

Every change carries the operator's name and reason into the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime

from matl_common.errors import MatlError
from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.core.trust import quarantine, release
from matl_coordinator.core.trust_record import TrustRecord, TrustState, with_newcomers
from matl_coordinator.ports import (
    Appeal,
    Change,
    LogHead,
    PutStudy,
    PutTrust,
    State,
    Store,
    StudyRecord,
)
from matl_coordinator.service.entries import entry
from matl_coordinator.service.register import Decision, Register

MAX_ROUNDS_LISTED = 100
MAX_ROUND_ID = 2**63 - 1
"""No store counts further; the wire does."""


class OperationError(MatlError):
    """The order cannot be carried out as things stand."""


class Operations:
    """Orders and questions of operators. Runs on the register's event loop."""

    def __init__(
        self,
        *,
        register: Register,
        store: Store,
        enrolled: Callable[[], Collection[NodeId]],
        start_round: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._register = register
        self._store = store
        self._enrolled = enrolled
        self._start_round = start_round
        self._clock = clock

    async def state(self) -> State:
        return await self._register.state()

    async def rounds(self, *, after: int, limit: int) -> tuple[Round, ...]:
        return await asyncio.to_thread(self._store.rounds, **_bounded(after, limit))

    async def trust_history(self, *, after: int, limit: int) -> tuple[PutTrust, ...]:
        return await asyncio.to_thread(self._store.trust_history, **_bounded(after, limit))

    async def log_head(self) -> LogHead:
        return await asyncio.to_thread(self._store.log_head)

    async def pause(self, operator: NodeId, reason: str) -> None:
        """Open no further round; the one under way goes on."""
        await self._set_paused(operator, reason, paused=True)

    async def resume(self, operator: NodeId, reason: str) -> None:
        await self._set_paused(operator, reason, paused=False)

    async def _set_paused(self, operator: NodeId, reason: str, *, paused: bool) -> None:
        def decide(state: State) -> Decision[None]:
            if state.study is None or state.study.paused == paused:
                raise OperationError(f"the study is {'paused' if paused else 'running'} already")
            written = entry(
                "study_paused" if paused else "study_resumed",
                at=self._clock(),
                operator=operator,
                reason=_required(reason),
            )
            study = replace(state.study, paused=paused, pause_reason=reason if paused else "")
            return Decision(None, (PutStudy(study),), (written,))

        await self._register.decide(decide)

    async def start_round(self, operator: NodeId, reason: str) -> RoundId:
        """Let the next round open now instead of when it is due."""

        def decide(state: State) -> Decision[RoundId]:
            rnd = state.round
            if rnd is not None and not rnd.phase.is_final and rnd.phase is not Phase.SCHEDULED:
                raise OperationError(f"round {rnd.round_id} is {rnd.phase.value}")
            if state.study is None or state.study.paused:
                raise OperationError("the study is paused; resume it first")
            number = 1 if rnd is None else rnd.round_id + (1 if rnd.phase.is_final else 0)
            written = entry(
                "round_requested",
                at=self._clock(),
                operator=operator,
                reason=_required(reason),
                round=number,
            )
            return Decision(RoundId(number), (), (written,))

        round_id, _ = await self._register.decide(decide)
        self._start_round()
        return round_id

    async def quarantine(self, operator: NodeId, node_id: NodeId, reason: str) -> None:
        """Give a hospital no weight until an operator releases it."""
        await self._judge(
            operator, node_id, reason, "node_quarantined", lambda r: quarantine(r, why=reason)
        )

    async def appeal(self, operator: NodeId, node_id: NodeId, text: str) -> None:
        """Put a hospital's appeal on record; ``release`` or ``deny`` answers it."""

        def decide(state: State) -> Decision[None]:
            study, standing = self._study_of(node_id, state), None
            if _open_appeal(study, node_id) is not None:
                raise OperationError(f"an appeal of {node_id} is open; release or deny it first")
            for record in with_newcomers(state.trust, self._enrolled()):
                standing = record if record.node_id == node_id else standing
            now = self._clock()
            filed = Appeal(node_id, _required(text), filed_by=operator, filed_at=now)
            written = entry(
                "appeal_filed",
                at=now,
                operator=operator,
                node=node_id,
                text=filed.text,
                state=None if standing is None else standing.state.value,
                against=None if standing is None else standing.reason,
            )
            return Decision(None, (PutStudy(_with_appeal(study, filed)),), (written,))

        await self._register.decide(decide)

    async def deny(self, operator: NodeId, node_id: NodeId, reason: str) -> None:
        """Answer a hospital's appeal: its trust stays as it is."""

        def decide(state: State) -> Decision[None]:
            study = self._study_of(node_id, state)
            found = _open_appeal(study, node_id)
            if found is None:
                raise OperationError(f"no appeal of {node_id} is open")
            now = self._clock()
            denied = _answered(found, operator, reason, granted=False, at=now)
            written = entry(
                "appeal_denied", at=now, operator=operator, node=node_id, reason=denied.answer
            )
            return Decision(None, (PutStudy(_with_appeal(study, denied)),), (written,))

        await self._register.decide(decide)

    def _study_of(self, node_id: NodeId, state: State) -> StudyRecord:
        if node_id not in self._enrolled():
            raise OperationError(f"{node_id} is not an enrolled participant")
        if state.study is None:
            raise OperationError("the study has not begun")
        return state.study

    async def release(self, operator: NodeId, node_id: NodeId, reason: str) -> None:
        """End a hospital's quarantine, and grant its appeal if one is open."""

        def released(record: TrustRecord) -> TrustRecord:
            if record.state is not TrustState.QUARANTINED:
                raise OperationError(f"{node_id} is {record.state.value}, not quarantined")
            return release(record, why=reason)

        await self._judge(operator, node_id, reason, "node_released", released)

    async def _judge(
        self,
        operator: NodeId,
        node_id: NodeId,
        reason: str,
        event: str,
        change: Callable[[TrustRecord], TrustRecord],
    ) -> None:
        def decide(state: State) -> Decision[None]:
            if node_id not in self._enrolled():
                raise OperationError(f"{node_id} is not an enrolled participant")
            records = tuple(
                change(record) if record.node_id == node_id else record
                for record in with_newcomers(state.trust, self._enrolled())
            )
            now = self._clock()
            changes: tuple[Change, ...] = (PutTrust(_newest_round(state), records),)
            found = _open_appeal(state.study, node_id)
            granted = found is not None and event == "node_released"
            if granted and found is not None and state.study is not None:
                answered = _answered(found, operator, reason, granted=True, at=now)
                changes = (*changes, PutStudy(_with_appeal(state.study, answered)))
            written = entry(
                event,
                at=now,
                operator=operator,
                node=node_id,
                reason=_required(reason),
                appeal="granted" if granted else None,
            )
            return Decision(None, changes, (written,))

        await self._register.decide(decide)


def _newest_round(state: State) -> RoundId:
    return RoundId(0 if state.round is None else state.round.round_id)


def _open_appeal(study: StudyRecord | None, node_id: NodeId) -> Appeal | None:
    appeals = () if study is None else study.appeals
    return next((each for each in appeals if each.node_id == node_id and each.is_open), None)


def _answered(
    appeal: Appeal, operator: NodeId, answer: str, *, granted: bool, at: datetime
) -> Appeal:
    return replace(
        appeal, granted=granted, answer=_required(answer), answered_by=operator, answered_at=at
    )


def _with_appeal(study: StudyRecord, appeal: Appeal) -> StudyRecord:
    others = (each for each in study.appeals if each.node_id != appeal.node_id)
    kept = sorted((*others, appeal), key=lambda each: each.node_id)
    return replace(study, appeals=tuple(kept))


def _required(reason: str) -> str:
    text = reason.strip()
    if not text or len(text) > 500:
        raise OperationError("give a reason of 1 to 500 characters; it goes into the log")
    return text


def _bounded(after: int, limit: int) -> dict[str, int]:
    """What a store may be asked for."""
    return {
        "after": min(after, MAX_ROUND_ID),
        "limit": min(max(1, limit), MAX_ROUNDS_LISTED),
    }
