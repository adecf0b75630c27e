"""What is shown of one hospital: pure functions from a ``NodeSnapshot``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from matl.dashboard.alerts import LOW_TRUST, Alert
from matl.dashboard.board import PROOFS, BudgetRow, Tile, Tone, trust_tone
from matl.dashboard.node_snapshot import Budget, DataState, NodeSnapshot, Receipt
from matl.dashboard.snapshot import Proof
from matl_participant.core.spending import Summary, shown_epsilon, statement

_SHORT_DIGEST: Final = 12
_SOON_SECONDS: Final = 14 * 86_400.0
_TRUST_STATE: Final = 'trust_state{state="'


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """One admitted update in a table."""

    round_id: int
    update: str
    admitted_at: str
    entry: int
    proof: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class NodeBoard:
    """Everything that is shown of a hospital."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...]
    alerts: tuple[Alert, ...]
    budgets: tuple[BudgetRow, ...]
    statements: tuple[str, ...]
    receipts: tuple[ReceiptRow, ...]
    data: tuple[tuple[str, str], ...]


def node_board_of(snapshot: NodeSnapshot) -> NodeBoard:
    """What to show of a hospital."""
    return NodeBoard(
        title=snapshot.node_id,
        subtitle=f"of {snapshot.coordinator}",
        tiles=_tiles(snapshot),
        alerts=tuple(_alerts(snapshot)),
        budgets=tuple(_budget_row(each) for each in snapshot.budgets),
        statements=tuple(_statement(each) for each in snapshot.budgets),
        receipts=tuple(map(_receipt_row, snapshot.receipts)),
        data=_data_facts(snapshot),
    )


def _tiles(snapshot: NodeSnapshot) -> tuple[Tile, ...]:
    metrics = snapshot.metrics
    return (
        _connection_tile(snapshot),
        Tile("Last round", _count(metrics, "round_number"), "attempted here"),
        _trust_tile(metrics),
        _ledger_tile(snapshot),
        Tile(
            "Receipts",
            str(snapshot.admitted),
            f"{sum(each.proof is Proof.PROVEN for each in snapshot.receipts)} of the newest "
            f"{len(snapshot.receipts)} proven here",
        ),
        Tile(
            "Log witnessed",
            f"{snapshot.cosigned_size} entries" if snapshot.cosigned_size else "–",
            "under the last checkpoint cosigned here",
        ),
    )


def _connection_tile(snapshot: NodeSnapshot) -> Tile:
    connected = snapshot.metrics.get("connected")
    if connected is None:
        return Tile("Coordinator", "unknown", snapshot.metrics_problem, Tone.WARNING)
    if connected:
        return Tile("Coordinator", "connected", "", Tone.GOOD)
    return Tile("Coordinator", "away", "or the daemon has just begun", Tone.WARNING)


def _trust_tile(metrics: Mapping[str, float]) -> Tile:
    trust = metrics.get("trust_score")
    if trust is None:
        return Tile("Trust", "–", "the daemon's metrics tell")
    # A gauge is 0 from the start; a state is named with the first score that is told.
    named = [name for name, value in metrics.items() if name.startswith(_TRUST_STATE) and value]
    if not named:
        return Tile("Trust", "–", "not told yet")
    state = named[0].removeprefix(_TRUST_STATE).removesuffix('"}')
    return Tile("Trust", f"{trust:.2f}", f"{state}, by the coordinator's word", trust_tone(state))


def _ledger_tile(snapshot: NodeSnapshot) -> Tile:
    unsound = sum(each.problem is not None for each in snapshot.verdicts)
    if unsound:
        return Tile("Ledgers", "NOT SOUND", f"{unsound} of {len(snapshot.verdicts)}", Tone.BAD)
    entries = sum(each.entries for each in snapshot.verdicts)
    return Tile("Ledgers", str(len(snapshot.verdicts)), f"sound, {entries} entries", Tone.GOOD)


def _count(metrics: Mapping[str, float], name: str) -> str:
    value = metrics.get(name)
    return "–" if value is None else f"{value:.0f}"


def _budget_row(budget: Budget) -> BudgetRow:
    summary = budget.summary
    return BudgetRow(
        node=summary.study_id,
        fraction=min(1.0, summary.budget_fraction),
        spent=str(shown_epsilon(summary.epsilon_spent)),
        budget=f"{summary.target_epsilon:g}",
        rounds_left=summary.rounds_left,
        tone=_tone(summary),
    )


def _tone(summary: Summary) -> Tone:
    if summary.halted or summary.rounds_left == 0:
        return Tone.BAD
    return Tone.WARNING if summary.is_half_spent else Tone.GOOD


def _statement(budget: Budget) -> str:
    summary = budget.summary
    end = "" if budget.projected_end is None else f"; spent {_date(budget.projected_end)}"
    return f"{summary.study_id}: {statement(summary)}{end}"


def _date(moment: datetime) -> str:
    return f"at this pace by {moment:%Y-%m-%d %H:%M} UTC"


# A receipt without its proof is owed one; an entry merely waits.
_PROOFS: Final = {**PROOFS, Proof.PENDING: ("proof owed", Tone.PLAIN)}


def _receipt_row(receipt: Receipt) -> ReceiptRow:
    proof, tone = _PROOFS[receipt.proof]
    return ReceiptRow(
        receipt.round_id,
        receipt.update[:_SHORT_DIGEST],
        f"{receipt.admitted_at:%Y-%m-%d %H:%M:%S}",
        receipt.index,
        proof,
        tone,
    )


def _data_facts(snapshot: NodeSnapshot) -> tuple[tuple[str, str], ...]:
    data = snapshot.data
    return (
        ("Data set", snapshot.dataset),
        ("Header of the labels", data.problem or f"{', '.join(data.columns)}: all are allowed"),
        ("Unit of privacy", data.warning or ("unknown" if data.problem else _unit(data))),
    )


def _unit(data: DataState) -> str:
    if "group_key" in data.columns:
        return "patients, told apart by group_key"
    return "patients, with images_per_patient at most"


def _alerts(snapshot: NodeSnapshot) -> Iterator[Alert]:
    for verdict in snapshot.verdicts:
        if verdict.problem is not None:
            yield Alert(
                Tone.BAD, f"The ledger {verdict.file} is not sound", verdict.problem, "stop here"
            )
    if snapshot.evidence:
        yield Alert(
            Tone.BAD,
            "There is evidence against the log",
            f"{snapshot.evidence} files in log-evidence; the participant has stopped",
            "see docs/log.md, and move what was dealt with to log-evidence/settled",
        )
    for receipt in snapshot.receipts:
        if receipt.proof is Proof.BROKEN:
            yield Alert(
                Tone.BAD, f"The proof of round {receipt.round_id} does not hold", receipt.why
            )
    if snapshot.data.problem:
        yield Alert(Tone.BAD, "The data would be refused", snapshot.data.problem)
    for budget in snapshot.budgets:
        yield from _of_budget(budget.summary)
    yield from _of_metrics(snapshot.metrics)
    if snapshot.data.warning:
        yield Alert(Tone.WARNING, "How patients are told apart", snapshot.data.warning)


def _of_budget(summary: Summary) -> Iterator[Alert]:
    if summary.halted:
        yield Alert(Tone.BAD, f"{summary.study_id} has ended here", summary.halted)
    elif summary.is_half_spent:
        yield Alert(
            Tone.WARNING,
            f"More than half of the budget of {summary.study_id} is spent",
            statement(summary),
            "consider fewer rounds",
        )


def _of_metrics(metrics: Mapping[str, float]) -> Iterator[Alert]:
    trust = metrics.get("trust_score", math.nan)
    if 0.0 < trust < LOW_TRUST:
        yield Alert(
            Tone.WARNING,
            f"Low trust: {trust:.2f}",
            "the coordinator's holdout set or the other hospitals speak against the updates",
            "look at the labels; an operator can put an appeal on record (matl appeal)",
        )
    valid = metrics.get("tls_certificate_valid_seconds", math.nan)
    # 0 until the daemon has looked.
    if valid != 0.0 and valid < _SOON_SECONDS:
        yield Alert(
            Tone.WARNING,
            "The certificate expires soon",
            f"in {valid / 86_400:.1f} days",
            "see docs/certificates.md",
        )
