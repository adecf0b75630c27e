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
from matl_common.tlog.entry import encode_entry
from matl_coordinator.core.rounds import (
    Aborted,
    Aggregated,
    CollectionClosed,
    Evaluated,
    Event,
    NodeExcluded,
    NodeJoined,
    Opened,
    Round,
    Scored,
    UpdateAdmitted,
)
from matl_coordinator.core.trust_record import TrustRecord
from matl_coordinator.service.alarms import Alarm
from matl_coordinator.service.judging import Verdict

Fact = None | bool | int | float | str | list["Fact"] | dict[str, "Fact"]

HOSPITALS_PER_ENTRY = 30
"""Scores of so many hospitals fit one log entry with room to spare."""


def entry(event: str, *, at: datetime, **facts: Fact) -> bytes:
    """Encode one log entry; facts that are ``None`` are left out."""
    present = {name: fact for name, fact in facts.items() if fact is not None}
    moment = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return encode_entry({"v": 1, "event": event, "at": moment, **present})


_EVENTS: dict[type[Event], str] = {
    Opened: "round_opened",
    NodeJoined: "node_joined",
    UpdateAdmitted: "update_admitted",
    NodeExcluded: "node_excluded",
    CollectionClosed: "collection_closed",
    Scored: "round_weighted",
    Aggregated: "model_aggregated",
    Evaluated: "model_released",
    Aborted: "round_aborted",
}


def round_entry(after: Round, event: Event, *, at: datetime, **facts: Fact) -> bytes:
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
        case Aborted(reason=reason):
            said = {"reason": reason}
        case _:
            pass
    return entry(_EVENTS[type(event)], at=at, round=after.round_id, **said, **facts)


def score_entries(rnd: Round, verdict: Verdict, *, seed: int, at: datetime) -> Iterator[bytes]:
    """Everything that decided a round: scores with their components, clusters, power.

    One entry, or several of the same kind with ``part`` and ``parts`` in a large federation.
    """
    judgement = verdict.judgement
    parts = [
        judgement.records[start : start + HOSPITALS_PER_ENTRY]
        for start in range(0, len(judgement.records), HOSPITALS_PER_ENTRY)
    ] or [()]
    shared: dict[str, Fact] = {
        "rule": verdict.rule,
        "coordinate_seed": f"{seed:015x}",
        "root": {each.row.name: each.digest for each in verdict.root},
        "clusters": [_names(cluster) for cluster in judgement.clusters],
        "power": {
            "against": judgement.power.against,
            "honest": judgement.power.honest,
            "cartel": _names(judgement.power.cartel),
            "cartel_share": judgement.power.cartel_share,
        },
        "hold": judgement.hold,
    }
    for number, records in enumerate(parts, start=1):
        scores: dict[str, Fact] = {each.node_id: trust_facts(each) for each in records}
        refused: dict[str, Fact] = {
            each.node_id: judgement.refused[each.node_id]
            for each in records
            if each.node_id in judgement.refused
        }
        yield entry(
            "round_scored",
            at=at,
            round=rnd.round_id,
            trust=scores,
            refused=refused or None,
            part=number if len(parts) > 1 else None,
            parts=len(parts) if len(parts) > 1 else None,
            **(shared if number == 1 else {}),
        )


def alarm_entry(alarm: Alarm, *, round_id: int, at: datetime) -> bytes:
    """What brought an operator, or should have."""
    return entry(
        "alarm",
        at=at,
        round=round_id,
        kind=alarm.kind,
        # Infinite where every hospital that sent something was spoken against.
        figure=alarm.figure if math.isfinite(alarm.figure) else None,
        bound=alarm.bound,
        reason=alarm.reason,
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
