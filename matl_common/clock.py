"""The clock that is handed to whatever asks for the time, so that a test can hand in its own."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)
