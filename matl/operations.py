"""What an operator asks of a coordinator, and what comes back, as values.

Speaks ``OperationsService`` with an operator's certificate, one try a call. Nothing here
decides, retries or prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from matl.audit_client import AuditClient
from matl.calls import CALL_SECONDS, answered
from matl_common.configuration import addresses_of
from matl_common.identity.certificates import SpiffeId
from matl_common.identity.tls import TlsPlace, channel_credentials, channel_options
from matl_common.wire import operations_pb2 as pb
from matl_common.wire.documents import from_unix_ms
from matl_common.wire.operations_pb2_grpc import OperationsServiceStub

MAX_ENTRIES = 500

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A released model on the coordinator's holdout set.

    ``recall`` is by class; NaN for one that the set lacks.
    """

    accuracy: float
    balanced_accuracy: float
    quadratic_weighted_kappa: float
    recall: tuple[float, ...]
    images: int


@dataclass(frozen=True, slots=True)
class HospitalEvaluation:
    """What a hospital says of a round's base model on its own patients; nobody can check it.

    ``correct`` is a count with noise of ``stddev``, both in patients; ``None`` where what came
    cannot be one, with the reason in ``doubt``. ``patients`` are those enrolled.
    """

    correct: float | None
    stddev: float
    patients: int
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Contribution:
    """One hospital's part in a round.

    ``status`` is invited, uploading, admitted, refused or late; ``weight`` is 0 before the
    round was scored. ``trust_state`` and ``trust_reason`` are the hospital's standing after the
    round, and empty from a coordinator that does not tell them.
    """

    node_id: str
    status: str
    reason: str
    upload_fraction: float
    trust: float
    weight: float
    evaluation: HospitalEvaluation | None = None
    trust_state: str = ""
    trust_reason: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """A round as the coordinator tells it; digests are empty where there is no model.

    ``released_model``, which ``evaluation`` is about, is the mean of ``averaged`` rounds' own
    models, or ``round_model``, this round's own, where ``averaged`` is 0.
    """

    round_id: int
    phase: str
    reason: str
    contributions: tuple[Contribution, ...]
    base_model: str
    released_model: str
    evaluation: Evaluation | None
    round_model: str = ""
    averaged: int = 0
    opened_at: datetime | None = None
    deadline: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The study at this moment."""

    version: str
    federation_id: str
    study_id: str
    paused: bool
    study_complete: bool
    rounds_released: int
    rounds_planned: int
    current_round: Round | None
    latest_model: str
    log_size: int
    log_root: str
    active_participants: int
    mode: str = ""
    rule: str = ""
    claim: str = ""
    """What the coordinator withstands, given what; empty from one that does not say."""
    warnings: tuple[str, ...] = ()
    average_from: int = 0
    """The first release, counted from 1, that is a mean of rounds' own models; 0 for none."""
    leader: str = ""
    """Which of the coordinator's daemons answered; empty for one without a standby."""
    reign: int = 0
    """Number of its take-over, which its log entries bear; 0 from one that does not say."""
    next_round_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Appeal:
    """A hospital's newest appeal; ``state`` is open, granted or denied."""

    text: str
    filed_at: datetime
    state: str
    answer: str


@dataclass(frozen=True, slots=True)
class Participant:
    """An enrolled hospital as the coordinator sees it.

    What is spent is what its admitted updates declared; its own ledger is the truth.
    """

    node_id: str
    trust: float
    state: str
    reason: str
    enrolled_patients: int
    last_seen: datetime | None
    epsilon_spent: float | None
    """``None`` where only the hospital's ledger knows."""
    epsilon_budget: float
    budget_fraction: float
    """Of the study's steps, or Σ 1/σ² with evaluations; ε is not linear in it."""
    rounds_left: int
    neighbouring_relation: str
    target_delta: float
    appeal: Appeal | None = None


class OperationsClient:
    """Asks one coordinator. Safe to share between threads."""

    def __init__(self, channel: grpc.Channel, *, timeout_seconds: float = CALL_SECONDS) -> None:
        """Use a channel that somebody else opens and closes."""
        self._stub = OperationsServiceStub(channel)
        self.audit = AuditClient(channel, timeout_seconds=timeout_seconds)
        self._timeout = timeout_seconds

    def status(self) -> Status:
        """The study at this moment.

        Raises:
            CoordinatorUnavailableError: no answer.
            OperationsError: refused, for example because the certificate is no operator's.
        """
        answer = self._call(self._stub.GetStatus, pb.GetStatusRequest())
        current = _round(answer.current_round) if answer.HasField("current_round") else None
        return Status(
            version=answer.version,
            federation_id=answer.federation_id,
            study_id=answer.study_id,
            paused=answer.paused,
            study_complete=answer.study_complete,
            rounds_released=answer.rounds_released,
            rounds_planned=answer.rounds_planned,
            current_round=current,
            latest_model=answer.latest_model,
            log_size=answer.log_size,
            log_root=answer.log_root,
            active_participants=answer.active_participants,
            mode=answer.mode,
            rule=answer.rule,
            claim=answer.claim,
            warnings=tuple(answer.warnings),
            average_from=answer.average_from,
            leader=answer.leader,
            reign=answer.reign,
            next_round_at=_moment(answer.next_round_at_unix_ms),
        )

    def rounds(self, *, after: int = 0) -> tuple[Round, ...]:
        """Every round after number ``after``, oldest first.

        Raises:
            OperationsError: as ``status``.
        """
        found: list[Round] = []
        while True:
            request = pb.ListRoundsRequest(after_round=after, limit=100)
            page = [_round(each) for each in self._call(self._stub.ListRounds, request).rounds]
            if not page:
                return tuple(found)
            found += page
            after = page[-1].round_id

    def participants(self) -> tuple[Participant, ...]:
        """Every enrolled hospital, by name.

        Raises:
            OperationsError: as ``status``.
        """
        answer = self._call(self._stub.ListParticipants, pb.ListParticipantsRequest())
        return tuple(_participant(each) for each in answer.participants)

    def newest_log_entries(self, *, limit: int = MAX_ENTRIES) -> tuple[bytes, ...]:
        """What the newest entries of the log say, oldest first, as canonical JSON.

        An entry whose key was erased is left out.

        Raises:
            OperationsError: as ``status``.
        """
        return tuple(each.entry for each in self.audit.read(limit=limit).entries if each.entry)

    def pause(self, reason: str) -> None:
        """Open no further round. Raises OperationsError."""
        self._call(self._stub.Pause, pb.PauseRequest(reason=reason))

    def resume(self, reason: str) -> None:
        """Open rounds again. Raises OperationsError."""
        self._call(self._stub.Resume, pb.ResumeRequest(reason=reason))

    def start_round(self, reason: str) -> int:
        """Open the next round now; returns its number. Raises OperationsError."""
        request = pb.StartRoundRequest(reason=reason)
        return self._call(self._stub.StartRound, request).round_id

    def quarantine(self, node_id: str, reason: str) -> None:
        """Give a hospital no weight until it is released. Raises OperationsError."""
        self._call(self._stub.Quarantine, pb.QuarantineRequest(node_id=node_id, reason=reason))

    def release(self, node_id: str, reason: str) -> None:
        """End a hospital's quarantine; grants its appeal. Raises OperationsError."""
        self._call(self._stub.Release, pb.ReleaseRequest(node_id=node_id, reason=reason))

    def appeal(self, node_id: str, text: str) -> None:
        """Put a hospital's appeal on record. Raises OperationsError."""
        self._call(self._stub.Appeal, pb.AppealRequest(node_id=node_id, text=text))

    def deny(self, node_id: str, reason: str) -> None:
        """Answer a hospital's appeal with no. Raises OperationsError."""
        self._call(self._stub.Deny, pb.DenyRequest(node_id=node_id, reason=reason))

    def _call(
        self, method: grpc.UnaryUnaryMultiCallable[_Request, _Answer], request: _Request
    ) -> _Answer:
        return answered(method, request, timeout_seconds=self._timeout)


@contextmanager
def connect_operator(
    address: str, files: TlsPlace, coordinator: SpiffeId
) -> Iterator[OperationsClient]:
    """Open a connection over which only this coordinator can answer.

    Args:
        address: host:port of the coordinator, or several with commas between them, of which the
            first is taken where one leads.
        files: the operator's key and certificate, and the authority of coordinators.
        coordinator: the name that its certificate must carry.

    Raises:
        ConfigurationError: a key or certificate file does not work.
    """
    credentials, options = channel_credentials(files), channel_options(coordinator)
    with ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.secure_channel(each, credentials, options=options))
            for each in addresses_of(address)
        ]
        yield OperationsClient(_leading(channels))


def _leading(channels: Sequence[grpc.Channel]) -> grpc.Channel:
    """The one behind which a coordinator leads; the last, whose answer tells why, if none does."""
    *others, last = channels
    for channel in others:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            found = check(HealthCheckRequest(), timeout=CALL_SECONDS)
        except grpc.RpcError:
            continue
        if found.status == HealthCheckResponse.SERVING:
            return channel
    return last


def _round(message: pb.RoundSummary) -> Round:
    return Round(
        round_id=message.round_id,
        phase=message.phase,
        reason=message.reason,
        contributions=tuple(
            Contribution(
                node_id=each.node_id,
                status=each.status,
                reason=each.reason,
                upload_fraction=each.upload_fraction,
                trust=each.trust,
                weight=each.weight,
                evaluation=(
                    _hospital_evaluation(each.evaluation) if each.HasField("evaluation") else None
                ),
                trust_state=each.trust_state,
                trust_reason=each.trust_reason,
            )
            for each in message.contributions
        ),
        base_model=message.base_model,
        released_model=message.released_model,
        evaluation=_evaluation(message.evaluation) if message.HasField("evaluation") else None,
        round_model=message.round_model,
        averaged=message.averaged,
        opened_at=_moment(message.opened_at_unix_ms),
        deadline=_moment(message.deadline_unix_ms),
        ended_at=_moment(message.ended_at_unix_ms),
    )


def _hospital_evaluation(message: pb.HospitalEvaluation) -> HospitalEvaluation:
    return HospitalEvaluation(
        correct=message.correct if message.HasField("correct") else None,
        stddev=message.stddev,
        patients=message.patients,
        doubt=message.doubt,
    )


def _evaluation(message: pb.Evaluation) -> Evaluation:
    return Evaluation(
        accuracy=message.accuracy,
        balanced_accuracy=message.balanced_accuracy,
        quadratic_weighted_kappa=message.quadratic_weighted_kappa,
        recall=tuple(message.per_class_recall),
        images=message.images,
    )


def _participant(message: pb.ParticipantSummary) -> Participant:
    return Participant(
        node_id=message.node_id,
        trust=message.trust,
        state=message.state,
        reason=message.reason,
        enrolled_patients=message.enrolled_patients,
        last_seen=_moment(message.last_seen_unix_ms),
        epsilon_spent=message.epsilon_spent if message.HasField("epsilon_spent") else None,
        epsilon_budget=message.epsilon_budget or math.inf,
        budget_fraction=message.budget_fraction,
        rounds_left=message.rounds_left,
        neighbouring_relation=message.neighbouring_relation,
        target_delta=message.target_delta,
        appeal=_appeal(message.appeal) if message.HasField("appeal") else None,
    )


def _appeal(message: pb.Appeal) -> Appeal:
    return Appeal(
        text=message.text,
        filed_at=from_unix_ms(message.filed_at_unix_ms),
        state=message.state,
        answer=message.answer,
    )


def _moment(unix_ms: int) -> datetime | None:
    return from_unix_ms(unix_ms) if unix_ms else None
