"""What the participant does next: every state it can be in, enumerated."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, product

import pytest

from matl_common.ids import RoundId, digest_of
from matl_common.protocol import RoundStart
from matl_participant.core.account import (
    Abandoned,
    Account,
    Acknowledged,
    Attempt,
    AttemptState,
    Halted,
    Reserved,
    Sealed,
    after,
    exceeds_budget,
)
from matl_participant.core.sending import Look
from matl_participant.core.session import (
    MAX_BACKOFF_SECONDS,
    Abandon,
    Action,
    Attest,
    AwaitRound,
    Drain,
    Finish,
    Halt,
    Hello,
    Prepare,
    PullModel,
    Seal,
    Train,
    Upload,
    View,
    Wait,
    backoff,
    next_action,
)
from tests.participant.test_ledger import PLANNED, STEPS

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BEFORE, LATER = NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)
ROUND = RoundId(7)
BASE, UPDATE = digest_of(b"base"), digest_of(b"update")


def start_of(number: int, *, deadline: datetime = LATER) -> RoundStart:
    return RoundStart(
        federation_id="dr-study",
        study_id="study",
        round_id=RoundId(number),
        nonce=bytes(32),
        plan_digest=PLANNED.plan_digest,
        base_model=BASE,
        base_model_bytes=1000,
        opened_at=BEFORE - timedelta(minutes=1),
        deadline=deadline,
    )


def attempt(state: AttemptState, number: int = ROUND) -> Attempt:
    sealed = state in {AttemptState.SEALED, AttemptState.ACKNOWLEDGED}
    return Attempt(RoundId(number), STEPS, BASE, state, UPDATE if sealed else None)


HISTORIES: tuple[tuple[Attempt, ...], ...] = (
    (),
    *((attempt(state),) for state in AttemptState),
    (replace(attempt(AttemptState.ABANDONED), update_digest=UPDATE),),
    (attempt(AttemptState.ABANDONED), attempt(AttemptState.ABANDONED)),
    (attempt(AttemptState.ACKNOWLEDGED, ROUND - 1),),
    (attempt(AttemptState.ACKNOWLEDGED, ROUND + 1),),
    tuple(attempt(AttemptState.ACKNOWLEDGED, number) for number in range(1, 6)),
)
ROUNDS = (None, start_of(ROUND), start_of(ROUND, deadline=BEFORE))


def accounts() -> Iterator[Account]:
    yield Account()
    for history, halted in product(HISTORIES, (None, "the budget is spent")):
        yield Account(PLANNED, history, halted)


def views() -> Iterator[View]:
    flags = (False, True)
    for account, sealed_until, start, retry_at in product(
        accounts(), (None, LATER, BEFORE), ROUNDS, (None, BEFORE, LATER)
    ):
        for has_model, draining, connected, prepared, complete, has_result in product(
            *([flags] * 6)
        ):
            for refusal, attempts in product((None, "the plan changed"), (1, 2)):
                yield View(
                    account=account,
                    sealed_until=sealed_until,
                    has_model=has_model,
                    draining=draining,
                    connected=connected,
                    refusal=refusal,
                    prepared=prepared,
                    study_complete=complete,
                    round_start=start,
                    has_result=has_result,
                    retry_at=retry_at,
                    retry_reason="failed",
                    attempts_per_round=attempts,
                )


def check(view: View, action: Action, why: str) -> None:  # noqa: PLR0912, PLR0915 - one arm an action
    """Assert what must hold whenever this action is chosen."""
    account, pending = view.account, view.account.open_attempt
    assert why
    waits = view.retry_at is not None and view.retry_at > NOW
    match action:
        case Seal(round_id):
            assert view.has_result
            assert pending == attempt(AttemptState.RESERVED, round_id)
            assert not waits
        case Abandon(round_id):
            assert pending is not None
            assert pending.round_id == round_id
            if pending.state is AttemptState.RESERVED:
                over = view.round_start is not None and view.round_start.deadline <= NOW
                assert not view.has_result or (waits and over and not view.draining)
            else:
                assert not view.draining
                assert view.sealed_until is None or view.sealed_until <= NOW
        case Drain():
            assert view.draining
            if pending is not None and pending.state is AttemptState.RESERVED:
                assert view.has_result
                assert waits
        case Upload(round_id):
            assert view.connected
            assert not waits
            assert pending == attempt(AttemptState.SEALED, round_id)
            assert view.sealed_until is not None
            assert view.sealed_until > NOW
        case Train(start, steps):
            assert view.connected
            assert view.prepared
            assert view.has_model
            assert view.round_start == start
            assert start.deadline > NOW
            assert account.plan is not None
            assert account.halted is None
            assert pending is None
            assert steps == account.plan.steps_per_round
            assert not exceeds_budget(account, steps=steps)
            tried = account.attempts_at(start.round_id)
            assert len(tried) < view.attempts_per_round
            assert not any(each.update_digest for each in tried)
            # The ledger accepts exactly this.
            after(account, Reserved(NOW, start.round_id, steps, start.base_model))
        case PullModel(digest, _):
            assert view.connected
            assert not view.has_model
            assert view.round_start is not None
            assert digest == view.round_start.base_model
        case AwaitRound(have_round):
            assert view.connected
            assert view.prepared
            assert have_round >= account.last_round - 1
        case Prepare():
            assert view.connected
            assert not view.prepared
        case Attest():
            assert view.unattested
        case Hello():
            assert not view.connected
        case Wait(until):
            assert until == view.retry_at
            assert waits
            if view.has_result and pending and pending.state is AttemptState.RESERVED:
                # What is paid for waits to be signed, whatever comes after it.
                assert not view.draining
                return
        case Halt(is_final):
            if is_final:
                assert account.halted is None
                assert exceeds_budget(account, steps=STEPS)
            else:
                assert view.refusal or account.halted
        case Finish():
            assert view.study_complete
            assert pending is None
    if not isinstance(action, Seal | Abandon | Drain | Halt):
        assert not view.draining
        assert view.refusal is None
    if isinstance(action, Hello | Prepare | AwaitRound | PullModel | Train | Upload):
        assert not waits


def test_in_every_state_the_next_action_is_allowed_there() -> None:
    seen: dict[str, int] = {}
    for view in views():
        action, why = next_action(view, NOW)
        check(view, action, why)
        name = type(action).__name__
        seen[name] = seen.get(name, 0) + 1
    assert sum(seen.values()) > 100_000
    assert set(seen) == {each.__name__ for each in Action.__args__} - {"Attest"}


def test_without_evidence_of_its_machine_nothing_is_said_to_the_coordinator_or_trained() -> None:
    attesting = 0
    # Coprime to every dimension of the product, so that each is seen whole.
    for view in islice(views(), 0, None, 7):
        freely = next_action(view, NOW)
        unattested = next_action(replace(view, unattested=True), NOW)
        if isinstance(unattested[0], Attest):
            attesting += 1
            continue
        # What ends the process or finishes what is paid for needs no coordinator.
        assert isinstance(unattested[0], Seal | Abandon | Drain | Halt | Wait)
        assert unattested == freely
    assert attesting > 1_000


def test_a_log_that_lied_stops_everything_but_the_durable_step_at_hand() -> None:
    reason = "the log forked"
    # Coprime to every dimension of the product, so that each is seen whole.
    for view in islice(views(), 0, None, 7):
        action, why = next_action(replace(view, distrust=reason), NOW)
        if isinstance(action, Seal | Abandon):
            pending = view.account.open_attempt
            assert pending is not None
            assert pending.state is AttemptState.RESERVED
            continue
        assert (action, why) == (Halt(is_final=False), reason)


def test_after_a_look_at_the_data_nothing_is_said_before_its_time_and_all_else_goes_on() -> None:
    minute = timedelta(minutes=1)
    look = Look(since=NOW - 1.5 * minute, until=NOW - timedelta(seconds=10))
    speaking = waiting = 0
    # A stride that is prime to every dimension of the product.
    for view in islice(views(), 0, None, 11):
        freely = next_action(view, NOW)
        held = next_action(replace(view, looked=look, send_after=minute), NOW)
        if isinstance(freely[0], Attest | Hello | AwaitRound | PullModel | Upload):
            speaking += 1
            assert held[0] == Wait(NOW + 0.5 * minute)
        else:
            waiting += 1
            assert held == freely
        for past in (
            replace(view, looked=look),
            replace(view, looked=replace(look, since=NOW - 2 * minute), send_after=minute),
        ):
            assert next_action(past, NOW) == freely
    assert speaking > 1_000
    assert waiting > 1_000


def succeed(view: View, action: Action) -> View | None:
    """Return the view after an action succeeded; nothing where the participant stops or waits."""
    account = view.account
    match action:
        case Hello():
            return replace(view, connected=True)
        case Prepare():
            plan = account.plan or PLANNED
            return replace(view, prepared=True, account=replace(account, plan=plan))
        case PullModel():
            return replace(view, has_model=True)
        case Train(start, steps):
            reserved = Reserved(NOW, start.round_id, steps, start.base_model)
            return replace(view, account=after(account, reserved), has_result=True)
        case Seal(round_id):
            sealed = Sealed(NOW, round_id, UPDATE, UPDATE)
            return replace(
                view, account=after(account, sealed), has_result=False, sealed_until=LATER
            )
        case Upload(round_id):
            acknowledged = Acknowledged(NOW, round_id, UPDATE, 1)
            return replace(view, account=after(account, acknowledged), sealed_until=None)
        case Abandon(round_id):
            abandoned = Abandoned(NOW, round_id, "lost")
            return replace(
                view, account=after(account, abandoned), has_result=False, sealed_until=None
            )
        case Halt(is_final=True):
            return replace(view, account=after(account, Halted(NOW, "budget")))
        case _:
            return None


def test_from_every_state_a_dozen_successes_reach_rest() -> None:
    for view in views():
        current: View | None = view
        for _ in range(12):
            assert current is not None
            action, _ = next_action(current, NOW)
            current = succeed(current, action)
            if current is None:
                break
        assert current is None, view
        assert isinstance(action, AwaitRound | Finish | Halt | Drain | Wait), view


def test_a_whole_round_runs_in_the_order_that_protects_the_budget() -> None:
    view = View(round_start=start_of(ROUND))
    actions: list[str] = []
    while not (actions and actions[-1] == "AwaitRound"):
        action, _ = next_action(view, NOW)
        actions.append(type(action).__name__)
        view = succeed(view, action) or view
    assert actions == [
        *("Hello", "Prepare", "PullModel", "Train", "Seal", "Upload", "AwaitRound"),
    ]


@pytest.mark.parametrize(
    ("history", "attempts", "have"),
    [
        ((), 1, 0),
        ((attempt(AttemptState.ACKNOWLEDGED),), 1, ROUND),
        ((attempt(AttemptState.ABANDONED),), 1, ROUND),
        ((attempt(AttemptState.ABANDONED),), 2, ROUND - 1),
        ((attempt(AttemptState.ABANDONED), attempt(AttemptState.ABANDONED)), 2, ROUND),
        ((replace(attempt(AttemptState.ABANDONED), update_digest=UPDATE),), 2, ROUND),
    ],
)
def test_after_a_restart_only_a_round_that_may_be_tried_again_is_asked_for_again(
    history: tuple[Attempt, ...], attempts: int, have: int
) -> None:
    view = View(
        account=Account(PLANNED, history),
        connected=True,
        prepared=True,
        attempts_per_round=attempts,
    )
    assert next_action(view, NOW)[0] == AwaitRound(have)


def test_waiting_grows_to_a_bound_and_is_never_nothing() -> None:
    for chance in (0.0, 0.5, 0.999999):
        waits = [backoff(failures, chance=chance).total_seconds() for failures in range(1, 2000)]
        assert waits == sorted(waits)
        assert 0.1 <= waits[0] <= 1.0
        assert waits[-1] <= MAX_BACKOFF_SECONDS
    assert backoff(4, chance=0.0) < backoff(4, chance=0.5) < backoff(4, chance=0.99)


def test_of_several_addresses_the_next_is_tried_soon_and_none_is_waited_for_long() -> None:
    waits = [
        backoff(failures, chance=1.0, addresses=2).total_seconds() for failures in range(1, 2000)
    ]
    assert waits[:8] == [1.0, 1.0, 1.0, 2.0, 1.0, 4.0, 1.0, 8.0]
    assert max(waits) == 8.0
