"""How fast a caller's calls are taken up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_coordinator.rpc.pace import BURST_CALLS, CALLS_PER_SECOND, Pace

INTERVAL = 1.0 / CALLS_PER_SECOND


def after_a_burst(pace: Pace, *, now: float) -> Pace:
    for _ in range(BURST_CALLS):
        assert pace.wait(now=now) == pytest.approx(0.0, abs=1e-6)
        pace.take(now=now)
    return pace


def test_calls_are_taken_up_at_once_until_they_are_too_many() -> None:
    pace = after_a_burst(Pace(), now=1000.0)
    for calls in range(1, 4):
        assert pace.wait(now=1000.0) == pytest.approx(calls * INTERVAL)
        pace.take(now=1000.0)


def test_a_silence_makes_room_for_as_many_again_and_no_more() -> None:
    pace = after_a_burst(after_a_burst(Pace(), now=0.0), now=3600.0)
    assert pace.wait(now=3600.0) == pytest.approx(INTERVAL)


@given(st.lists(st.floats(0.0, 0.02), max_size=300))
def test_whoever_keeps_the_rate_never_waits_even_after_a_burst(pauses: list[float]) -> None:
    now = 0.0
    pace = after_a_burst(Pace(), now=now)
    for pause in pauses:
        now += max(pause, INTERVAL)
        assert pace.wait(now=now) == pytest.approx(0.0, abs=1e-6)
        pace.take(now=now)
