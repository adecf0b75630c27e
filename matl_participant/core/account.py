"""What one study has cost one data set, as a value.

``after`` is the only way an account changes, and no entry lowers what was spent:
a reservation counts from the moment it is made, whatever became of it. Nothing here
reads a clock, a file or data. The durable record of these entries is ``ledger.py``; what
they amount to beside other studies is ``spending.py``.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from matl_common.errors import MatlError
from matl_common.ids import Digest, RoundId
from matl_common.privacy.budget import Budget, would_exceed
from matl_common.privacy.charges import full_batch_events
from matl_common.privacy.mechanisms import Adjacency, PrivacyUnit
from matl_common.protocol import PrivacyTerms


class IllegalEntryError(MatlError):
    """An entry that the account's state does not allow."""


@dataclass(frozen=True, slots=True)
class Planned:
    """PLAN: what the study may cost at most, frozen before the first round."""

    at: datetime
    federation_id: str
    study_id: str
    dataset: str
    plan_digest: Digest
    dataset_digest: Digest
    """Of the images and labels when the study began; the budget is theirs alone."""
    privacy: PrivacyTerms
    steps_per_round: int
    software: str


@dataclass(frozen=True, slots=True)
class Reserved:
    """RESERVE: charged, before any data is read."""

    at: datetime
    round_id: RoundId
    steps: int
    base_model: Digest
    evaluations: int = 0
    """Noised counts of what the base model gets right: one, or none."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """SEAL: the one update of this round, before any of it is sent."""

    at: datetime
    round_id: RoundId
    update_digest: Digest
    """SHA-256 of the signed manifest's payload, which names the round and the bytes."""
    content_digest: Digest
    """The tree hash over the update's chunks, as in the manifest; SHA-256 of the file in entries of
    earlier builds."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """ACK: the coordinator's receipt arrived."""

    at: datetime
    round_id: RoundId
    update_digest: Digest
    log_index: int


@dataclass(frozen=True, slots=True)
class Abandoned:
    """ABANDON: nothing more comes of the attempt; what it cost stays spent."""

    at: datetime
    round_id: RoundId
    reason: str


@dataclass(frozen=True, slots=True)
class Halted:
    """HALT: this study never trains here again."""

    at: datetime
    reason: str


Entry = Planned | Reserved | Sealed | Acknowledged | Abandoned | Halted


class AttemptState(StrEnum):
    """How far an attempt at a round came."""

    RESERVED = "reserved"
    SEALED = "sealed"
    ACKNOWLEDGED = "acknowledged"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One charged attempt at a round."""

    round_id: RoundId
    steps: int
    base_model: Digest
    state: AttemptState = AttemptState.RESERVED
    update_digest: Digest | None = None
    content_digest: Digest | None = None
    reserved_at: datetime | None = None
    evaluations: int = 0

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done about it."""
        return self.state in {AttemptState.RESERVED, AttemptState.SEALED}


@dataclass(frozen=True, slots=True)
class Account:
    """Everything the ledger of one (data set, study) says."""

    plan: Planned | None = None
    attempts: tuple[Attempt, ...] = ()
    halted: str | None = None

    @property
    def steps_spent(self) -> int:
        """Steps of every reservation ever made."""
        return sum(attempt.steps for attempt in self.attempts)

    @property
    def evaluations_spent(self) -> int:
        """Evaluations of every reservation ever made."""
        return sum(attempt.evaluations for attempt in self.attempts)

    @property
    def open_attempt(self) -> Attempt | None:
        """The attempt in progress; there is at most one, the last."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].is_open else None

    @property
    def last_round(self) -> int:
        """The last round attempted; 0 before the first."""
        return self.attempts[-1].round_id if self.attempts else 0

    def attempts_at(self, round_id: RoundId) -> tuple[Attempt, ...]:
        """Every attempt charged for a round."""
        return tuple(attempt for attempt in self.attempts if attempt.round_id == round_id)


def after(account: Account, entry: Entry) -> Account:
    """Return the account with one more entry.

    Raises:
        IllegalEntryError: the entry cannot follow what is there.
    """
    match entry:
        case Planned():
            if account.plan is not None:
                raise IllegalEntryError("the ledger already has a plan; a study has only one")
            return replace(account, plan=entry)
        case Reserved():
            _check_reservation(account, entry)
            attempt = Attempt(
                entry.round_id,
                entry.steps,
                entry.base_model,
                reserved_at=entry.at,
                evaluations=entry.evaluations,
            )
            return replace(account, attempts=(*account.attempts, attempt))
        case Sealed():
            attempt = _open(account, entry.round_id, AttemptState.RESERVED)
            return _with_last(
                account,
                replace(
                    attempt,
                    state=AttemptState.SEALED,
                    update_digest=entry.update_digest,
                    content_digest=entry.content_digest,
                ),
            )
        case Acknowledged():
            attempt = _open(account, entry.round_id, AttemptState.SEALED)
            if attempt.update_digest != entry.update_digest:
                raise IllegalEntryError(
                    f"the receipt for round {entry.round_id} names update {entry.update_digest}; "
                    f"sealed was {attempt.update_digest}"
                )
            return _with_last(account, replace(attempt, state=AttemptState.ACKNOWLEDGED))
        case Abandoned():
            attempt = _open(account, entry.round_id, AttemptState.RESERVED, AttemptState.SEALED)
            return _with_last(account, replace(attempt, state=AttemptState.ABANDONED))
        case Halted():
            if account.halted is not None:
                raise IllegalEntryError(f"the study is already halted: {account.halted}")
            return replace(account, halted=entry.reason)


def _check_reservation(account: Account, entry: Reserved) -> None:
    if account.plan is None:
        raise IllegalEntryError("there is no plan to charge a reservation to")
    if account.halted is not None:
        raise IllegalEntryError(f"the study is halted: {account.halted}")
    if entry.steps < 1:
        raise IllegalEntryError(f"a reservation of {entry.steps} steps charges nothing")
    if entry.evaluations not in {0, 1}:
        raise IllegalEntryError(f"{entry.evaluations} evaluations in a round; there is one at most")
    if entry.evaluations and account.plan.privacy.evaluation is None:
        raise IllegalEntryError("the study's plan has no evaluation to charge")
    if (attempt := account.open_attempt) is not None:
        raise IllegalEntryError(
            f"round {attempt.round_id} is still {attempt.state.value}; finish or abandon it first"
        )
    if entry.round_id < account.last_round:
        raise IllegalEntryError(
            f"round {entry.round_id} lies before round {account.last_round}, already attempted"
        )
    # Sealed bytes may have left the hospital: a second update would be equivocation,
    # and another base model for the same round asks for one.
    if any(attempt.update_digest for attempt in account.attempts_at(entry.round_id)):
        raise IllegalEntryError(
            f"an update for round {entry.round_id} was sealed before; a round gets only one"
        )


def _open(account: Account, round_id: RoundId, *states: AttemptState) -> Attempt:
    attempt = account.open_attempt
    if attempt is None or attempt.round_id != round_id or attempt.state not in states:
        wanted = " or ".join(state.value for state in states)
        raise IllegalEntryError(f"round {round_id} has no attempt that is {wanted}")
    return attempt


def _with_last(account: Account, attempt: Attempt) -> Account:
    return replace(account, attempts=(*account.attempts[:-1], attempt))


def exceeds_budget(account: Account, *, steps: int, evaluations: int = 0) -> bool:
    """Whether so many more steps and evaluations would pass what the plan allows.

    For full batches this is the filter Σ 1/σ² (Smith & Thakurta, arXiv 2210.17520; against
    a lower limit for discrete noise); for Poisson sampling only the frozen number of steps
    is valid. A plan without noise promises nothing but its number of steps.
    """
    if account.plan is None:
        return True
    terms = account.plan.privacy
    if account.steps_spent + steps > terms.max_steps:
        return True
    most = 0 if terms.evaluation is None else terms.evaluation.max_evaluations
    if account.evaluations_spent + evaluations > most:
        return True
    if terms.noise_multiplier == 0.0 or terms.sample_rate < 1.0:
        return False
    return would_exceed(
        budget_of(terms),
        full_batch_events(terms, steps=account.steps_spent, evaluations=account.evaluations_spent),
        *full_batch_events(terms, steps=steps, evaluations=evaluations),
    )


def budget_of(terms: PrivacyTerms) -> Budget:
    """The promise of a plan as a budget."""
    return Budget(
        terms.target_epsilon,
        terms.target_delta,
        Adjacency(terms.adjacency),
        PrivacyUnit(terms.unit),
    )
