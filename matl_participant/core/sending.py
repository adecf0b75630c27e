"""When a hospital may speak after a look at its data, as a value.

How long a look takes tells how many images there are, how large they are, and whether
one of them broke something. So the next word follows at a time fixed before the look
began, and not when the look has ended: ``interval`` after its beginning, or, where that
was missed, at the next multiple of it. What still shows is how many multiples; with an
interval longer than any look takes, that is always one. Nothing here reads a clock.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the data: to prepare it, or to train on it for one round."""

    since: datetime
    """Known before any data was read, and so independent of it."""
    until: datetime
    """When nothing that depends on the data's size was left to do."""


def may_speak_from(look: Look, interval: timedelta) -> datetime:
    """The first of ``since + interval``, ``since + 2 * interval``, … not before ``until``.

    An interval of nothing hides nothing: it is ``until`` itself.
    """
    if not interval:
        return look.until
    multiples = -((look.since - look.until) // interval)
    return look.since + max(1, multiples) * interval


def is_late(look: Look, interval: timedelta) -> bool:
    """Whether the look took longer than the interval, which others will see."""
    return bool(interval) and look.until > look.since + interval
