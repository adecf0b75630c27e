"""Who may look at the page: a token that opens it once, and sessions that end when idle.

Pure: moments and fresh tokens come in as arguments. 45 CFR 164.312(a)(2)(iii), (d).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

MOST_FAILURES: Final = 5
FAILURES_WITHIN: Final = timedelta(minutes=1)
TOKEN_BYTES: Final = 24


class Verdict(Enum):
    """What became of a try."""

    OPENED = "opened"
    WRONG = "wrong"
    TOO_MANY = "too many"


@dataclass(frozen=True, slots=True)
class Gate:
    """What opens the page next, and how often somebody guessed lately."""

    token_digest: bytes
    failures: tuple[datetime, ...] = ()


def gate_for(token: str) -> Gate:
    """A gate that this token opens, once."""
    return Gate(_digest(token))


def knock(gate: Gate, offered: str, *, fresh: str, now: datetime) -> tuple[Gate, Verdict]:
    """Try a token.

    Tries are limited for everybody together: whoever guesses opens sessions at will. The
    comparison takes as long for a near miss as for a wild guess.

    Args:
        gate: as it stands.
        offered: what somebody typed.
        fresh: opens the gate next, if this try opens it now.
        now: the moment of the try.
    """
    recent = tuple(each for each in gate.failures if now - each < FAILURES_WITHIN)
    if len(recent) >= MOST_FAILURES:
        return replace(gate, failures=recent), Verdict.TOO_MANY
    if hmac.compare_digest(_digest(offered.strip()), gate.token_digest):
        return Gate(_digest(fresh)), Verdict.OPENED
    return replace(gate, failures=(*recent, now)), Verdict.WRONG


def is_idle(*, last_active: datetime, now: datetime, limit: timedelta) -> bool:
    """Whether a session has ended."""
    return now - last_active >= limit


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
