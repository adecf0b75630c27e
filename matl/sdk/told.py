"""Rounds as whoever keeps a study tells them: an embedded one, a folder, a live coordinator.

Reads and puts together; decides and changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from matl.history import RoundTold, TutorialHistory, tutorial_history
from matl.operations import Participant
from matl.operations import Round as ToldRound
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError
from matl_common.identity.wrapping import SoftwareKeyEncryptionKey
from matl_common.ids import NodeId, RoundId
from matl_common.privacy.budget import gaussian_epsilon, gaussian_mu
from matl_common.privacy.charges import epsilon_of
from matl_common.protocol import PrivacyTerms, StudyPlan
from matl_common.wire.documents import parse_study_plan
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.core.trust_record import with_newcomers
from matl_coordinator.ports import State, Store
from matl_coordinator.store.database import create_database_engine, reading
from matl_coordinator.store.sql import SqlStore, read_state
from matl_participant.core.account import Account
from matl_participant.core.spending import Summary, summarise
from matl_participant.ledger import read_accounts

DATABASE = "coordinator.db"
MEASURED = "measured.json"
"""Accuracy that a researcher measured, by round, in per cent."""
_PAGE = 100

Spent = Callable[[int], Mapping[str, float]]
"""ε of each hospital up to a round."""


def rounds_of(store: Store) -> tuple[Round, ...]:
    """Every round, oldest first."""
    found: list[Round] = []
    while page := store.rounds(after=found[-1].round_id if found else 0, limit=_PAGE):
        found += page
    return tuple(found)


def trust_by_round(store: Store) -> Mapping[int, Mapping[str, float]]:
    """Trust of every hospital after each round that was judged."""
    found: dict[int, Mapping[str, float]] = {}
    after = 0
    while page := store.trust_history(after=after, limit=_PAGE):
        for each in page:
            found[each.round_id] = {record.node_id: record.trust for record in each.records}
        after = page[-1].round_id
    return found


def spent_by_ledgers(accounts: Mapping[str, Account]) -> Spent:
    """ε as the hospitals' own ledgers have it, attempts that came to nothing included."""

    def spent(number: int) -> Mapping[str, float]:
        return {
            name: _of_account(account, number)
            for name, account in accounts.items()
            if account.plan is not None
        }

    return spent


def _of_account(account: Account, number: int) -> float:
    assert account.plan is not None, "the caller looked"
    attempts = [each for each in account.attempts if each.round_id <= number]
    return epsilon_of(
        account.plan.privacy,
        steps=sum(each.steps for each in attempts),
        evaluations=sum(each.evaluations for each in attempts),
    )


def spent_by_admission(rounds: Sequence[Round], plan: StudyPlan) -> Spent:
    """ε as admitted updates declare it; the hospitals' ledgers may have more."""

    def spent(number: int) -> Mapping[str, float]:
        counts: dict[str, int] = {}
        for rnd in rounds:
            for each in rnd.admitted if rnd.round_id <= number else ():
                counts[each.node_id] = counts.get(each.node_id, 0) + 1
        steps = plan.training.steps_per_round
        return {name: epsilon_of(plan.privacy, steps=steps * n) for name, n in counts.items()}

    return spent


def told_by_store(
    store: Store, *, terms: PrivacyTerms, spent: Spent, measured: Mapping[int, float]
) -> TutorialHistory:
    """The history of a study whose database is here.

    Args:
        store: its database; only tables of rounds and trust are read.
        terms: of its plan.
        spent: ε of each hospital.
        measured: accuracy by round in per cent, where a researcher measured it.
    """
    trust = trust_by_round(store)
    told = [
        RoundTold(
            number=rnd.round_id,
            accuracy=_accuracy(rnd, measured),
            trust=trust.get(rnd.round_id, {}),
            epsilon_spent=spent(rnd.round_id),
        )
        for rnd in rounds_of(store)
        if rnd.phase is Phase.RELEASED
    ]
    return tutorial_history(told, epsilon_budget=terms.target_epsilon, delta=terms.target_delta)


def _accuracy(rnd: Round, measured: Mapping[int, float]) -> float | None:
    if rnd.round_id in measured:
        return measured[rnd.round_id] / 100.0
    return None if rnd.evaluation is None else rnd.evaluation.accuracy


def told_by_folder(folder: Path) -> TutorialHistory:
    """The history of a study's folder: an embedded study's, or a coordinator's ``state_dir``.

    May be read while the study runs.

    Raises:
        ConfigurationError: there is no study in it.
        StoreError: its database cannot be read.
    """
    state = folder / "coordinator" if (folder / "coordinator").is_dir() else folder
    if not (state / DATABASE).is_file():
        raise ConfigurationError(
            f"{folder} holds no study: there is no {DATABASE} in it. Give the folder= of a "
            "MATLClient or a coordinator's state_dir; where the database is PostgreSQL, give a "
            "client with the coordinator's address"
        )
    with _opened(state) as (store, kept):
        if kept.study is None:
            raise ConfigurationError(f"the study in {folder} has not begun")
        # Shown, and not believed: who verifies has the coordinator's key.
        plan = parse_study_plan(kept.study.plan.payload)
        accounts = _accounts(folder / "hospitals", plan.study_id)
        spent = spent_by_ledgers(accounts)
        if not accounts:
            spent = spent_by_admission(rounds_of(store), plan)
        return told_by_store(store, terms=plan.privacy, spent=spent, measured=read_measured(folder))


@dataclass(frozen=True, slots=True)
class Standing:
    """What the study of a folder is at, whoever holds it."""

    round: Round | None
    """The newest."""
    trust: Mapping[str, float]
    budgets: Mapping[NodeId, Summary]
    """By hospital; without those whose ledger was never opened."""


def standing_in_folder(folder: Path, nodes: Sequence[NodeId]) -> Standing | None:
    """What an embedded study's folder says; ``None`` where no study has begun in it.

    Args:
        folder: of the study; may be read while it runs.
        nodes: hospitals that have the initial trust where the study knows of none.

    Raises:
        StoreError: its database cannot be read.
        LedgerCorruptError: a ledger is damaged.
    """
    if not (folder / "coordinator" / DATABASE).is_file():
        return None
    with _opened(folder / "coordinator") as (_, kept):
        if kept.study is None:
            return None
        plan = parse_study_plan(kept.study.plan.payload)
        accounts = _accounts(folder / "hospitals", plan.study_id)
        return Standing(
            round=kept.round,
            trust={each.node_id: each.trust for each in with_newcomers(kept.trust, nodes)},
            budgets={NodeId(name): summarise(account) for name, account in accounts.items()},
        )


@contextmanager
def _opened(state: Path) -> Iterator[tuple[Store, State]]:
    """The database of a coordinator's folder, read without holding the folder."""
    engine = create_database_engine(f"sqlite:///{state / DATABASE}")
    # Of the tables that are read here none is encrypted, so that no key is needed.
    store = SqlStore(engine, log_origin="", log_key=SoftwareKeyEncryptionKey(bytes(32)))
    try:
        with reading(engine) as connection:
            kept = read_state(connection, 0)
        yield store, kept
    finally:
        store.close()


def _accounts(hospitals: Path, study_id: str) -> dict[str, Account]:
    found = {}
    for ledger in sorted(hospitals.glob("*/ledger")):
        for account, _ in read_accounts(ledger):
            if account.plan is not None and account.plan.study_id == study_id:
                found[ledger.parent.name] = account
    return found


def told_by_coordinator(
    rounds: Sequence[ToldRound], participants: Sequence[Participant]
) -> TutorialHistory:
    """The history of a live study, as its coordinator tells operators.

    ε of earlier rounds follows from what is spent now: Σ 1/σ² grows by the same with every
    admitted update, and is the whole budget's where the fraction is 1. Hospitals of whom only
    their own ledger knows are left out.
    """
    released = [each for each in rounds if each.phase == "released"]
    admitted = {
        each.node_id: [rnd.round_id for rnd in rounds if _is_admitted(rnd, each.node_id)]
        for each in participants
    }
    told = [
        RoundTold(
            number=rnd.round_id,
            accuracy=None if rnd.evaluation is None else rnd.evaluation.accuracy,
            trust={each.node_id: each.trust for each in rnd.contributions},
            epsilon_spent={
                each.node_id: _spent_until(each, admitted[each.node_id], rnd.round_id)
                for each in participants
                if each.epsilon_spent is not None
            },
        )
        for rnd in released
    ]
    budget = min((each.epsilon_budget for each in participants), default=math.inf)
    delta = max((each.target_delta for each in participants), default=math.nan)
    return tutorial_history(told, epsilon_budget=budget, delta=delta)


def _is_admitted(rnd: ToldRound, node_id: str) -> bool:
    return any(each.node_id == node_id and each.status == "admitted" for each in rnd.contributions)


def _spent_until(participant: Participant, admitted: Sequence[int], number: int) -> float:
    so_far = sum(each <= number for each in admitted)
    if so_far == 0:
        return 0.0
    if math.isinf(participant.epsilon_budget):
        return math.inf
    fraction = participant.budget_fraction * so_far / len(admitted)
    mu = gaussian_mu(participant.epsilon_budget, participant.target_delta)
    return gaussian_epsilon(mu * math.sqrt(fraction), participant.target_delta)


def read_measured(folder: Path) -> dict[int, float]:
    """Accuracy by round in per cent, as ``note_measured`` kept it."""
    try:
        kept = json.loads((folder / MEASURED).read_text())
    except FileNotFoundError:
        return {}
    return {int(number): float(accuracy) for number, accuracy in kept.items()}


def note_measured(folder: Path, number: RoundId | int, accuracy: float) -> None:
    """Keep what a researcher measured of a round's model, in per cent."""
    kept = {**read_measured(folder), int(number): accuracy}
    write_atomically(folder / MEASURED, [json.dumps(kept).encode()])
