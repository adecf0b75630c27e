"""Who is enrolled, put on record at every start: whoever has the log has their public keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from matl_common.identity.allowlist import Allowlist, encode_allowlist
from matl_common.ids import digest_of
from matl_common.tlog.entry import Entry
from matl_coordinator.service.entries import entry
from matl_coordinator.service.register import Decision, Register

PIECE_CHARACTERS = 48 << 10
"""Of an allow-list in one entry; escapes and everything else have room beside them."""


async def log_allowlist(
    register: Register, allowlist: Allowlist, *, clock: Callable[[], datetime]
) -> None:
    """Log the allow-list that every later decision goes by.

    Raises:
        StoreError: the store did not confirm.
    """
    written = tuple(allowlist_entries(allowlist, at=clock()))
    await register.decide(lambda _: Decision(None, (), written))


def allowlist_entries(allowlist: Allowlist, *, at: datetime) -> Iterator[Entry]:
    """Who is enrolled, with which keys and how many patients, in as many parts as it takes."""
    text = encode_allowlist(allowlist).decode()
    digest = digest_of(text.encode())
    starts = range(0, len(text), PIECE_CHARACTERS)
    for number, start in enumerate(starts, start=1):
        yield entry(
            "allowlist_read",
            at=at,
            digest=digest,
            allowlist=text[start : start + PIECE_CHARACTERS],
            part=number,
            parts=len(starts),
        )
