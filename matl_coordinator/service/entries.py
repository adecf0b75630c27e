"""What the coordinator writes into the log: one function, one shape.

An entry is a canonical JSON object with ``event``, ``at`` (RFC 3339, UTC) and facts.
Never patient data, paths below data folders, or tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime

from matl_common.ids import NodeId
from matl_common.tlog.entry import Entry, entry_of
from matl_coordinator.core.evaluations import HospitalEvaluation
from matl_coordinator.core.rounds import (
    Aborted,
    Aggregated,
    CollectionClosed,
    Evaluated,
    Event,
    NodeExcluded,
    NodeJoined,
    NodeRemoved,
    Opened,
    Round,
    Scored,
    UpdateAdmitted,
)
from matl_coordinator.core.trust_record import TrustRecord
from matl_coordinator.service.alarms import Alarm
from matl_coordinator.service.judging import Verdict
from matl_coordinator.service.parts import Fact, numbered, numbered_parts
from matl_coordinator.service.story import aggregator_facts

__all__ = [
    "Fact",
    "alarm_entry",
    "entries",
    "entry",
    "evaluation_entry",
    "round_entries",
    "score_entries",
]

LONGEST_REASON = 2000
"""Characters of a reason that may name every hospital."""


def entry(event: str, *, at: datetime, **facts: Fact) -> Entry:
    """Encode one log entry; facts that are ``None`` are left out."""
    present = {name: fact for name, fact in facts.items() if fact is not None}
    moment = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return entry_of({"v": 1, "event": event, "at": moment, **present})


def entries(event: str, *, at: datetime, round_id: int | None, **facts: Fact) -> Iterator[Entry]:
    """Encode an event that may have facts of every hospital, or others that are long.

    One entry, or several of the same kind with ``part`` and ``parts`` in a large federation;
    see ``parts`` for how they go together.
    """
    for part in numbered_parts({name: fact for name, fact in facts.items() if fact is not None}):
        yield entry(event, at=at, **{"round": round_id, **part})


_EVENTS: dict[type[Event], str] = {
    Opened: "round_opened",
    NodeJoined: "node_joined",
    UpdateAdmitted: "update_admitted",
    NodeExcluded: "node_excluded",
    NodeRemoved: "node_removed",
    CollectionClosed: "collection_closed",
    Scored: "round_weighted",
    Aggregated: "model_aggregated",
    Evaluated: "model_released",
    Aborted: "round_aborted",
}


def round_entries(after: Round, event: Event, *, at: datetime, **facts: Fact) -> Iterator[Entry]:
    """Encode what an event made of a round, with what the event itself says."""
    said: dict[str, Fact] = {}
    match event:
        case Opened(invited=invited):
            names: list[Fact] = list(sorted(invited))  # noqa: C413 - list is invariant
            said = {"invited": names, "base_model": after.base_model}
        case CollectionClosed():
            said = {
                "admitted": {each.node_id: each.update_digest for each in after.admitted},
                "excluded": {each.node_id: each.reason for each in after.excluded},
            }
        case NodeRemoved(node_id=node, reason=reason):
            said = {"node": node, "reason": reason}
        case Scored(reach=reach) | Aggregated(reach=reach):
            said = {"reach": reach}
        case Aborted(reason=reason):
            said = {"reason": reason}
        case _:
            pass
    return entries(_EVENTS[type(event)], at=at, round_id=after.round_id, **said, **facts)


def score_entries(rnd: Round, verdict: Verdict, *, seed: int, at: datetime) -> Iterator[Entry]:
    """Everything that decided a round: scores with their components, clusters, power."""
    judgement = verdict.judgement
    trust: dict[str, Fact] = {each.node_id: trust_facts(each) for each in judgement.records}
    refused: dict[str, Fact] = {
        each.node_id: judgement.refused[each.node_id]
        for each in judgement.records
        if each.node_id in judgement.refused
    }
    return entries(
        "round_scored",
        at=at,
        round_id=rnd.round_id,
        rule=verdict.rule,
        aggregator=aggregator_facts(verdict.configured, f=verdict.f),
        coordinate_seed=f"{seed:015x}",
        root={each.name: each.digest for each in verdict.root},
        # Rows along the step end by it; a held round has no other entry to say so.
        reach=verdict.reach,
        clusters=numbered([_names(cluster) for cluster in judgement.clusters]),
        power={
            "against": judgement.power.against,
            "honest": judgement.power.honest,
            "cartel": _names(judgement.power.cartel),
            "cartel_share": judgement.power.cartel_share,
        },
        hold=judgement.hold,
        trust=trust,
        refused=refused or None,
    )


def evaluation_entry(
    evaluation: HospitalEvaluation, *, node_id: NodeId, rnd: Round, at: datetime
) -> Entry:
    """What a hospital says of the base model on its own patients."""
    return entry(
        "hospital_evaluated",
        at=at,
        round=rnd.round_id,
        node=node_id,
        model=rnd.base_model,
        correct=evaluation.correct,
        stddev=evaluation.stddev,
        patients=evaluation.patients,
        doubt=evaluation.doubt or None,
    )


def alarm_entry(alarm: Alarm, *, round_id: int, at: datetime) -> Entry:
    """What brought an operator, or should have."""
    is_finite = math.isfinite(alarm.figure)
    return entry(
        "alarm",
        at=at,
        round=round_id,
        kind=alarm.kind,
        figure=alarm.figure if is_finite else None,
        # Where every hospital that sent something was spoken against; JSON has no infinity.
        unbounded=None if is_finite else True,
        bound=alarm.bound,
        reason=alarm.reason[:LONGEST_REASON],
    )


def trust_facts(record: TrustRecord) -> dict[str, Fact]:
    """A hospital's standing with all that the rule remembers and every component of its score."""
    facts: dict[str, Fact] = asdict(record)
    del facts["node_id"]
    facts["state"] = record.state.value
    if record.components is None:
        del facts["components"]
    return facts


def _names(nodes: frozenset[NodeId]) -> list[Fact]:
    return list(sorted(nodes))  # noqa: C413 - list is invariant
