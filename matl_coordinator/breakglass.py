"""Reading the log in an emergency, when its coordinator cannot be asked (45 CFR 164.312(a)(2)(ii)).

Needs the database and the key-encryption key, and a coordinator that is stopped. That it was done,
by whom and why, is an entry of the log before anything is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError
from matl_coordinator.anchor_check import check_anchored
from matl_coordinator.config import Config
from matl_coordinator.os_account import current_account
from matl_coordinator.ports import LoggedEntry
from matl_coordinator.service.entries import entry
from matl_coordinator.stopped import stopped
from matl_coordinator.upkeep import opened_store

PAGE = 500


def decrypt_entries(config: Config, *, first: int, last: int, reason: str) -> Iterator[LoggedEntry]:
    """Entries ``first`` to ``last``, decrypted, after it was logged that they are.

    Args:
        config: of the coordinator, which must not be running.
        first: the first entry wanted.
        last: the last one.
        reason: why, for good.

    Raises:
        FolderInUseError: the coordinator is running; read through it instead.
        ConfigurationError: no such entries, or no reason.
        StoreError: the database cannot be reached, or did not confirm.
        IntegrityError: the database is older than what the coordinator has signed, and nothing is
            logged or shown.
    """
    if not reason.strip():
        raise ConfigurationError("say why: the log keeps the reason for good")
    with stopped(config):
        check_anchored(config)
        with opened_store(config) as store:
            size = store.log_head().size
            if not 0 <= first <= last < size:
                raise ConfigurationError(f"the log has entries 0 to {size - 1}")
            store.load()
            written = entry(
                "entries_decrypted",
                at=utc_now(),
                account=current_account(),
                first=first,
                last=last,
                reason=reason[:2000],
            )
            store.commit([], [written])
            for start in range(first, last + 1, PAGE):
                yield from store.log_entries(start=start, limit=min(PAGE, last + 1 - start))
