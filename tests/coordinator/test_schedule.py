"""When the next round is due."""

from datetime import UTC, datetime, timedelta

from matl_coordinator.schedule import ByCalendar, ByHand, EveryInterval, next_due

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_round_is_due_an_interval_after_the_last_and_a_missed_one_at_once() -> None:
    hourly = EveryInterval(HOUR)
    assert next_due(hourly, last_opened=None, now=NOW) == NOW
    assert next_due(hourly, last_opened=NOW - HOUR / 2, now=NOW) == NOW + HOUR / 2
    assert next_due(hourly, last_opened=NOW - 3 * HOUR, now=NOW) == NOW - 2 * HOUR
    assert next_due(ByHand(), last_opened=None, now=NOW) is None


def test_a_clock_put_back_holds_no_round_back() -> None:
    ahead = NOW + 5 * HOUR
    assert next_due(EveryInterval(HOUR), last_opened=ahead, now=NOW) == NOW
    nightly = ByCalendar("0 14 * * *")
    assert next_due(nightly, last_opened=ahead, now=NOW) == NOW + 2 * HOUR
