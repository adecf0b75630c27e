"""Controls, what a probe found of them, and what follows. Pure.

A verdict is about what was looked at and when. Whether an organisation satisfies a law is not
something that software can say, and nothing here says it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from matl_common.errors import MatlError

EXIT_SOUND, EXIT_UNSOUND = 0, 1


class Level(StrEnum):
    """How much the rule insists on a control."""

    REQUIRED = "required"
    ADDRESSABLE = "addressable"
    """To be done, or its absence to be justified in writing (45 CFR 164.306(d)(3))."""
    PROPOSED = "proposed"
    """By the notice of proposed rulemaking of 6 January 2025 (90 FR 898), which is not in force."""
    OWN = "own"
    """This product's own promise, beyond the rule."""


class Side(StrEnum):
    """Whose machine a control is about."""

    COORDINATOR = "coordinator"
    PARTICIPANT = "participant"


class Status(StrEnum):
    """What became of a control."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_TESTED = "NOT-TESTED"
    ATTESTED = "ATTESTED"
    """Somebody signed for it; nothing here can test it."""


BOTH: Final = frozenset(Side)
COORDINATORS: Final = frozenset({Side.COORDINATOR})


@dataclass(frozen=True, slots=True)
class Control:
    """One row of the table.

    Attributes:
        id: its name, ``subject.what``.
        cfr: the section of title 45 that it is about, or where else it comes from.
        level: how much that insists on it.
        title: what has to be so.
        probe: what is done to see whether it is.
        leaves_open: what that does not show.
        needs_daemon: whether the coordinator has to run for it.
        writes: whether it puts an entry into the log, to be found again.
        sides: whose machines it can be probed on.
    """

    id: str
    cfr: str
    level: Level
    title: str
    probe: str
    leaves_open: str
    needs_daemon: bool = False
    writes: bool = False
    sides: frozenset[Side] = COORDINATORS


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a probe found; ``remedy`` where there is something to do."""

    status: Status
    evidence: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A control with its outcome."""

    control: Control
    outcome: Outcome

    @property
    def is_unsound(self) -> bool:
        """Whether it stands against the whole: broken, or required and not tested."""
        status = self.outcome.status
        return status is Status.FAIL or (
            status is Status.NOT_TESTED and self.control.level is Level.REQUIRED
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from all findings together."""

    counts: dict[Status, int]
    broken: tuple[str, ...]
    untested: tuple[str, ...]
    """Required, and not tested."""

    @property
    def exit_status(self) -> int:
        """Not zero where anything stands against the whole."""
        return EXIT_UNSOUND if self.broken or self.untested else EXIT_SOUND


class BrokenControlError(MatlError):
    """A control does not hold: what was found, and what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


class NotTestedError(MatlError):
    """Nothing can be said of a control: why, and what it would take."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


def passed(evidence: str) -> Outcome:
    """It was tried and holds."""
    return Outcome(Status.PASS, evidence)


def attested(evidence: str) -> Outcome:
    """Somebody signed for it."""
    return Outcome(Status.ATTESTED, evidence)


def judge(findings: Iterable[Finding]) -> Verdict:
    """Count findings, and name those that stand against the whole."""
    kept = tuple(findings)
    counts = Counter(each.outcome.status for each in kept)
    unsound = [each for each in kept if each.is_unsound]
    return Verdict(
        {status: counts[status] for status in Status},
        tuple(each.control.id for each in unsound if each.outcome.status is Status.FAIL),
        tuple(each.control.id for each in unsound if each.outcome.status is Status.NOT_TESTED),
    )


def hindrances(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """What a daemon must not start with: required controls that were seen to be broken."""
    return tuple(
        each
        for each in findings
        if each.control.level is Level.REQUIRED and each.outcome.status is Status.FAIL
    )
