"""When a hospital may speak after a look at its data."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from matl_participant.core.sending import Look, is_late, may_speak_from

SINCE = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DURATIONS = st.timedeltas(min_value=timedelta(), max_value=timedelta(days=2))
INTERVALS = st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(days=2))


@given(took=DURATIONS, interval=INTERVALS)
def test_the_time_is_the_first_multiple_of_the_interval_that_is_not_missed(
    took: timedelta, interval: timedelta
) -> None:
    look = Look(SINCE, SINCE + took)
    moment = may_speak_from(look, interval)
    assert (moment - SINCE) % interval == timedelta()
    assert moment >= look.until
    assert moment >= SINCE + interval
    if moment > SINCE + interval:
        assert moment - interval < look.until
    assert is_late(look, interval) == (moment > SINCE + interval)


@given(one=DURATIONS, other=DURATIONS)
def test_whatever_ends_within_the_interval_is_heard_of_at_the_same_moment(
    one: timedelta, other: timedelta
) -> None:
    interval = max(one, other, timedelta(seconds=1))
    assert may_speak_from(Look(SINCE, SINCE + one), interval) == may_speak_from(
        Look(SINCE, SINCE + other), interval
    )


def test_without_an_interval_the_time_is_when_the_look_ended() -> None:
    look = Look(SINCE, SINCE + timedelta(seconds=7))
    assert may_speak_from(look, timedelta()) == look.until
    assert not is_late(look, timedelta())
