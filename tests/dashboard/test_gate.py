"""Who gets in, how often, and for how long."""

from __future__ import annotations

from datetime import timedelta

from matl.dashboard.desk import Door
from matl.dashboard.gate import FAILURES_WITHIN, MOST_FAILURES, Verdict, gate_for, is_idle, knock
from tests.dashboard.samples import NOW


def test_a_token_opens_once_and_the_next_one_then() -> None:
    gate, verdict = knock(gate_for("first"), " first\n", fresh="second", now=NOW)
    assert verdict is Verdict.OPENED
    gate, verdict = knock(gate, "first", fresh="third", now=NOW)
    assert verdict is Verdict.WRONG
    _, verdict = knock(gate, "second", fresh="third", now=NOW)
    assert verdict is Verdict.OPENED


def test_whoever_guesses_too_often_waits_even_with_the_right_token() -> None:
    gate = gate_for("right")
    for _ in range(MOST_FAILURES):
        gate, verdict = knock(gate, "wrong", fresh="x", now=NOW)
        assert verdict is Verdict.WRONG
    gate, verdict = knock(gate, "right", fresh="x", now=NOW)
    assert verdict is Verdict.TOO_MANY
    _, verdict = knock(gate, "right", fresh="x", now=NOW + FAILURES_WITHIN)
    assert verdict is Verdict.OPENED


def test_the_gate_keeps_no_token() -> None:
    assert b"right" not in gate_for("right").token_digest


def test_the_door_announces_what_opens_it_next_and_nothing_after_a_wrong_try() -> None:
    tokens, announced = iter(f"token-{n}" for n in range(9)), list[str]()
    door = Door(draw_token=lambda: next(tokens), announce=announced.append, clock=lambda: NOW)
    assert door.knock("guess") is Verdict.WRONG
    assert announced == ["token-0"]
    assert door.knock("token-0") is Verdict.OPENED
    assert len(announced) == 2
    assert door.knock("token-0") is Verdict.WRONG
    assert door.knock(announced[-1]) is Verdict.OPENED


def test_a_session_ends_when_nobody_used_it_for_the_limit() -> None:
    limit = timedelta(minutes=15)
    assert not is_idle(last_active=NOW, now=NOW + limit - timedelta(seconds=1), limit=limit)
    assert is_idle(last_active=NOW, now=NOW + limit, limit=limit)
