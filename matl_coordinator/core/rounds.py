"""One training round, as a value.

``SCHEDULED → COLLECTING → SCORING → AGGREGATING → EVALUATING → RELEASED``, or
``ABORTED`` from any of them. ``advance`` is the only way a round changes, and
``TRANSITIONS`` lists every change there is. Nothing here reads a clock, draws a
random number or performs I/O, so a round read back after a crash goes on exactly
where it stood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from matl_common.errors import MatlError
from matl_common.ids import Digest, NodeId, RoundId
from matl_coordinator.core.evaluations import HospitalEvaluation


class Phase(StrEnum):
    """Where a round stands; each name says what the round is waiting for."""

    SCHEDULED = "scheduled"
    """its opening time, and enough hospitals present."""
    COLLECTING = "collecting"
    """updates from the invited hospitals, or the deadline."""
    SCORING = "scoring"
    """trust scores and weights."""
    AGGREGATING = "aggregating"
    """the new model."""
    EVALUATING = "evaluating"
    """the new model's evaluation."""
    RELEASED = "released"
    ABORTED = "aborted"

    @property
    def is_final(self) -> bool:
        return self in (Phase.RELEASED, Phase.ABORTED)


@dataclass(frozen=True, slots=True)
class RoundRules:
    """How many hospitals a round needs and how long it waits for them."""

    quorum: int
    """Admitted updates without which the round is aborted at the deadline."""
    minimum_participants: int
    """Hospitals present without which the round does not open."""
    maximum_participants: int
    collect_for: timedelta


@dataclass(frozen=True, slots=True)
class Admitted:
    """A hospital's update that counts in this round."""

    node_id: NodeId
    update_digest: Digest
    evaluation: HospitalEvaluation | None = None
    """What the hospital says of the base model; no decision rests on it."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """A hospital that does not count in this round, and why."""

    node_id: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class NodeWeight:
    """A hospital's share in the aggregate; shares of a round sum to 1."""

    node_id: NodeId
    weight: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model does on the coordinator's de-identified holdout set."""

    accuracy: float
    balanced_accuracy: float
    quadratic_weighted_kappa: float
    per_class_recall: tuple[float | None, ...]
    """``None`` for a class that the set lacks."""
    images: int


@dataclass(frozen=True, slots=True)
class Average:
    """The mean of a round's own model and those of earlier rounds."""

    model: Digest
    models: int
    """Whose mean it is; at least 2."""


@dataclass(frozen=True, slots=True)
class Round:
    """A round and everything that was decided in it."""

    round_id: RoundId
    nonce: bytes
    plan_digest: Digest
    base_model: Digest
    rules: RoundRules
    opens_at: datetime
    """When it was scheduled. Nothing waits for it: the clock may be put back meanwhile."""
    phase: Phase = Phase.SCHEDULED
    opened_at: datetime | None = None
    deadline: datetime | None = None
    closed_at: datetime | None = None
    ended_at: datetime | None = None
    invited: frozenset[NodeId] = frozenset()
    admitted: tuple[Admitted, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    weights: tuple[NodeWeight, ...] = ()
    reach: float = 1.0
    """How much of the aggregate is added to the base model, above 0 and at most 1: before there is
    one, as far as the hospitals' common step may go."""
    candidate: Digest | None = None
    """The round's own new model, which the next round goes on from."""
    average: Average | None = None
    """Released in place of it, where the study averages."""
    evaluation: Evaluation | None = None
    """Of the model that is released."""
    abort_reason: str | None = None

    @property
    def to_release(self) -> Digest | None:
        """The model that is released with the round, once there is one."""
        return self.candidate if self.average is None else self.average.model

    @property
    def admitted_nodes(self) -> frozenset[NodeId]:
        return frozenset(each.node_id for each in self.admitted)

    @property
    def excluded_nodes(self) -> frozenset[NodeId]:
        return frozenset(each.node_id for each in self.excluded)

    @property
    def pending_nodes(self) -> frozenset[NodeId]:
        """Invited hospitals about which nothing is decided yet."""
        return self.invited - self.admitted_nodes - self.excluded_nodes


@dataclass(frozen=True, slots=True)
class Opened:
    at: datetime
    invited: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A hospital appeared after the opening and there is room for it."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class UpdateAdmitted:
    node_id: NodeId
    update_digest: Digest
    evaluation: HospitalEvaluation | None = None


@dataclass(frozen=True, slots=True)
class NodeExcluded:
    node_id: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class NodeRemoved:
    """A hospital is no longer enrolled as it was: what it sent does not count.

    Until the round is scored. After that its weights are in the log, and the model is made of
    what they say.
    """

    node_id: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class CollectionClosed:
    at: datetime


@dataclass(frozen=True, slots=True)
class Scored:
    weights: tuple[NodeWeight, ...]
    reach: float
    """How much of the hospitals' common step the holdout set bears."""


@dataclass(frozen=True, slots=True)
class Aggregated:
    candidate: Digest
    reach: float
    """How much of the aggregate it has taken; no more than the common step was found to bear."""
    average: Average | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    at: datetime
    evaluation: Evaluation | None
    """``None`` where there is no holdout set to evaluate on."""


@dataclass(frozen=True, slots=True)
class Aborted:
    at: datetime
    reason: str


Event = (
    Opened
    | NodeJoined
    | UpdateAdmitted
    | NodeExcluded
    | NodeRemoved
    | CollectionClosed
    | Scored
    | Aggregated
    | Evaluated
    | Aborted
)

TRANSITIONS: dict[tuple[Phase, type[Event]], Phase] = {
    (Phase.SCHEDULED, Opened): Phase.COLLECTING,
    (Phase.COLLECTING, NodeJoined): Phase.COLLECTING,
    (Phase.COLLECTING, UpdateAdmitted): Phase.COLLECTING,
    (Phase.COLLECTING, NodeExcluded): Phase.COLLECTING,
    (Phase.COLLECTING, NodeRemoved): Phase.COLLECTING,
    (Phase.COLLECTING, CollectionClosed): Phase.SCORING,
    (Phase.SCORING, NodeRemoved): Phase.SCORING,
    (Phase.SCORING, Scored): Phase.AGGREGATING,
    (Phase.AGGREGATING, Aggregated): Phase.EVALUATING,
    (Phase.EVALUATING, Evaluated): Phase.RELEASED,
    (Phase.SCHEDULED, Aborted): Phase.ABORTED,
    (Phase.COLLECTING, Aborted): Phase.ABORTED,
    (Phase.SCORING, Aborted): Phase.ABORTED,
    (Phase.AGGREGATING, Aborted): Phase.ABORTED,
    (Phase.EVALUATING, Aborted): Phase.ABORTED,
}


_Member = TypeVar("_Member", Admitted, Excluded, NodeWeight)


class IllegalEventError(MatlError):
    """An event that the round's phase, or its members, do not allow."""


def advance(rnd: Round, event: Event) -> Round:
    """Apply one event.

    Raises:
        IllegalEventError: ``TRANSITIONS`` has no such change, or the event names a
            hospital that cannot be its subject. The round is unchanged.
    """
    target = TRANSITIONS.get((rnd.phase, type(event)))
    if target is None:
        raise _illegal(rnd, event, f"not possible in phase {rnd.phase.value}")
    return replace(_apply(rnd, event), phase=target)


def _apply(rnd: Round, event: Event) -> Round:
    match event:
        case Opened(at=at, invited=invited):
            if len(invited) < rnd.rules.minimum_participants:
                raise _illegal(rnd, event, "too few hospitals invited")
            deadline = at + rnd.rules.collect_for
            return replace(rnd, opened_at=at, deadline=deadline, invited=invited)
        case NodeJoined(node_id=node):
            if node in rnd.invited or len(rnd.invited) >= rnd.rules.maximum_participants:
                raise _illegal(rnd, event, "already invited, or no room")
            return replace(rnd, invited=rnd.invited | {node})
        case UpdateAdmitted(node_id=node, update_digest=digest, evaluation=evaluation):
            _require_pending(rnd, event, node)
            admitted = Admitted(node, digest, evaluation)
            return replace(rnd, admitted=_sorted_by_node((*rnd.admitted, admitted)))
        case NodeExcluded(node_id=node, reason=reason):
            _require_pending(rnd, event, node)
            return replace(rnd, excluded=_sorted_by_node((*rnd.excluded, Excluded(node, reason))))
        case NodeRemoved(node_id=node, reason=reason):
            return _remove(rnd, event, Excluded(node, reason))
        case CollectionClosed(at=at):
            return _close(rnd, event, at)
        case Scored(weights=weights, reach=reach):
            return replace(_weigh(rnd, event, weights), reach=_checked_reach(rnd, event, reach))
        case Aggregated(candidate=candidate, reach=reach, average=average):
            checked = _checked_reach(rnd, event, reach)
            return replace(rnd, candidate=candidate, reach=checked, average=average)
        case Evaluated(at=at, evaluation=evaluation):
            return replace(rnd, evaluation=evaluation, ended_at=at)
        case Aborted(at=at, reason=reason):
            return replace(rnd, abort_reason=reason, ended_at=at)


def _is_short(rnd: Round) -> bool:
    return len(rnd.admitted) < rnd.rules.quorum


def _close(rnd: Round, event: Event, at: datetime) -> Round:
    if _is_short(rnd):
        raise _illegal(rnd, event, f"{len(rnd.admitted)} of {rnd.rules.quorum} updates needed")
    late = tuple(
        Excluded(node, "late: no update before the deadline") for node in rnd.pending_nodes
    )
    return replace(rnd, closed_at=at, excluded=_sorted_by_node((*rnd.excluded, *late)))


def _remove(rnd: Round, event: Event, removed: Excluded) -> Round:
    node = removed.node_id
    if node not in rnd.pending_nodes | rnd.admitted_nodes:
        raise _illegal(rnd, event, f"{node} has no part in this round")
    admitted = tuple(each for each in rnd.admitted if each.node_id != node)
    return replace(rnd, admitted=admitted, excluded=_sorted_by_node((*rnd.excluded, removed)))


def _weigh(rnd: Round, event: Event, weights: tuple[NodeWeight, ...]) -> Round:
    if _is_short(rnd):
        raise _illegal(rnd, event, f"{len(rnd.admitted)} of {rnd.rules.quorum} updates needed")
    if {each.node_id for each in weights} != rnd.admitted_nodes or len(weights) != len(
        rnd.admitted
    ):
        raise _illegal(rnd, event, "weights must name exactly the admitted hospitals")
    if any(not each.weight >= 0.0 for each in weights):
        raise _illegal(rnd, event, "weights must be numbers of at least 0")
    if abs(sum(each.weight for each in weights) - 1.0) > 1e-9:
        raise _illegal(rnd, event, "weights must sum to 1")
    return replace(rnd, weights=_sorted_by_node(weights))


def _checked_reach(rnd: Round, event: Event, reach: float) -> float:
    if not 0.0 < reach <= rnd.reach:
        raise _illegal(rnd, event, f"reach must be above 0 and at most {rnd.reach:g}")
    return reach


def _require_pending(rnd: Round, event: Event, node: NodeId) -> None:
    if node not in rnd.pending_nodes:
        raise _illegal(rnd, event, f"{node} is not pending in this round")


def _sorted_by_node(items: Iterable[_Member]) -> tuple[_Member, ...]:
    return tuple(sorted(items, key=lambda each: each.node_id))


def _illegal(rnd: Round, event: Event, why: str) -> IllegalEventError:
    return IllegalEventError(f"round {rnd.round_id}: {type(event).__name__}: {why}")


def next_event(
    rnd: Round,
    now: datetime,
    *,
    present: frozenset[NodeId],
    collected_for: timedelta = timedelta(0),
) -> tuple[Event | None, str]:
    """Decide what a tick of the clock does to ``rnd``, and say why.

    Args:
        present: enrolled hospitals heard from recently.
        collected_for: how long updates have been waited for at least, by a clock that nobody
            sets; it ends a collection whose deadline was set by a wrong one.

    Returns:
        The event, or ``None`` with what the round waits for.
    """
    match rnd.phase:
        case Phase.SCHEDULED:
            return _when_scheduled(rnd, now, present)
        case Phase.COLLECTING:
            return _when_collecting(rnd, now, collected_for)
        case Phase.SCORING if _is_short(rnd):
            reason = f"hospitals were removed, and {len(rnd.admitted)} updates are left"
            return Aborted(now, f"{reason} of {rnd.rules.quorum} needed"), "quorum out of reach"
        case Phase.RELEASED | Phase.ABORTED:
            return None, "the round is over"
        case _:
            return None, f"{rnd.phase.value} is under way"


def _when_scheduled(
    rnd: Round, now: datetime, present: frozenset[NodeId]
) -> tuple[Event | None, str]:
    needed = rnd.rules.minimum_participants
    if len(present) < needed:
        return None, f"{len(present)} of at least {needed} hospitals are connected"
    invited = choose_invited(present, maximum=rnd.rules.maximum_participants, nonce=rnd.nonce)
    return Opened(now, invited), f"{len(invited)} hospitals invited"


def _when_collecting(
    rnd: Round, now: datetime, collected_for: timedelta
) -> tuple[Event | None, str]:
    assert rnd.deadline is not None, "a collecting round has a deadline"
    admitted, quorum = len(rnd.admitted), rnd.rules.quorum
    if not rnd.pending_nodes and admitted >= quorum:
        return CollectionClosed(now), "every invited hospital has been decided on"
    if (
        admitted + len(rnd.pending_nodes) < quorum
        and len(rnd.invited) >= rnd.rules.maximum_participants
    ):
        return Aborted(now, f"quorum of {quorum} can no longer be reached"), "quorum out of reach"
    if now < rnd.deadline and collected_for < rnd.rules.collect_for:
        return None, f"{admitted} of {len(rnd.invited)} updates admitted"
    if admitted >= quorum:
        return CollectionClosed(now), "the deadline has passed"
    reason = f"{admitted} of {quorum} updates needed were admitted before the deadline"
    return Aborted(now, reason), "the deadline has passed"


def choose_invited(present: frozenset[NodeId], *, maximum: int, nonce: bytes) -> frozenset[NodeId]:
    """Pick at most ``maximum`` hospitals, each round another draw.

    The order is that of SHA-256(nonce ‖ name), so that it can be recomputed from the
    round's record and nobody can choose a name that is always drawn.
    """
    drawn = sorted(present, key=lambda node: hashlib.sha256(nonce + node.encode()).digest())
    return frozenset(drawn[:maximum])
