"""What is shown of a federation: pure functions from a ``Snapshot`` to a ``Board``.

The page and the terminal are two thin views of the same board. Nothing here knows either, reads a
clock, or decides anything about the study.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from matl.dashboard.sayings import said, sentence
from matl.dashboard.snapshot import Entry, LogState, Proof, Snapshot
from matl.operations import Contribution, Participant, Round
from matl_coordinator.core.trust_record import TrustState
from matl_participant.core.spending import WARNING_FRACTION, shown_epsilon

PHASES: Final = ("scheduled", "collecting", "scoring", "aggregating", "evaluating", "released")
_FINAL: Final = frozenset({"released", "aborted"})


class Tone(StrEnum):
    """How much of an operator's attention something deserves."""

    GOOD = "good"
    PLAIN = "plain"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure at the top."""

    label: str
    value: str
    note: str = ""
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Step:
    """One phase of the round: done, at hand, or to come."""

    name: str
    state: str


@dataclass(frozen=True, slots=True)
class Upload:
    """How far one hospital is in the round; ``fraction`` from 0 to 1."""

    node: str
    status: str
    fraction: float
    tone: Tone
    why: str = ""


@dataclass(frozen=True, slots=True)
class RoundPanel:
    """The round under way, or the last one."""

    title: str
    says: str
    steps: tuple[Step, ...]
    uploads: tuple[Upload, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve over rounds, of those rounds that have a value."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class TrustRow:
    """Where a hospital stands, and how it came there."""

    node: str
    trust: float
    state: str
    tone: Tone
    why: str
    change: str
    line: Line


@dataclass(frozen=True, slots=True)
class TrustStep:
    """One round's change of trust, with the coordinator's reason."""

    round_id: int
    node: str
    trust: float
    state: str
    why: str


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """What a hospital's patients have paid; ``fraction`` is of the budget, which ε is not
    linear in."""

    node: str
    fraction: float
    spent: str
    budget: str
    rounds_left: int
    tone: Tone


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A log entry in a table."""

    index: int
    at: str
    event: str
    about: str
    says: str
    proof: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Board:
    """Everything that is shown of a federation."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...]
    round: RoundPanel | None
    accuracy: tuple[Line, ...]
    trust: tuple[TrustRow, ...]
    trust_steps: tuple[TrustStep, ...]
    budget: tuple[BudgetRow, ...]
    budget_note: str
    entries: tuple[EntryRow, ...]
    log_says: str


def board_of(snapshot: Snapshot) -> Board:
    """What to show of a federation."""
    status = snapshot.status
    rows = trust_rows(snapshot)
    return Board(
        title=f"{status.study_id} in {status.federation_id}",
        subtitle=_subtitle(snapshot),
        tiles=tiles(snapshot),
        round=round_panel(snapshot),
        accuracy=accuracy_lines(snapshot.rounds),
        trust=rows,
        trust_steps=trust_steps(snapshot.rounds),
        budget=tuple(_budget_row(each) for each in snapshot.participants),
        budget_note=_budget_note(snapshot.participants),
        entries=tuple(map(entry_row, snapshot.entries)),
        log_says=log_sentence(snapshot.log),
    )


def _subtitle(snapshot: Snapshot) -> str:
    status = snapshot.status
    state = "complete" if status.study_complete else "paused" if status.paused else "running"
    leader = f", {status.leader} leads" if status.leader else ""
    return f"{state} · {status.mode} · coordinator {status.version}{leader}"


def tiles(snapshot: Snapshot) -> tuple[Tile, ...]:
    """The figures that an operator looks at first."""
    status, enrolled = snapshot.status, len(snapshot.participants)
    present = enrolled - len(snapshot.silent)
    current = _shown_round(snapshot)
    number, phase = ("–", "none yet")
    if current is not None:
        number, phase = str(current.round_id), current.phase
    held = [each for each in snapshot.rounds if each.evaluation is not None]
    accuracy = Tile("Accuracy", "–", "no holdout set, or no release yet")
    if held and (found := held[-1].evaluation) is not None:
        accuracy = Tile(
            "Accuracy",
            f"{found.accuracy:.1%}",
            f"round {held[-1].round_id}; κ {found.quadratic_weighted_kappa:.3f}, "
            f"{found.images} images",
        )
    most = max((each.budget_fraction for each in snapshot.participants), default=0.0)
    return (
        Tile(
            "Active hospitals",
            f"{present} of {enrolled}",
            "heard from lately, or at work on the round",
            _presence_tone(present, enrolled, is_over=status.study_complete),
        ),
        Tile("Round", number, phase, Tone.BAD if phase == "aborted" else Tone.PLAIN),
        Tile(
            "Models released",
            f"{status.rounds_released} of {status.rounds_planned}",
            status.latest_model[:12],
            Tone.GOOD if status.study_complete else Tone.PLAIN,
        ),
        accuracy,
        Tile(
            "Privacy budget",
            f"{max(0.0, 1.0 - most):.0%} left",
            "of the hospital that has spent the most",
            _budget_tone(most),
        ),
        _log_tile(snapshot.log),
    )


def _presence_tone(present: int, enrolled: int, *, is_over: bool) -> Tone:
    if is_over:
        return Tone.PLAIN
    return Tone.GOOD if present >= enrolled else Tone.WARNING


def _log_tile(log: LogState) -> Tile:
    witnessed = f", {log.witnessed_size} witnessed" if log.witnessed_size else ""
    if log.problem:
        return Tile("Log", f"{log.size} entries", "not to be believed", Tone.BAD)
    if not log.signed_size:
        return Tile("Log", f"{log.size} entries", "not verified: no key given", Tone.WARNING)
    return Tile("Log", f"{log.size} entries", f"{log.signed_size} signed{witnessed}", Tone.GOOD)


def _shown_round(snapshot: Snapshot) -> Round | None:
    current = snapshot.status.current_round
    if current is not None:
        return current
    return snapshot.rounds[-1] if snapshot.rounds else None


def round_panel(snapshot: Snapshot) -> RoundPanel | None:
    """The round under way with how far every hospital is; the last one between rounds."""
    rnd = _shown_round(snapshot)
    if rnd is None:
        return None
    return RoundPanel(
        title=f"Round {rnd.round_id}",
        says=_round_says(rnd, snapshot),
        steps=_steps(rnd),
        uploads=tuple(_upload(each) for each in rnd.contributions),
    )


def _round_says(rnd: Round, snapshot: Snapshot) -> str:
    if rnd.phase == "aborted":
        return f"aborted: {rnd.reason}"
    if rnd.phase in _FINAL:
        due = snapshot.status.next_round_at
        later = f"; the next is due {_clock(due)}" if due is not None else ""
        return f"{rnd.phase} {_clock(rnd.ended_at)}{later}"
    left = "" if rnd.deadline is None else f"; closes {_until(rnd.deadline, snapshot.at)}"
    return f"{rnd.phase}: {rnd.reason}{left}" if rnd.reason else f"{rnd.phase}{left}"


def _clock(moment: datetime | None) -> str:
    return "" if moment is None else f"at {moment:%H:%M:%S} UTC"


def _until(deadline: datetime, now: datetime) -> str:
    left = deadline - now
    if left <= timedelta():
        return "now"
    return f"in {int(left.total_seconds()) // 60} min" if left > timedelta(minutes=2) else "soon"


def _steps(rnd: Round) -> tuple[Step, ...]:
    if rnd.phase == "aborted":
        return (*(Step(name, "skipped") for name in PHASES[:-1]), Step("aborted", "failed"))
    at = PHASES.index(rnd.phase) if rnd.phase in PHASES else 0
    over = rnd.phase in _FINAL
    return tuple(
        Step(name, "done" if i < at or over else "now" if i == at else "later")
        for i, name in enumerate(PHASES)
    )


_UPLOAD_TONES: Final = {
    "admitted": Tone.GOOD,
    "uploading": Tone.PLAIN,
    "invited": Tone.PLAIN,
    "late": Tone.WARNING,
    "refused": Tone.BAD,
}


def _upload(part: Contribution) -> Upload:
    tone = _UPLOAD_TONES.get(part.status, Tone.PLAIN)
    return Upload(part.node_id, part.status, part.upload_fraction, tone, part.reason)


def accuracy_lines(rounds: Iterable[Round]) -> tuple[Line, ...]:
    """Accuracy, balanced accuracy and κ of the released models, as far as there are any."""
    found = [(each.round_id, each.evaluation) for each in rounds if each.evaluation is not None]
    if not found:
        return ()
    return (
        Line("Accuracy", tuple((n, each.accuracy) for n, each in found)),
        Line("Balanced accuracy", tuple((n, each.balanced_accuracy) for n, each in found)),
        Line("Quadratic κ", tuple((n, each.quadratic_weighted_kappa) for n, each in found)),
    )


def trust_rows(snapshot: Snapshot) -> tuple[TrustRow, ...]:
    """Every hospital's trust with its reason and its way there."""
    scored = trust_steps(snapshot.rounds)
    return tuple(_trust_row(each, scored) for each in snapshot.participants)


def _trust_row(participant: Participant, scored: Sequence[TrustStep]) -> TrustRow:
    mine = [each for each in scored if each.node == participant.node_id]
    points = tuple((each.round_id, each.trust) for each in mine)
    moved = points[-1][1] - points[-2][1] if len(points) > 1 else 0.0
    return TrustRow(
        node=participant.node_id,
        trust=participant.trust,
        state=participant.state,
        tone=trust_tone(participant.state),
        why=participant.reason,
        change="" if not moved else f"{moved:+.2f}",
        line=Line(participant.node_id, points),
    )


_TRUST_TONES: Final[Mapping[str, Tone]] = {
    TrustState.TRUSTED: Tone.GOOD,
    TrustState.MARGINAL: Tone.WARNING,
    TrustState.QUARANTINED: Tone.BAD,
}


def trust_tone(state: str) -> Tone:
    """How a standing is coloured: as the coordinator judged it, by bounds that are its own."""
    return _TRUST_TONES.get(state, Tone.PLAIN)


def trust_steps(rounds: Iterable[Round]) -> tuple[TrustStep, ...]:
    """Every hospital's trust after every round that was scored, with the reason, oldest first."""
    return tuple(
        TrustStep(rnd.round_id, part.node_id, part.trust, part.trust_state, part.trust_reason)
        for rnd in rounds
        if rnd.phase in _FINAL
        for part in rnd.contributions
        if part.trust_state
    )


def _budget_row(participant: Participant) -> BudgetRow:
    spent = participant.epsilon_spent
    return BudgetRow(
        node=participant.node_id,
        fraction=min(1.0, participant.budget_fraction),
        spent="its ledger knows" if spent is None else str(shown_epsilon(spent)),
        budget=f"{participant.epsilon_budget:g}",
        rounds_left=participant.rounds_left,
        tone=_budget_tone(participant.budget_fraction),
    )


def _budget_tone(fraction: float) -> Tone:
    if fraction >= 1.0:
        return Tone.BAD
    return Tone.WARNING if fraction >= WARNING_FRACTION else Tone.GOOD


def _budget_note(participants: Iterable[Participant]) -> str:
    # The same for all: a study has one plan.
    terms = {(each.target_delta, each.neighbouring_relation) for each in participants}
    said_of = "; ".join(f"ε at δ = {delta:g} ({relation})" for delta, relation in sorted(terms))
    return (
        f"{said_of}. As the log's admitted updates declared it; a hospital's own ledger also "
        "counts attempts that never arrived. Bars show the share of the budget, which ε is not "
        "linear in."
    )


PROOFS: Final = {
    Proof.WITNESSED: ("proven, witnessed", Tone.GOOD),
    Proof.PROVEN: ("proven", Tone.GOOD),
    Proof.PENDING: ("no checkpoint yet", Tone.PLAIN),
    Proof.UNCHECKED: ("not verified", Tone.WARNING),
    Proof.BROKEN: ("DOES NOT HOLD", Tone.BAD),
}


def entry_row(entry: Entry) -> EntryRow:
    """A log entry as a row of a table."""
    proof, tone = PROOFS[entry.proof]
    facts = entry.facts
    about = [str(facts["node"])] if facts.get("node") else []
    if entry.round_id is not None:
        about.append(f"round {entry.round_id}")
    return EntryRow(
        index=entry.index,
        at=str(facts.get("at", ""))[:19].replace("T", " "),
        event=sentence(entry.event),
        about=", ".join(about),
        says=entry.why or said(facts),
        proof=proof,
        tone=tone,
    )


def log_sentence(log: LogState) -> str:
    """What was verified of the log, in words."""
    if log.problem:
        return f"The log is not to be believed: {log.problem}"
    if not log.signed_size:
        return (
            f"{log.size} entries by the coordinator's word. Give the log's key to have every entry "
            "below verified here: log_key in operator.toml, --log-key or --policy."
        )
    cosigned = f"; cosigned by {', '.join(log.cosigners)}" if log.cosigners else ""
    return (
        f"{log.size} entries; the log has signed a checkpoint over {log.signed_size} of them"
        f"{cosigned}. What is marked proven was verified on this machine to be in its tree. Root "
        f"{log.root}"
    )
