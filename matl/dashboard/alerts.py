"""What deserves an operator's attention in a snapshot, and what to do about it.

Pure; the coordinator's own alarms are among them, and are in its log and metrics besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from matl.dashboard.board import Tone
from matl.dashboard.sayings import said, sentence
from matl.dashboard.snapshot import Entry, Snapshot
from matl.operations import Participant
from matl_participant.core.spending import WARNING_FRACTION

LOW_TRUST: Final = 0.5
_RECENT_ROUNDS: Final = 3
_LIST_READ: Final = "allowlist_read"
_OF_THE_LIST: Final = {
    "allowlist_refused": "mend allowlist.toml: until then nobody new is enrolled",
    "node_removed": "if that was not meant, mend allowlist.toml; the next list settles this",
}
KEPT_EVENTS: Final = frozenset(
    {"alarm", "study_paused", "round_aborted", *_OF_THE_LIST, _LIST_READ}
)
"""What is kept of a log for alerts: what calls an operator, and what settles it."""


@dataclass(frozen=True, slots=True)
class Alert:
    """Something to look at; ``remedy`` is what to do."""

    tone: Tone
    title: str
    says: str
    remedy: str = ""


def alerts_of(snapshot: Snapshot) -> tuple[Alert, ...]:
    """Every alert, the bad ones first; within a tone in a fixed order."""
    found = [
        *_of_log(snapshot),
        *_of_study(snapshot),
        *_of_trust(snapshot.participants),
        *_of_budget(snapshot.participants),
        *_of_presence(snapshot),
        *_of_appeals(snapshot.participants),
        *_of_allowlist(snapshot.alarms),
        *_of_alarms(snapshot),
    ]
    order = (Tone.BAD, Tone.WARNING, Tone.PLAIN, Tone.GOOD)
    return tuple(sorted(found, key=lambda each: order.index(each.tone)))


def _of_log(snapshot: Snapshot) -> Iterator[Alert]:
    log = snapshot.log
    if log.problem:
        yield Alert(
            Tone.BAD,
            "The log does not hold",
            log.problem,
            "keep what you have, pause the study (matl pause), and run matl audit verify",
        )
    elif not log.signed_size:
        yield Alert(
            Tone.PLAIN,
            "The log is not verified here",
            "nobody has said whose signature on it counts",
            "give log_key in operator.toml, --log-key or --policy",
        )


def _of_study(snapshot: Snapshot) -> Iterator[Alert]:
    status = snapshot.status
    if status.paused:
        yield Alert(
            Tone.WARNING,
            "The study is paused",
            _pause_reason(snapshot.alarms),
            "matl resume --reason TEXT, once what paused it is dealt with",
        )
    last = snapshot.rounds[-1] if snapshot.rounds else None
    if last is not None and last.phase == "aborted":
        yield Alert(
            Tone.BAD, f"Round {last.round_id} was aborted", last.reason, "see matl rounds for all"
        )
    for warning in status.warnings:
        yield Alert(Tone.WARNING, "The configuration asks for more than is there", warning)


def _pause_reason(alarms: Iterable[Entry]) -> str:
    found = next((each for each in alarms if each.event == "study_paused"), None)
    return "no further round opens" if found is None else said(found.facts)


def _of_trust(participants: Iterable[Participant]) -> Iterator[Alert]:
    for each in participants:
        if each.state == "quarantined":
            yield Alert(
                Tone.BAD,
                f"{each.node_id} is quarantined",
                each.reason,
                "its updates count for nothing; ask the hospital, then matl release or leave it",
            )
        elif each.trust < LOW_TRUST:
            yield Alert(
                Tone.WARNING,
                f"Low trust: {each.node_id} at {each.trust:.2f}",
                each.reason,
                "its updates weigh less; ask the hospital about its labels",
            )


def _of_budget(participants: Iterable[Participant]) -> Iterator[Alert]:
    spent = [each for each in participants if each.budget_fraction >= WARNING_FRACTION]
    empty = [each.node_id for each in spent if each.rounds_left == 0]
    if empty:
        yield Alert(
            Tone.BAD,
            "Privacy budget spent",
            f"no round is left for {', '.join(empty)}",
            "nothing refunds it; a further study needs the hospital's consent to a new budget",
        )
    half = [
        f"{each.node_id} ({each.budget_fraction:.0%})" for each in spent if each.rounds_left > 0
    ]
    if half:
        yield Alert(
            Tone.WARNING,
            "More than half of the privacy budget is spent",
            ", ".join(half),
            "consider fewer rounds",
        )


def _of_presence(snapshot: Snapshot) -> Iterator[Alert]:
    if snapshot.status.study_complete:
        return
    silent = [
        each.node_id if each.last_seen else f"{each.node_id} (never seen)"
        for each in snapshot.silent
    ]
    if silent:
        yield Alert(
            Tone.WARNING,
            "Hospitals that are not heard from",
            ", ".join(silent),
            "there: systemctl status matl-participant, then matl doctor",
        )


def _of_appeals(participants: Iterable[Participant]) -> Iterator[Alert]:
    for each in participants:
        if each.appeal is not None and each.appeal.state == "open":
            yield Alert(
                Tone.WARNING,
                f"{each.node_id} appeals",
                each.appeal.text,
                f"matl release {each.node_id} or matl deny {each.node_id}, with --reason",
            )


def _of_allowlist(alarms: Iterable[Entry]) -> Iterator[Alert]:
    """What the allow-list was refused for or has shut out, once for each, until a later one."""
    told = set()
    for each in takewhile(lambda entry: entry.event != _LIST_READ, alarms):
        remedy = _OF_THE_LIST.get(each.event)
        node = str(each.facts.get("node", ""))
        if remedy is None or (each.event, node) in told:
            continue
        told.add((each.event, node))
        title = f"{node} was removed from round {each.round_id}" if node else sentence(each.event)
        yield Alert(Tone.BAD, title, str(each.facts.get("reason", "")), remedy)


def _of_alarms(snapshot: Snapshot) -> Iterator[Alert]:
    newest = snapshot.rounds[-1].round_id if snapshot.rounds else 0
    for each in snapshot.alarms:
        if each.event != "alarm" or (each.round_id or 0) <= newest - _RECENT_ROUNDS:
            continue
        kind = str(each.facts.get("kind", ""))
        yield Alert(
            Tone.BAD,
            f"Round {each.round_id}: {sentence(kind)}",
            str(each.facts.get("reason", "")),
            "matl participants and matl audit tail tell who and why",
        )
