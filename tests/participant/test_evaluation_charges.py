"""A noised evaluation is charged with the round that it belongs to, once and before all else."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from matl_common.ids import RoundId
from matl_common.privacy.budget import (
    Budget,
    calibrate_noise,
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
from matl_common.privacy.mechanisms import Noise, full_batch_event
from matl_common.privacy.poisson import composed_guarantee
from matl_common.protocol import EvaluationTerms, PrivacyTerms
from matl_participant.core.account import (
    Abandoned,
    Account,
    Attempt,
    AttemptState,
    IllegalEntryError,
    Reserved,
    after,
    exceeds_budget,
)
from matl_participant.core.journal import GENESIS, LedgerCorruptError, format_line, replay
from matl_participant.core.spending import (
    DatasetLimit,
    Shared,
    record,
    statement,
    summarise,
    why_over_budget,
)
from matl_participant.ledger import BudgetExhaustedError, Ledger, LedgerUnusableError
from tests.participant.test_ledger import (
    BASE,
    NOW,
    PLANNED,
    STEPS,
    TERMS,
    Disk,
    DiskStorage,
    abandon,
    acknowledge,
    rehashed,
    reserve,
    seal,
)

pytestmark = pytest.mark.privacy

ROUNDS, SHARE, DELTA = 5, 0.05, 1e-5


def terms_with_evaluation(noise: Noise = Noise.GAUSSIAN) -> PrivacyTerms:
    """Five rounds of training and one evaluation each, within ε = 1 together."""
    return replace(
        TERMS,
        noise=noise,
        noise_multiplier=calibrate_noise(
            1.0, DELTA, steps=ROUNDS * STEPS, noise=noise, share=1.0 - SHARE
        ),
        evaluation=EvaluationTerms(
            calibrate_noise(1.0, DELTA, steps=ROUNDS, noise=noise, share=SHARE), ROUNDS
        ),
    )


EVALUATING = terms_with_evaluation()
PLAN = replace(PLANNED, privacy=EVALUATING)


def reserve_both(ledger: Ledger, number: int = 1) -> None:
    ledger.reserve(at=NOW, round_id=RoundId(number), steps=STEPS, base_model=BASE, evaluations=1)


STORY: tuple[Callable[[Ledger], None], ...] = (
    lambda ledger: ledger.plan(PLAN),
    lambda ledger: reserve_both(ledger, 1),
    lambda ledger: seal(ledger, 1),
    lambda ledger: acknowledge(ledger, 1),
    lambda ledger: reserve_both(ledger, 2),
    lambda ledger: abandon(ledger, 2),
    lambda ledger: reserve(ledger, 3),
    lambda ledger: seal(ledger, 3),
    lambda ledger: abandon(ledger, 3),
)


def told(step: int) -> Disk:
    disk = Disk()
    ledger = Ledger(DiskStorage(disk))
    for act in STORY[:step]:
        act(ledger)
    return disk


def spent_of(account: Account) -> float:
    """ε, as the ledger's entries have it."""
    return epsilon_of(EVALUATING, steps=account.steps_spent, evaluations=account.evaluations_spent)


def evaluated(rounds: int, *, without: int = 0, terms: PrivacyTerms = EVALUATING) -> Account:
    """A study that charged so many rounds with, and after them some without an evaluation."""
    attempts = tuple(
        Attempt(
            RoundId(number),
            STEPS,
            BASE,
            AttemptState.ABANDONED,
            evaluations=int(number <= rounds),
        )
        for number in range(1, rounds + without + 1)
    )
    return Account(replace(PLAN, privacy=terms), attempts)


@pytest.mark.crash
@pytest.mark.parametrize("step", range(len(STORY)))
def test_a_power_cut_at_any_byte_of_any_write_never_lowers_what_evaluations_cost(
    step: int,
) -> None:
    confirmed = replay(told(step).seen).account
    after_it = replay(told(step + 1).seen).account
    for call in range(2):
        for fail_after_effect in (False, True):
            disk = told(step)
            calls = len(disk.calls)
            storage = DiskStorage(
                disk, fail_call=calls + 3 + call, fail_after_effect=fail_after_effect
            )
            with pytest.raises(LedgerUnusableError):
                STORY[step](Ledger(storage))
            for survivor in disk.survivors():
                account = Ledger(DiskStorage(Disk(seen=survivor))).account
                assert account in (confirmed, after_it)
                assert spent_of(account) >= spent_of(confirmed)
                # With its training, and never one without the other.
                assert account.evaluations_spent == min(2, account.steps_spent // STEPS)


def test_one_flushed_entry_charges_training_and_evaluation_together() -> None:
    disk = told(1)
    ledger = Ledger(DiskStorage(disk))
    disk.calls.clear()
    reserve_both(ledger)
    assert disk.calls == ["append", "sync"]
    assert replay(disk.durable).account.evaluations_spent == 1
    assert replay(disk.durable).account.steps_spent == STEPS


def test_what_was_sealed_or_lost_stays_charged_once_and_a_second_attempt_is_charged_again() -> None:
    account = replay(told(len(STORY)).seen).account
    assert [each.evaluations for each in account.attempts] == [1, 1, 0]
    assert account.evaluations_spent == 2
    ledger = Ledger(DiskStorage(told(6)))
    reserve_both(ledger, 2)
    assert ledger.account.evaluations_spent == 3


def test_evaluations_and_training_together_spend_the_whole_budget_and_not_one_more() -> None:
    for noise in Noise:
        disk = Disk()
        ledger = Ledger(DiskStorage(disk))
        ledger.plan(replace(PLAN, privacy=terms_with_evaluation(noise)))
        for number in range(1, ROUNDS + 1):
            assert ledger.summary().rounds_left == ROUNDS + 1 - number
            reserve_both(ledger, number)
            abandon(ledger, number)
        summary = ledger.summary()
        assert summary.budget_fraction == 1.0
        assert (summary.evaluations_spent, summary.max_evaluations) == (ROUNDS, ROUNDS)
        assert 0.9999 < summary.epsilon_spent <= 1.0
        assert "0 rounds left" in statement(summary)
        with pytest.raises(BudgetExhaustedError, match="5 of its 5 evaluations"):
            reserve_both(ledger, ROUNDS + 1)
        assert replay(disk.durable).account.halted is not None


def test_the_planned_number_of_evaluations_stops_whatever_their_noise_is() -> None:
    generous = replace(EVALUATING, evaluation=EvaluationTerms(1e6, 2), max_steps=ROUNDS * STEPS)
    account = evaluated(2, terms=generous)
    assert exceeds_budget(account, steps=STEPS, evaluations=1)
    assert not exceeds_budget(account, steps=STEPS)
    assert summarise(account).rounds_left == 0


def test_evaluations_count_in_the_sum_and_not_only_in_number() -> None:
    assert EVALUATING.evaluation is not None
    unlimited = replace(
        EVALUATING,
        max_steps=10_000,
        evaluation=replace(EVALUATING.evaluation, max_evaluations=10_000),
    )
    account = evaluated(ROUNDS - 1, terms=unlimited)
    assert not exceeds_budget(account, steps=STEPS, evaluations=1)
    assert exceeds_budget(account, steps=STEPS, evaluations=2)
    assert exceeds_budget(account, steps=STEPS + 1, evaluations=1)
    # One that was not made leaves room for one, and not for two.
    account = evaluated(ROUNDS - 2, without=1, terms=unlimited)
    assert not exceeds_budget(account, steps=STEPS, evaluations=2)
    assert exceeds_budget(account, steps=STEPS, evaluations=3)


def test_what_would_hide_an_evaluation_is_refused_and_writes_nothing() -> None:
    ledger = Ledger(DiskStorage(told(1)))
    for evaluations in (-1, 2):
        with pytest.raises(IllegalEntryError, match="one at most"):
            ledger.reserve(
                at=NOW, round_id=RoundId(1), steps=STEPS, base_model=BASE, evaluations=evaluations
            )
    without = Ledger(DiskStorage(Disk()))
    without.plan(PLANNED)
    with pytest.raises(IllegalEntryError, match="no evaluation"):
        reserve_both(without)
    for each in (ledger, without):
        assert each.account.attempts == ()
    with pytest.raises(InvalidInputError, match="no evaluations"):
        events_of(TERMS, steps=STEPS, evaluations=1)


def test_a_ledger_from_before_there_were_evaluations_keeps_its_bytes() -> None:
    plan, head = format_line(PLANNED, sequence=0, previous=GENESIS)
    charged, _ = format_line(Reserved(NOW, RoundId(1), STEPS, BASE), sequence=1, previous=head)
    assert b"evaluation" not in plan + charged
    assert replay(plan + charged).account.evaluations_spent == 0
    line, head = format_line(PLAN, sequence=0, previous=GENESIS)
    assert replay(line).account.plan == PLAN
    charged, _ = format_line(Reserved(NOW, RoundId(1), STEPS, BASE, 1), sequence=1, previous=head)
    assert replay(line + charged).account.evaluations_spent == 1


@pytest.mark.parametrize("evaluation", [None, 3, {}, {"noise_multiplier": 1.0}, "noised"])
def test_evaluations_that_cannot_be_accounted_for_make_a_ledger_unusable(
    evaluation: object,
) -> None:
    line, _ = format_line(PLAN, sequence=0, previous=GENESIS)
    with pytest.raises(LedgerCorruptError, match="line 1"):
        replay(rehashed(line, evaluation=evaluation))


def test_the_shown_figures_include_evaluations_everywhere_in_the_same_way() -> None:
    account = evaluated(2)
    summary = summarise(account)
    assert EVALUATING.evaluation is not None
    mu = math.sqrt(
        2 * STEPS / EVALUATING.noise_multiplier**2 + 2 / EVALUATING.evaluation.noise_multiplier**2
    )
    assert summary.epsilon_spent == pytest.approx(gaussian_epsilon(mu, DELTA))
    assert summary.epsilon_spent == summary.together.epsilon_spent
    assert summary.budget_fraction == pytest.approx(0.4)
    told = record(summary)
    assert (told["evaluations_spent"], told["max_evaluations"]) == (2, ROUNDS)
    json.dumps(told)
    # Evaluations alone have the share they were given.
    shares = [
        fraction_of_plan(EVALUATING, steps=0, evaluations=ROUNDS),
        fraction_of_plan(EVALUATING, steps=ROUNDS * STEPS),
    ]
    assert shares == pytest.approx([SHARE, 1.0 - SHARE])
    # A hospital that refuses them keeps that share, and no round is left all the same.
    refusing = summarise(evaluated(0, without=ROUNDS))
    assert refusing.budget_fraction == pytest.approx(1.0 - SHARE)
    assert (refusing.rounds_left, refusing.evaluations_spent) == (0, 0)
    assert refusing.epsilon_spent < 1.0


def test_evaluations_count_beside_other_studies_of_the_same_patients() -> None:
    limit = DatasetLimit(1.0, DELTA)
    other = replace(PLAN, study_id="other", privacy=TERMS)
    first = Account(
        other,
        tuple(
            Attempt(RoundId(number), STEPS, BASE, AttemptState.ABANDONED) for number in (1, 2, 3)
        ),
    )
    shared = Shared(limit, (first,))
    account = evaluated(1)
    assert why_over_budget(account, steps=STEPS, evaluations=1, shared=shared) is None
    assert summarise(account, shared).rounds_left == 1
    # Training would fit a little more tightly than training and evaluation.
    tight = DatasetLimit(
        full_batch_epsilon(
            full_batch_events(TERMS, steps=3 * STEPS)
            + full_batch_events(EVALUATING, steps=2 * STEPS)
            + full_batch_events(EVALUATING, steps=0, evaluations=1),
            DELTA,
        )
        + 1e-9,
        DELTA,
    )
    shared = Shared(tight, (first,))
    assert why_over_budget(account, steps=STEPS, shared=shared) is None
    why = why_over_budget(account, steps=STEPS, evaluations=1, shared=shared) or ""
    assert "dataset_epsilon" in why
    assert f"{STEPS} more steps and an evaluation of study" in why
    assert summarise(account, shared).rounds_left == 0
    assert summarise(evaluated(0, without=1), shared).rounds_left == 1


def test_beside_a_sampled_study_an_evaluating_one_counts_with_its_complete_plan() -> None:
    sampled = replace(TERMS, noise_multiplier=16.7, sample_rate=0.128, max_steps=1200)
    whole = composed_guarantee(
        (
            *events_of(sampled, steps=1200),
            *events_of(EVALUATING, steps=ROUNDS * STEPS, evaluations=ROUNDS),
        ),
        DELTA,
    ).epsilon
    begun = Account(
        replace(PLAN, study_id="sampled", privacy=sampled),
        (Attempt(RoundId(1), STEPS, BASE, AttemptState.ABANDONED),),
    )
    for epsilon, fits in ((whole + 1e-3, True), (whole - 1e-3, False)):
        shared = Shared(DatasetLimit(epsilon, DELTA), (begun,))
        why = why_over_budget(evaluated(0), steps=STEPS, evaluations=1, shared=shared)
        assert (why is None) == fits


@given(
    rounds=st.integers(1, 8),
    steps=st.integers(1, 40),
    share=st.floats(0.01, 0.5),
    epsilon=st.sampled_from([0.3, 1.0, 8.0]),
    noise=st.sampled_from(Noise),
)
def test_any_share_fits_and_no_round_more(
    rounds: int, steps: int, share: float, epsilon: float, noise: Noise
) -> None:
    training = calibrate_noise(epsilon, DELTA, steps=rounds * steps, noise=noise, share=1 - share)
    terms = replace(
        TERMS,
        target_epsilon=epsilon,
        noise=noise,
        noise_multiplier=training,
        max_steps=10_000,
        evaluation=EvaluationTerms(
            calibrate_noise(epsilon, DELTA, steps=rounds, noise=noise, share=share), 10_000
        ),
    )
    account = after(Account(), replace(PLAN, privacy=terms))
    for number in range(1, rounds + 1):
        assert not exceeds_budget(account, steps=steps, evaluations=1)
        account = after(account, Reserved(NOW, RoundId(number), steps, BASE, 1))
        account = after(account, Abandoned(NOW, RoundId(number), "lost"))
    assert exceeds_budget(account, steps=steps, evaluations=1)
    spent = epsilon_of(terms, steps=rounds * steps, evaluations=rounds)
    assert epsilon * (1 - 1e-4) < spent <= epsilon


def test_rounds_left_of_two_kinds_of_events_is_how_often_both_are_granted() -> None:
    budget = summarise(evaluated(0))
    assert budget.rounds_left == ROUNDS
    training, evaluation = full_batch_events(EVALUATING, steps=STEPS, evaluations=1)
    whole = Budget(1.0, DELTA)
    assert rounds_left(whole, [], training, evaluation) == ROUNDS
    assert rounds_left(whole, [training, evaluation], training, evaluation) == ROUNDS - 1
    many = full_batch_event(Noise.GAUSSIAN, EVALUATING.noise_multiplier, ROUNDS * STEPS)
    assert not would_exceed(whole, [many], evaluation)
    assert would_exceed(whole, [many], training, evaluation)


def test_a_share_of_nothing_or_of_more_than_all_cannot_be_calibrated_for() -> None:
    for share in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(InvalidInputError, match="share"):
            calibrate_noise(1.0, DELTA, steps=3, share=share)
