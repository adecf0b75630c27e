"""The round's state machine, enumerated whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from matl_common.ids import Digest, NodeId, RoundId
from matl_coordinator.core.rounds import (
    TRANSITIONS,
    Aborted,
    Admitted,
    Aggregated,
    Average,
    CollectionClosed,
    Evaluated,
    Evaluation,
    Event,
    Excluded,
    IllegalEventError,
    NodeExcluded,
    NodeJoined,
    NodeRemoved,
    NodeWeight,
    Opened,
    Phase,
    Round,
    RoundRules,
    Scored,
    UpdateAdmitted,
    advance,
    choose_invited,
    next_event,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C, D = (NodeId(f"hospital_{letter}") for letter in "abcd")
NODES = (A, B, C)
DIGEST = Digest("ab" * 32)
AVERAGE = Average(Digest("cd" * 32), 2)
RULES = RoundRules(
    quorum=2, minimum_participants=2, maximum_participants=3, collect_for=timedelta(minutes=5)
)
EVALUATION = Evaluation(0.9, 0.9, 0.9, (0.9,) * 5, 100)

EVENTS: tuple[Event, ...] = (
    Opened(T0, frozenset({A, B})),
    Opened(T0, frozenset({A})),
    NodeJoined(C),
    NodeJoined(D),
    UpdateAdmitted(A, DIGEST),
    UpdateAdmitted(C, DIGEST),
    NodeExcluded(B, "refused"),
    NodeRemoved(A, "no longer enrolled"),
    NodeRemoved(C, "no longer enrolled"),
    CollectionClosed(T0),
    Scored((NodeWeight(A, 0.5), NodeWeight(C, 0.5)), reach=1.0),
    Scored((NodeWeight(A, 0.5), NodeWeight(C, 0.5)), reach=0.25),
    Scored((NodeWeight(A, 0.5), NodeWeight(C, 0.5)), reach=0.0),
    Scored((NodeWeight(A, 0.5), NodeWeight(C, 0.5)), reach=1.5),
    Scored((NodeWeight(A, 0.5), NodeWeight(C, 0.5)), reach=float("nan")),
    Scored((NodeWeight(A, 1.0),), reach=1.0),
    Scored((NodeWeight(A, 0.5), NodeWeight(C, 0.6)), reach=1.0),
    Scored((NodeWeight(A, float("nan")), NodeWeight(C, 0.5)), reach=1.0),
    Scored((NodeWeight(A, -0.5), NodeWeight(C, 1.5)), reach=1.0),
    Aggregated(DIGEST, reach=1.0),
    Aggregated(DIGEST, reach=0.125),
    Aggregated(DIGEST, reach=0.0),
    Aggregated(DIGEST, 1.0, AVERAGE),
    Evaluated(T0, EVALUATION),
    Aborted(T0, "by hand"),
)


def scheduled() -> Round:
    return Round(RoundId(1), b"n" * 32, DIGEST, DIGEST, RULES, opens_at=T0)


def reachable() -> list[Round]:
    """Every round that any sequence of ``EVENTS`` leads to."""
    seen: dict[Round, None] = {scheduled(): None}
    frontier = [scheduled()]
    while frontier:
        rnd = frontier.pop()
        for event in EVENTS:
            try:
                after = advance(rnd, event)
            except IllegalEventError:
                continue
            if after not in seen:
                seen[after] = None
                frontier.append(after)
    return list(seen)


REACHABLE = reachable()


def is_sound(rnd: Round) -> bool:
    """What must hold of a round whatever happened to it."""
    decided = rnd.admitted_nodes | rnd.excluded_nodes
    counted = {each.node_id for each in rnd.weights}
    past_closing = rnd.phase in (Phase.SCORING, Phase.AGGREGATING, Phase.EVALUATING, Phase.RELEASED)
    past_scoring = rnd.phase in (Phase.AGGREGATING, Phase.EVALUATING, Phase.RELEASED)
    return (
        not rnd.admitted_nodes & rnd.excluded_nodes
        and decided <= rnd.invited
        and len(rnd.invited) <= RULES.maximum_participants
        and (rnd.phase is Phase.ABORTED) == (rnd.abort_reason is not None)
        and rnd.phase.is_final == (rnd.ended_at is not None)
        and (not past_closing or decided == rnd.invited)
        and (not past_scoring or len(rnd.admitted) >= RULES.quorum)
        and (not past_scoring or counted == rnd.admitted_nodes)
        and (not past_scoring or abs(sum(each.weight for each in rnd.weights) - 1) < 1e-9)
        and (rnd.phase not in (Phase.EVALUATING, Phase.RELEASED) or rnd.candidate is not None)
        and 0.0 < rnd.reach <= 1.0
        and (past_scoring or rnd.phase is Phase.ABORTED or rnd.reach == 1.0)
        and (rnd.average is None or rnd.candidate is not None)
        and rnd.to_release == (rnd.candidate if rnd.average is None else AVERAGE.model)
        and (rnd.phase is Phase.RELEASED) == (rnd.evaluation is not None)
    )


def test_every_round_that_can_be_reached_is_sound() -> None:
    assert len(REACHABLE) > 40
    assert {rnd.phase for rnd in REACHABLE} == set(Phase)
    for rnd in REACHABLE:
        assert is_sound(rnd), rnd


def test_the_table_lists_exactly_the_changes_of_phase_that_happen() -> None:
    happened = set()
    for rnd, event in product(REACHABLE, EVENTS):
        try:
            after = advance(rnd, event)
        except IllegalEventError:
            continue
        happened.add((rnd.phase, type(event), after.phase))
    assert happened == {(*key, target) for key, target in TRANSITIONS.items()}


def test_a_refused_event_leaves_the_round_as_it_was() -> None:
    for rnd, event in product(REACHABLE, EVENTS):
        before = replace(rnd)
        with suppress(IllegalEventError):
            advance(rnd, event)
        assert rnd == before


def test_nothing_happens_to_a_round_that_is_over() -> None:
    over = [rnd for rnd in REACHABLE if rnd.phase.is_final]
    for rnd, event in product(over, EVENTS):
        with pytest.raises(IllegalEventError):
            advance(rnd, event)


def test_a_model_takes_no_more_of_the_aggregate_than_the_step_was_found_to_bear() -> None:
    aggregating = [rnd for rnd in REACHABLE if rnd.phase is Phase.AGGREGATING]
    assert {rnd.reach for rnd in aggregating} == {0.25, 1.0}
    for rnd in aggregating:
        for reach in (rnd.reach, rnd.reach / 2.0):
            assert advance(rnd, Aggregated(DIGEST, reach)).reach == reach
        with pytest.raises(IllegalEventError, match="at most"):
            advance(rnd, Aggregated(DIGEST, 1.01 * rnd.reach))


def test_the_order_in_which_updates_arrive_leaves_no_trace() -> None:
    opened = advance(scheduled(), Opened(T0, frozenset(NODES)))
    there = advance(advance(opened, UpdateAdmitted(A, DIGEST)), UpdateAdmitted(B, DIGEST))
    back = advance(advance(opened, UpdateAdmitted(B, DIGEST)), UpdateAdmitted(A, DIGEST))
    assert there == back


def test_hospitals_without_an_update_at_the_deadline_are_excluded_as_late() -> None:
    rnd = advance(scheduled(), Opened(T0, frozenset(NODES)))
    for node in (A, B):
        rnd = advance(rnd, UpdateAdmitted(node, DIGEST))
    closed = advance(rnd, CollectionClosed(T0))
    assert closed.admitted == (Admitted(A, DIGEST), Admitted(B, DIGEST))
    assert closed.excluded == (Excluded(C, "late: no update before the deadline"),)


def ticks() -> Iterator[tuple[Round, datetime, frozenset[NodeId]]]:
    moments = (T0 - timedelta(seconds=1), T0, T0 + timedelta(minutes=5))
    crowds = (frozenset[NodeId](), frozenset({A}), frozenset({A, B}), frozenset({A, B, C, D}))
    yield from product(REACHABLE, moments, crowds)


def test_whatever_a_tick_decides_is_legal_and_has_a_reason() -> None:
    for rnd, now, present in ticks():
        event, reason = next_event(rnd, now, present=present)
        assert reason
        if event is not None:
            assert is_sound(advance(rnd, event)), (rnd, event)


def test_no_round_collects_beyond_its_deadline() -> None:
    for rnd in REACHABLE:
        if rnd.phase is Phase.COLLECTING:
            assert rnd.deadline is not None
            event, _ = next_event(rnd, rnd.deadline, present=frozenset())
            assert isinstance(event, CollectionClosed | Aborted)


def test_a_round_does_not_open_with_too_few_hospitals() -> None:
    alone = next_event(scheduled(), T0, present=frozenset({A}))
    assert alone == (None, "1 of at least 2 hospitals are connected")


def test_a_round_opens_although_the_clock_was_put_back_after_it_was_scheduled() -> None:
    event, _ = next_event(scheduled(), T0 - timedelta(days=40), present=frozenset(NODES))
    assert isinstance(event, Opened)


def test_no_round_collects_longer_than_it_may_although_its_deadline_is_far_off() -> None:
    before, limit = T0 - timedelta(days=40), RULES.collect_for
    for rnd in REACHABLE:
        if rnd.phase is Phase.COLLECTING and rnd.pending_nodes:
            waits, _ = next_event(
                rnd, before, present=frozenset(), collected_for=limit - timedelta(seconds=1)
            )
            event, _ = next_event(rnd, before, present=frozenset(), collected_for=limit)
            assert waits is None or isinstance(waits, Aborted)
            assert isinstance(event, CollectionClosed | Aborted)


def test_a_round_closes_as_soon_as_every_invited_hospital_is_decided_on() -> None:
    rnd = advance(scheduled(), Opened(T0, frozenset({A, B})))
    rnd = advance(rnd, UpdateAdmitted(A, DIGEST))
    assert next_event(rnd, T0, present=frozenset())[0] is None
    rnd = advance(rnd, UpdateAdmitted(B, DIGEST))
    assert next_event(rnd, T0, present=frozenset())[0] == CollectionClosed(T0)


def test_a_round_whose_quorum_is_out_of_reach_ends_at_once() -> None:
    rnd = advance(scheduled(), Opened(T0, frozenset(NODES)))
    for node in (A, B):
        rnd = advance(rnd, NodeExcluded(node, "refused"))
    event, _ = next_event(rnd, T0, present=frozenset())
    assert event == Aborted(T0, "quorum of 2 can no longer be reached")


def test_the_draw_takes_turns_and_can_be_recomputed() -> None:
    present = frozenset(NodeId(f"n{index}") for index in range(20))
    draws = [choose_invited(present, maximum=5, nonce=bytes([number]) * 32) for number in range(40)]
    assert all(len(draw) == 5 for draw in draws)
    assert frozenset().union(*draws) == present
    assert draws[3] == choose_invited(present, maximum=5, nonce=bytes([3]) * 32)
    assert choose_invited(present, maximum=50, nonce=b"n" * 32) == present
