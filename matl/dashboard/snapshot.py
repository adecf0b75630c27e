"""What a coordinator told at one moment, as a value.

Everything the board shows of a federation is made from a ``Snapshot`` alone. Nothing here reads a
clock or a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from matl.operations import Participant, Round, Status

_AT_WORK: Final = frozenset({"invited", "uploading", "admitted"})
_SILENT_AFTER: Final = timedelta(minutes=2)


class Proof(StrEnum):
    """What was verified here of a log entry; nothing of it is the coordinator's word."""

    WITNESSED = "witnessed"
    """In the tree of a checkpoint that a quorum of hospitals has cosigned."""
    PROVEN = "proven"
    """In the tree of a checkpoint that the log has signed."""
    PENDING = "pending"
    """Under no checkpoint yet."""
    UNCHECKED = "unchecked"
    """Nobody has said whose signature counts."""
    BROKEN = "broken"
    """What was sent proves nothing, or something else."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A log entry with what was verified of it.

    ``facts`` is what it says, or its leaf where it cannot be read; ``why`` tells what is broken.
    """

    index: int
    facts: Mapping[str, Any]
    proof: Proof
    why: str = ""

    @property
    def event(self) -> str:
        """Its kind."""
        return str(self.facts.get("event", "dropped"))

    @property
    def round_id(self) -> int | None:
        """The round it is about."""
        found = self.facts.get("round")
        return found if isinstance(found, int) else None


@dataclass(frozen=True, slots=True)
class LogState:
    """The log as this machine has verified it.

    Attributes:
        size: entries, by the coordinator's word.
        signed_size: under the newest checkpoint that was verified here; 0 without a key.
        root: of that checkpoint.
        witnessed_size: under the newest that a quorum has cosigned; 0 without a policy.
        cosigners: of the newest checkpoint, those that the policy knows.
        problem: why the log is not to be believed; empty where nothing is wrong.
    """

    size: int
    signed_size: int = 0
    root: str = ""
    witnessed_size: int = 0
    cosigners: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A federation at one moment.

    Attributes:
        at: when this machine asked.
        status: the study.
        rounds: every round so far, oldest first, the one under way last.
        participants: every enrolled hospital.
        entries: the newest entries of the log, newest first.
        alarms: entries that called an operator, and allow-lists that were read, newest first, of
            those seen so far.
        log: what was verified of the log.
    """

    at: datetime
    status: Status
    rounds: tuple[Round, ...]
    participants: tuple[Participant, ...]
    entries: tuple[Entry, ...]
    log: LogState
    alarms: tuple[Entry, ...] = field(default=())

    @property
    def at_work(self) -> frozenset[str]:
        """Hospitals with a part in the open round: they train, and wait to send, without a call."""
        rnd = self.status.current_round
        if rnd is None or rnd.phase != "collecting":
            return frozenset()
        if rnd.deadline is not None and self.at > rnd.deadline:
            return frozenset()
        return frozenset(each.node_id for each in rnd.contributions if each.status in _AT_WORK)

    @property
    def silent(self) -> tuple[Participant, ...]:
        """Hospitals that were not heard from for long, and are not at work."""
        at_work = self.at_work
        return tuple(
            each
            for each in self.participants
            if each.node_id not in at_work
            and (each.last_seen is None or self.at - each.last_seen > _SILENT_AFTER)
        )
