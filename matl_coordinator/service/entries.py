"""What the coordinator writes into the log: one function, one shape.

An entry is a canonical JSON object with ``event``, ``at`` (RFC 3339, UTC) and facts.
Never patient data, paths below data folders, or tensors.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

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

Fact = None | bool | int | float | str | list["Fact"] | dict[str, "Fact"]


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


def trust_facts(record: TrustRecord) -> dict[str, Fact]:
    """A hospital's score with every component, as the log keeps it."""
    facts: dict[str, Fact] = {
        "trust": record.trust,
        "state": record.state.value,
        "reason": record.reason,
    }
    if record.components is not None:
        facts["components"] = asdict(record.components)
    return facts
