"""What a study, and all studies of one data set together, have cost and may cost.

A patient does not care which study an ε was spent in: studies on the same patients
compose. Full-batch studies do so exactly, by the sum Σ 1/σ², which is a valid filter
whatever was chosen after seeing what (Smith & Thakurta, arXiv 2210.17520). Where one of
them has discrete noise, the sum is held against the lower limit of concentrated privacy.
As soon as one samples, no sum of that kind exists, and every study counts with its complete
frozen plan, composed as privacy loss distributions; that assumes that no plan was made
with another study's releases in view (arXiv 2602.06756), and so does a sum over both kinds
of noise.

The words and the record in which a budget is shown, everywhere, are here too. Nothing
reads a clock, a file or data.
"""

import math
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from matl_common.privacy.budget import (
    Budget,
    fraction_spent,
    full_batch_epsilon,
    gaussian_epsilon,
    rounds_left,
    would_exceed,
)
from matl_common.privacy.charges import (
    epsilon_of,
    events_of,
    fraction_of_plan,
    full_batch_events,
)
from matl_common.privacy.mechanisms import DpEvent, FullBatchEvent, Noise, PrivacyGuarantee
from matl_common.privacy.poisson import composed_guarantee
from matl_participant.core.account import (
    Account,
    AttemptState,
    IllegalEntryError,
    Planned,
    exceeds_budget,
)

WARNING_FRACTION = 0.5
_SHOWN_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class DatasetLimit:
    """What all studies together may cost the patients of one data set."""

    epsilon: float
    """``inf`` limits nothing."""
    delta: float
    is_implied: bool = False
    """The hospital named no limit, and no more than one study's ε is granted to all. One alone
    on its patients has its own budget whole, also where its δ is another one."""

    @property
    def is_finite(self) -> bool:
        """Whether it limits anything."""
        return math.isfinite(self.epsilon)


@dataclass(frozen=True, slots=True)
class Shared:
    """What a study shares its patients with."""

    limit: DatasetLimit | None = None
    """``None``: none is known, and only each study's own budget counts."""
    accounts: tuple[Account, ...] = ()
    """Of the other ledgers of this hospital, those of other data sets included."""


ALONE = Shared()
_MOST_NAMED = 5


def on_same_patients(planned: Planned, shared: Shared) -> tuple[Account, ...]:
    """The other studies that spent anything on these patients.

    A data set is the same by its name, and by its content under another name.
    """
    return tuple(
        account
        for account in shared.accounts
        if account.plan is not None
        and account.steps_spent > 0
        and (
            account.plan.dataset == planned.dataset
            or account.plan.dataset_digest == planned.dataset_digest
        )
    )


def why_over_budget(
    account: Account, *, steps: int, evaluations: int = 0, shared: Shared = ALONE
) -> str | None:
    """Say why ``steps`` and ``evaluations`` more may not be spent, or nothing."""
    plan = account.plan
    if plan is None:
        return "there is no plan to charge them to"
    if exceeds_budget(account, steps=steps, evaluations=evaluations):
        return (
            f"{account.steps_spent} of the study's {plan.privacy.max_steps} steps are spent, and a "
            f"round takes {steps}" + _evaluations_beside(account, evaluations)
        )
    others = on_same_patients(plan, shared)
    limit = _limit_on(shared, others)
    if limit is None or not _exceeds_limit(
        limit, account, steps=steps, evaluations=evaluations, others=others
    ):
        return None
    spent = _composed((account, *others), limit.delta)
    unset = ", which is privacy.max_epsilon as it is not set" if limit.is_implied else ""
    return (
        f"all studies on data set {plan.dataset!r} together may cost its patients "
        f"ε = {limit.epsilon:g} (privacy.dataset_epsilon{unset}); {len(others) + 1} have spent "
        f"{spent}{_named(others)}, "
        f"and {steps} more steps{' and an evaluation' if evaluations else ''} of study "
        f"{plan.study_id!r} do not fit. These patients' data can "
        "serve no further round of it. Where they may be asked for more, set "
        "privacy.dataset_epsilon to what all studies may cost them, or to inf for no limit, "
        "before the next study begins"
    )


def _limit_on(shared: Shared, others: tuple[Account, ...]) -> DatasetLimit | None:
    """What limits a study among ``others`` beside its own budget, if anything does."""
    limit = shared.limit
    if limit is None or not limit.is_finite or (limit.is_implied and not others):
        return None
    return limit


def _named(others: tuple[Account, ...]) -> str:
    if not others:
        return ""
    names = [repr(_planned(each).study_id) for each in others[:_MOST_NAMED]]
    if len(others) > _MOST_NAMED:
        names.append(f"{len(others) - _MOST_NAMED} more")
    return f", among them {', '.join(names)}"


def _evaluations_beside(account: Account, evaluations: int) -> str:
    terms = _planned(account).privacy.evaluation
    if evaluations == 0 or terms is None:
        return ""
    return (
        f"; {account.evaluations_spent} of its {terms.max_evaluations} evaluations are spent, and "
        f"a round takes {evaluations}"
    )


def _exceeds_limit(
    limit: DatasetLimit,
    account: Account,
    *,
    steps: int,
    evaluations: int,
    others: tuple[Account, ...],
) -> bool:
    terms = _planned(account).privacy
    if any(_planned(each).privacy.noise_multiplier == 0.0 for each in (account, *others)):
        return True
    if _is_sampled((account, *others)):
        plans = [event for each in (account, *others) for event in _complete_plan(each)]
        return composed_guarantee(plans, limit.delta).epsilon > limit.epsilon
    return would_exceed(
        Budget(limit.epsilon, limit.delta),
        _full_batches((account, *others)),
        *full_batch_events(terms, steps=steps, evaluations=evaluations),
    )


def _is_sampled(accounts: tuple[Account, ...]) -> bool:
    return any(_planned(each).privacy.sample_rate < 1.0 for each in accounts)


def _full_batches(accounts: tuple[Account, ...]) -> list[FullBatchEvent]:
    return [
        event
        for each in accounts
        for event in full_batch_events(
            _planned(each).privacy,
            steps=each.steps_spent,
            evaluations=each.evaluations_spent,
        )
    ]


def _complete_plan(account: Account) -> tuple[DpEvent, ...]:
    terms = _planned(account).privacy
    evaluations = 0 if terms.evaluation is None else terms.evaluation.max_evaluations
    return events_of(terms, steps=terms.max_steps, evaluations=evaluations)


def _planned(account: Account) -> Planned:
    if account.plan is None:
        raise IllegalEntryError("the ledger has no plan yet; nothing was spent")
    return account.plan


def _composed(accounts: tuple[Account, ...], delta: float) -> PrivacyGuarantee:
    """What was spent so far, all studies together. For display, never for stopping."""
    if any(_planned(each).privacy.noise_multiplier == 0.0 for each in accounts):
        return PrivacyGuarantee(math.inf, delta)
    if not _is_sampled(accounts):
        return PrivacyGuarantee(full_batch_epsilon(_full_batches(accounts), delta), delta)
    events = [
        event
        for each in accounts
        for event in events_of(
            _planned(each).privacy,
            steps=each.steps_spent,
            evaluations=each.evaluations_spent,
        )
    ]
    return composed_guarantee(events, delta)


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What the studies on one data set's patients come to."""

    studies: int
    """Those that spent anything, and the one this summary belongs to."""
    epsilon_spent: float
    delta: float
    limit_epsilon: float | None
    """``None``: no limit, or none known."""
    budget_fraction: float | None
    """Of the limit's Σ 1/σ²; ``None`` without a limit, where a study samples, and where one
    alone has its own budget."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What the hospital's privacy officer asks for."""

    study_id: str
    dataset: str
    epsilon_spent: float
    target_epsilon: float
    target_delta: float
    adjacency: str
    unit: str
    noise: Noise
    budget_fraction: float
    """Share of the plan's Σ 1/σ², evaluations included, or of its steps. ε is not linear in it."""
    steps_spent: int
    max_steps: int
    evaluations_spent: int
    max_evaluations: int
    rounds_left: int
    rounds_acknowledged: int
    halted: str | None
    together: DatasetSummary

    @property
    def is_half_spent(self) -> bool:
        """Whether the study's or the data set's budget, not ε, has passed its half."""
        fractions = (self.budget_fraction, self.together.budget_fraction or 0.0)
        return max(fractions) >= WARNING_FRACTION


def summarise(account: Account, shared: Shared = ALONE) -> Summary:
    """Summarise an account among the others on the same patients.

    Raises:
        IllegalEntryError: it has no plan yet.
    """
    plan = _planned(account)
    terms = plan.privacy
    acknowledged = [a for a in account.attempts if a.state is AttemptState.ACKNOWLEDGED]
    return Summary(
        study_id=plan.study_id,
        dataset=plan.dataset,
        epsilon_spent=epsilon_of(
            terms, steps=account.steps_spent, evaluations=account.evaluations_spent
        ),
        target_epsilon=terms.target_epsilon,
        target_delta=terms.target_delta,
        adjacency=terms.adjacency,
        unit=terms.unit,
        noise=terms.noise,
        budget_fraction=fraction_of_plan(
            terms, steps=account.steps_spent, evaluations=account.evaluations_spent
        ),
        steps_spent=account.steps_spent,
        max_steps=terms.max_steps,
        evaluations_spent=account.evaluations_spent,
        max_evaluations=0 if terms.evaluation is None else terms.evaluation.max_evaluations,
        rounds_left=_rounds_left(account, shared),
        rounds_acknowledged=len(acknowledged),
        halted=account.halted,
        together=_together(account, shared),
    )


def _rounds_left(account: Account, shared: Shared) -> int:
    plan = _planned(account)
    steps, evaluations = plan.steps_per_round, _evaluations_per_round(account)
    if account.halted is not None or why_over_budget(
        account, steps=steps, evaluations=evaluations, shared=shared
    ):
        return 0
    left = (plan.privacy.max_steps - account.steps_spent) // steps
    if evaluations and plan.privacy.evaluation is not None:
        left = min(left, plan.privacy.evaluation.max_evaluations - account.evaluations_spent)
    others = on_same_patients(plan, shared)
    limit, together = _limit_on(shared, others), (account, *others)
    if limit is None or _is_sampled(together):
        # Sampled studies fit with their complete plans or not at all.
        return left
    per_round = full_batch_events(plan.privacy, steps=steps, evaluations=evaluations)
    budget = Budget(limit.epsilon, limit.delta)
    return min(left, rounds_left(budget, _full_batches(together), *per_round))


def _evaluations_per_round(account: Account) -> int:
    """As in the last round; before the first, as planned: a hospital may refuse them."""
    if account.attempts:
        return account.attempts[-1].evaluations
    return 0 if _planned(account).privacy.evaluation is None else 1


def _together(account: Account, shared: Shared) -> DatasetSummary:
    plan = _planned(account)
    others = on_same_patients(plan, shared)
    accounts = (account, *others)
    limit = shared.limit
    delta = limit.delta if limit else max(_planned(each).privacy.target_delta for each in accounts)
    fraction = None
    is_noisy = all(_planned(each).privacy.noise_multiplier > 0.0 for each in accounts)
    binding = _limit_on(shared, others)
    if binding and is_noisy and not _is_sampled(accounts):
        budget = Budget(binding.epsilon, binding.delta)
        fraction = fraction_spent(budget, _full_batches(accounts))
    return DatasetSummary(
        studies=len(accounts),
        epsilon_spent=_composed(accounts, delta).epsilon,
        delta=delta,
        limit_epsilon=limit.epsilon if limit and limit.is_finite else None,
        budget_fraction=fraction,
    )


def projected_end(account: Account, *, rounds: int, now: datetime) -> datetime | None:
    """When ``rounds`` more will have been charged, at the mean pace so far.

    ``None`` before the second reservation, and where no round is left. A round that is
    overdue at that pace is expected now.
    """
    charged = [each.reserved_at for each in account.attempts if each.reserved_at is not None]
    if rounds < 1 or len(charged) < 2:
        return None
    pace = (charged[-1] - charged[0]) / (len(charged) - 1)
    return max(charged[-1] + pace, now) + pace * (rounds - 1)


def warning_epsilon(target_epsilon: float, target_delta: float) -> float:
    """What full-batch steps have come to where the warning is due: more than half of ε."""
    capacity = Budget(target_epsilon, target_delta).capacity
    return gaussian_epsilon(math.sqrt(WARNING_FRACTION * capacity), target_delta)


def shown_epsilon(epsilon: float) -> float | str:
    """ε for a record, rounded up: a rounded figure understates nothing. JSON has no infinity."""
    if not math.isfinite(epsilon):
        return "no privacy"
    # What ``repr`` shows, so that 0.1 + 0.2 does not become 0.3001.
    scaled = round(epsilon * _SHOWN_PARTS, 6)
    return math.ceil(scaled) / _SHOWN_PARTS


def statement(summary: Summary) -> str:
    """What a study has cost, in the one form in which it is told to people."""
    if not math.isfinite(summary.target_epsilon):
        promise = "without limit: this study protects nobody"
    else:
        promise = (
            f"{shown_epsilon(summary.epsilon_spent)} of {summary.target_epsilon:g} spent at "
            f"δ = {summary.target_delta:g} ({summary.adjacency} {summary.unit})"
        )
    left = "1 round" if summary.rounds_left == 1 else f"{summary.rounds_left} rounds"
    return f"ε {promise}; {summary.budget_fraction:.1%} of the budget, {left} left"


def dataset_statement(summary: Summary) -> str:
    """What all studies on the same patients have cost, in the one form for it."""
    together = summary.together
    of = "" if together.limit_epsilon is None else f" of {together.limit_epsilon:g}"
    share = (
        ""
        if together.budget_fraction is None
        else f"; {together.budget_fraction:.1%} of the budget"
    )
    return (
        f"ε {shown_epsilon(together.epsilon_spent)}{of} spent at δ = {together.delta:g} "
        f"({summary.adjacency} {summary.unit}) by {together.studies} "
        f"{'study' if together.studies == 1 else 'studies'} on data set "
        f"{summary.dataset!r}{share}"
    )


def record(summary: Summary) -> dict[str, Any]:
    """A summary as JSON: the same keys in logs, in answers and in ``--json``."""
    together = summary.together
    values = asdict(summary)
    del values["together"]
    limit = together.limit_epsilon
    return values | {
        "epsilon_spent": shown_epsilon(summary.epsilon_spent),
        "target_epsilon": shown_epsilon(summary.target_epsilon),
        "noise": summary.noise.value,
        "budget_fraction": round(summary.budget_fraction, 6),
        "dataset_studies": together.studies,
        "dataset_epsilon_spent": shown_epsilon(together.epsilon_spent),
        "dataset_delta": together.delta,
        "dataset_epsilon_limit": None if limit is None else shown_epsilon(limit),
        "dataset_budget_fraction": (
            None if together.budget_fraction is None else round(together.budget_fraction, 6)
        ),
        "statement": statement(summary),
    }
