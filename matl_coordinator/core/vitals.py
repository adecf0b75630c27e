"""What an operator watches of a coordinator, as one value read at one moment.

No decision rests on any of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from matl_common.ids import NodeId
from matl_coordinator.core.rounds import Round


@dataclass(frozen=True, slots=True)
class Budget:
    """What the admitted updates of a hospital have declared; its own ledger is the truth."""

    epsilon: float | None
    """``None`` where only the hospital can say."""
    fraction: float
    rounds_left: int


@dataclass(frozen=True, slots=True)
class LogVitals:
    """How far the hospitals bear witness to the log."""

    size: int
    signed: int
    """Entries under the newest checkpoint; 0 before the first."""
    witnessed: int
    """Entries under the newest checkpoint that a quorum has cosigned; 0 before the first."""
    unwitnessed_since: datetime | None
    """When the first entry beyond them was written; ``None`` if there is none."""
    cosigned: Mapping[NodeId, int]
    """By witness, the largest checkpoint seen with its cosignature; 0 before the first."""
    newest: Mapping[str, datetime]
    """When the newest entry of a kind was written, for kinds that are in the log."""
    backed_up: datetime | None
    """When a backup was last completed here."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """See the module."""

    at: datetime
    paused: bool
    rounds_released: int
    rounds_planned: int
    round: Round | None
    open_appeals: int
    last_seen: Mapping[NodeId, datetime]
    """Enrolled hospitals that were heard from since the start."""
    uploads: Mapping[NodeId, float]
    """Share of its update that each invited hospital has sent, while they are collected."""
    budgets: Mapping[NodeId, Budget]
    """Of every enrolled hospital."""
    log: LogVitals
    spooled_bytes: int
    """What updates on disk take, or have room reserved for."""
    lag_seconds: float
    """By how much the event loop was late for this look."""
