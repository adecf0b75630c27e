"""How long a database is waited for, and how many connections are kept."""

from dataclasses import dataclass
from typing import Any

POOL_CONNECTIONS = 8
POOL_WAIT_SECONDS = 10.0
BINARY = "matl_binary"
"""Set on a statement whose results come in PostgreSQL's binary format."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long a database is waited for before a call fails."""

    connect_seconds: float = 5.0
    lock_seconds: float = 10.0
    """For another transaction's lock."""
    statement_seconds: float = 30.0
    silence_seconds: float = 45.0
    """For a server that hangs, so that its own limits do not help."""


DEFAULT_LIMITS = TimeLimits()


def pool_options() -> dict[str, Any]:
    return {
        "pool_size": POOL_CONNECTIONS,
        "max_overflow": 0,
        "pool_timeout": POOL_WAIT_SECONDS,
    }
