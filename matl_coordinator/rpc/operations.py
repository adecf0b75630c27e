"""``OperationsService``: what an operator's certificate may see and order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import grpc

from matl_common.identity.allowlist import AllowedNode
from matl_common.ids import NodeId, RoundId, parse_node_id
from matl_common.wire import operations_pb2 as pb
from matl_common.wire import operations_pb2_grpc as pb_grpc
from matl_common.wire.documents import to_unix_ms
from matl_coordinator.core.evaluations import HospitalEvaluation
from matl_coordinator.core.rounds import Evaluation, Phase, Round
from matl_coordinator.core.trust_record import TrustRecord
from matl_coordinator.ports import State, UpdateStatus
from matl_coordinator.roster import Roster
from matl_coordinator.rpc.guard import caller
from matl_coordinator.service.invitations import standing_of
from matl_coordinator.service.operations import Operations
from matl_coordinator.service.overview import Declared, Overview

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class OperationsServicer(pb_grpc.OperationsServiceServicer):
    """What operators call. ``guard`` has authenticated every caller."""

    def __init__(
        self,
        *,
        operations: Operations,
        overview: Overview,
        roster: Roster,
        clock: Callable[[], datetime],
    ) -> None:
        self._operations = operations
        self._overview = overview
        self._roster = roster
        self._clock = clock

    async def GetStatus(
        self, request: pb.GetStatusRequest, context: Context
    ) -> pb.GetStatusResponse:
        state = await self._operations.state()
        head = await self._operations.log_head()
        facts = self._overview.facts(state, self._clock())
        study, rnd = state.study, state.round
        return pb.GetStatusResponse(
            version=facts.version,
            federation_id=facts.federation_id,
            study_id=facts.study_id,
            paused=study is not None and study.paused,
            study_complete=facts.study_complete,
            rounds_released=state.rounds_released,
            rounds_planned=facts.rounds_planned,
            current_round=None if rnd is None else self._round(rnd, state, facts.waiting_for),
            latest_model="" if state.latest_model is None else state.latest_model.digest,
            log_size=head.size,
            log_root=head.root,
            next_round_at_unix_ms=_unix_ms(facts.next_round_at),
            active_participants=facts.present,
            mode=facts.protection.mode_name,
            rule=facts.protection.rule,
            claim=facts.protection.claim,
            warnings=facts.protection.warnings,
            average_from=facts.average_from,
            leader=facts.leader,
            reign=state.epoch,
        )

    async def ListRounds(
        self, request: pb.ListRoundsRequest, context: Context
    ) -> pb.ListRoundsResponse:
        after, limit = request.after_round, request.limit or 100
        rounds = await self._operations.rounds(after=after, limit=limit)
        history = await self._operations.trust_history(after=after, limit=limit)
        trust = {
            (each.round_id, record.node_id): record for each in history for record in each.records
        }
        return pb.ListRoundsResponse(rounds=[_past_round(rnd, trust) for rnd in rounds])

    async def ListParticipants(
        self, request: pb.ListParticipantsRequest, context: Context
    ) -> pb.ListParticipantsResponse:
        state = await self._operations.state()
        declared = await self._overview.declared()
        return pb.ListParticipantsResponse(
            participants=[
                self._participant(node, state, declared(node_id))
                for node_id, node in sorted(self._roster.participants.items())
            ]
        )

    def _participant(
        self, node: AllowedNode, state: State, declared: Declared
    ) -> pb.ParticipantSummary:
        node_id = node.node_id
        terms = self._overview.privacy
        standing = standing_of(node_id, state)
        return pb.ParticipantSummary(
            node_id=node_id,
            role=node.role.value,
            trust=standing.trust,
            state=standing.state,
            reason=standing.reason,
            enrolled_patients=node.enrolled_patients,
            last_seen_unix_ms=_unix_ms(self._overview.last_seen(node_id)),
            epsilon_spent=declared.epsilon,
            epsilon_budget=terms.target_epsilon,
            budget_fraction=declared.budget_fraction,
            rounds_left=declared.rounds_left,
            neighbouring_relation=f"{terms.adjacency} {terms.unit}",
            target_delta=terms.target_delta,
            appeal=_appeal(node_id, state),
        )

    async def Pause(self, request: pb.PauseRequest, context: Context) -> pb.PauseResponse:
        await self._operations.pause(caller().node_id, request.reason)
        return pb.PauseResponse()

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.ResumeResponse:
        await self._operations.resume(caller().node_id, request.reason)
        return pb.ResumeResponse()

    async def StartRound(
        self, request: pb.StartRoundRequest, context: Context
    ) -> pb.StartRoundResponse:
        round_id = await self._operations.start_round(caller().node_id, request.reason)
        return pb.StartRoundResponse(round_id=round_id)

    async def Quarantine(
        self, request: pb.QuarantineRequest, context: Context
    ) -> pb.QuarantineResponse:
        node_id = parse_node_id(request.node_id)
        await self._operations.quarantine(caller().node_id, node_id, request.reason)
        return pb.QuarantineResponse()

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        node_id = parse_node_id(request.node_id)
        await self._operations.release(caller().node_id, node_id, request.reason)
        return pb.ReleaseResponse()

    async def Appeal(self, request: pb.AppealRequest, context: Context) -> pb.AppealResponse:
        node_id = parse_node_id(request.node_id)
        await self._operations.appeal(caller().node_id, node_id, request.text)
        return pb.AppealResponse()

    async def Deny(self, request: pb.DenyRequest, context: Context) -> pb.DenyResponse:
        node_id = parse_node_id(request.node_id)
        await self._operations.deny(caller().node_id, node_id, request.reason)
        return pb.DenyResponse()

    def _round(self, rnd: Round, state: State, waiting_for: str) -> pb.RoundSummary:
        trust = {(rnd.round_id, record.node_id): record for record in state.trust}
        summary = _past_round(rnd, trust)
        summary.reason = summary.reason or waiting_for
        receiving = {
            each.node_id for each in state.updates if each.status is UpdateStatus.RECEIVING
        }
        for each in summary.contributions:
            node_id = NodeId(each.node_id)
            if each.status == "invited" and node_id in receiving:
                each.status = "uploading"
                each.upload_fraction = self._overview.upload_fraction(node_id)
        return summary


def _appeal(node_id: NodeId, state: State) -> pb.Appeal | None:
    appeals = () if state.study is None else state.study.appeals
    found = next((each for each in appeals if each.node_id == node_id), None)
    if found is None:
        return None
    answered = "granted" if found.granted else "denied"
    return pb.Appeal(
        text=found.text,
        filed_at_unix_ms=to_unix_ms(found.filed_at),
        state="open" if found.is_open else answered,
        answer=found.answer,
    )


def _past_round(rnd: Round, trust: Mapping[tuple[RoundId, NodeId], TrustRecord]) -> pb.RoundSummary:
    is_released = rnd.phase is Phase.RELEASED
    return pb.RoundSummary(
        round_id=rnd.round_id,
        phase=rnd.phase.value,
        reason=rnd.abort_reason or "",
        opened_at_unix_ms=_unix_ms(rnd.opened_at),
        deadline_unix_ms=_unix_ms(rnd.deadline),
        ended_at_unix_ms=_unix_ms(rnd.ended_at),
        contributions=_contributions(rnd, trust),
        base_model=rnd.base_model,
        released_model=(rnd.to_release or "") if is_released else "",
        evaluation=None if rnd.evaluation is None else _evaluation(rnd.evaluation),
        round_model=rnd.candidate or "",
        averaged=rnd.average.models if is_released and rnd.average is not None else 0,
    )


def _contributions(
    rnd: Round, trust: Mapping[tuple[RoundId, NodeId], TrustRecord]
) -> list[pb.Contribution]:
    weights = {each.node_id: each.weight for each in rnd.weights}
    reasons = {each.node_id: each.reason for each in rnd.excluded}
    evaluations = {each.node_id: each.evaluation for each in rnd.admitted}
    admitted = rnd.admitted_nodes
    rows: list[pb.Contribution] = []
    for node_id in sorted(rnd.invited):
        reason = reasons.get(node_id, "")
        status = "admitted" if node_id in admitted else "invited"
        if reason:
            status = "late" if reason.startswith("late") else "refused"
        done = 1.0 if node_id in admitted else 0.0
        standing = trust.get((rnd.round_id, node_id))
        rows.append(
            pb.Contribution(
                node_id=node_id,
                status=status,
                reason=reason,
                upload_fraction=done,
                trust=0.0 if standing is None else standing.trust,
                weight=weights.get(node_id, 0.0),
                evaluation=_hospital_evaluation(evaluations.get(node_id)),
                trust_state="" if standing is None else standing.state.value,
                trust_reason="" if standing is None else standing.reason,
            )
        )
    return rows


def _evaluation(evaluation: Evaluation) -> pb.Evaluation:
    return pb.Evaluation(
        accuracy=evaluation.accuracy,
        balanced_accuracy=evaluation.balanced_accuracy,
        quadratic_weighted_kappa=evaluation.quadratic_weighted_kappa,
        per_class_recall=[
            math.nan if each is None else each for each in evaluation.per_class_recall
        ],
        images=evaluation.images,
    )


def _hospital_evaluation(evaluation: HospitalEvaluation | None) -> pb.HospitalEvaluation | None:
    if evaluation is None:
        return None
    return pb.HospitalEvaluation(
        correct=evaluation.correct,
        stddev=evaluation.stddev,
        patients=evaluation.patients,
        doubt=evaluation.doubt,
    )


def _unix_ms(moment: datetime | None) -> int:
    return 0 if moment is None else to_unix_ms(moment)
