"""A federation as a coordinator might tell it, for tests of what is made of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from matl.dashboard.snapshot import Entry, LogState, Proof, Snapshot
from matl.operations import Contribution, Evaluation, Participant, Round, Status

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
HOSPITALS = ("hospital_a", "hospital_b", "hospital_c")


def participant(node: str, **changes: object) -> Participant:
    """A hospital that nothing is wrong with."""
    found = Participant(
        node_id=node,
        trust=0.9,
        state="trusted",
        reason="agrees with the holdout reference",
        enrolled_patients=100,
        last_seen=NOW,
        epsilon_spent=0.2,
        epsilon_budget=1.0,
        budget_fraction=0.1,
        rounds_left=9,
        neighbouring_relation="add-or-remove-one patient",
        target_delta=1e-5,
    )
    return replace(found, **changes)  # type: ignore[arg-type]  # names of fields


def finished(number: int, *, trust: float = 0.8) -> Round:
    """A round that released a model."""
    return Round(
        round_id=number,
        phase="released",
        reason="",
        contributions=tuple(
            Contribution(node, "admitted", "", 1.0, trust, 0.3, None, "trusted", "agrees")
            for node in HOSPITALS
        ),
        base_model="b" * 64,
        released_model="c" * 64,
        evaluation=Evaluation(0.5 + number / 100, 0.5, 0.6, (0.5,) * 5, 500),
        ended_at=NOW,
    )


def collecting(number: int) -> Round:
    """A round under way, in which one hospital is done and one half done."""
    return Round(
        round_id=number,
        phase="collecting",
        reason="updates of hospital_b, hospital_c",
        contributions=(
            Contribution("hospital_a", "admitted", "", 1.0, 0.8, 0.0),
            Contribution("hospital_b", "uploading", "", 0.5, 0.8, 0.0),
            Contribution("hospital_c", "refused", "refused: 3 values are NaN", 0.0, 0.8, 0.0),
        ),
        base_model="c" * 64,
        released_model="",
        evaluation=None,
        opened_at=NOW,
        deadline=NOW + timedelta(minutes=10),
    )


def status(**changes: object) -> Status:
    """A study that is under way."""
    found = Status(
        version="0.1.0",
        federation_id="dr-study",
        study_id="retinopathy",
        paused=False,
        study_complete=False,
        rounds_released=2,
        rounds_planned=6,
        current_round=collecting(3),
        latest_model="c" * 64,
        log_size=40,
        log_root="d" * 64,
        active_participants=3,
        mode="mode1",
    )
    return replace(found, **changes)  # type: ignore[arg-type]  # names of fields


def entry(index: int, event: str, proof: Proof = Proof.PROVEN, **facts: object) -> Entry:
    """A log entry."""
    said = {"index": index, "event": event, "at": "2026-11-28T11:59:00.000Z", **facts}
    return Entry(index, said, proof)


def snapshot(**changes: object) -> Snapshot:
    """A federation in which nothing is wrong."""
    found = Snapshot(
        at=NOW,
        status=status(),
        rounds=(finished(1, trust=0.7), finished(2), collecting(3)),
        participants=tuple(map(participant, HOSPITALS)),
        entries=(entry(39, "round_opened", round=3),),
        log=LogState(size=40, signed_size=40, root="d" * 64),
    )
    return replace(found, **changes)  # type: ignore[arg-type]  # names of fields
