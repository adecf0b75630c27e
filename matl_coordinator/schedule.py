"""When the next round is due: at an interval, by a calendar, or by hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from matl_common.errors import ConfigurationError

if TYPE_CHECKING:
    from croniter import croniter


@dataclass(frozen=True, slots=True)
class EveryInterval:
    """Rounds open this long after the one before opened, at the earliest when it ends."""

    interval: timedelta


@dataclass(frozen=True, slots=True)
class ByCalendar:
    """Rounds open at the times of a cron expression, in UTC."""

    expression: str

    def __post_init__(self) -> None:
        if not _croniter().is_valid(self.expression):
            raise ConfigurationError(
                f"{self.expression!r} is not a cron expression; write for example '0 2 * * *'"
            )


@dataclass(frozen=True, slots=True)
class ByHand:
    """Rounds open when an operator says so."""


Schedule = EveryInterval | ByCalendar | ByHand


def next_due(schedule: Schedule, *, last_opened: datetime | None, now: datetime) -> datetime | None:
    """When the next round is due; ``None`` until an operator starts one.

    A time missed while the coordinator was down is due at once, and once only. After a clock was
    put back, the last round lies in the future and tells nothing.
    """
    if last_opened is not None and last_opened > now:
        last_opened = None
    match schedule:
        case EveryInterval(interval=interval):
            return now if last_opened is None else last_opened + interval
        case ByCalendar(expression=expression):
            start = now if last_opened is None else last_opened
            following: datetime = _croniter()(expression, start).get_next(datetime)
            return following.astimezone(UTC)
        case ByHand():
            return None


def _croniter() -> type[croniter]:
    # Loaded only where it is used: it costs a daemon a megabyte.
    from croniter import croniter

    return croniter
