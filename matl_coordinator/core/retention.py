"""How long the log keeps what its entries say.

Six years is what the HIPAA rules ask of required documentation (45 CFR 164.316(b)(2)(i)); whether
that covers every detail of an audit log was never said, so it is read to. Seven is the default.
Nothing here reads a clock or removes anything.
"""

import re
from datetime import UTC, datetime
from enum import StrEnum

from matl_common.errors import ConfigurationError, InvalidInputError, MatlError

DEFAULT_YEARS = 7
HIPAA_YEARS = 6

_MONTH = re.compile(r"([1-9][0-9]{3})-(0[1-9]|1[0-2])")


class Compliance(StrEnum):
    """Whose minimum a federation has to respect."""

    HIPAA = "hipaa"
    NONE = "none"


class RetentionError(MatlError):
    """What was asked would put away what has to be kept."""


def check_years(years: int, compliance: Compliance) -> None:
    """Refuse a retention below what compliance asks for.

    Raises:
        ConfigurationError: it is below.
    """
    if compliance is Compliance.HIPAA and years < HIPAA_YEARS:
        raise ConfigurationError(
            f"retention_years is {years}, and HIPAA asks for {HIPAA_YEARS}; keep the log longer, "
            'or say compliance = "none"'
        )


def kept_until(month: str, *, years: int) -> datetime:
    """When the last entry of a month, ``YYYY-MM`` in UTC, is so many years old.

    Raises:
        InvalidInputError: it is not a month.
    """
    match = _MONTH.fullmatch(month)
    if match is None:
        raise InvalidInputError(f"{month[:20]!r} is not a month such as 2026-11")
    year, number = int(match[1]), int(match[2])
    ends = (year, number + 1) if number < 12 else (year + 1, 1)
    return datetime(ends[0] + years, ends[1], 1, tzinfo=UTC)


def check_expired(month: str, *, years: int, now: datetime) -> None:
    """Refuse a month that has to be kept.

    Raises:
        InvalidInputError: it is not a month.
        RetentionError: its retention is not over.
    """
    until = kept_until(month, years=years)
    if now < until:
        raise RetentionError(
            f"entries of {month} are kept until {until:%Y-%m-%d}, for {years} years"
        )
