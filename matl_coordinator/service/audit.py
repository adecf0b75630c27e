"""What anyone enrolled may ask of the log: stretches of it, and proofs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from matl_common.errors import InvalidInputError
from matl_common.tlog.merkle import inclusion_proof
from matl_coordinator.ports import LoggedEntry, LogHead, Store
from matl_coordinator.service.tree import over_tree

MAX_ENTRIES_READ = 500


@dataclass(frozen=True, slots=True)
class LogPage:
    """A stretch of the log, and the log's head."""

    entries: tuple[LoggedEntry, ...]
    head: LogHead


@dataclass(frozen=True, slots=True)
class Inclusion:
    """A leaf, and the path that shows it to be in a tree."""

    entry: LoggedEntry
    path: Sequence[bytes]


class Audit:
    """Reads the log for others. Who may see what is decided by the caller."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, *, start: int | None, limit: int) -> LogPage:
        """``limit`` entries from ``start``, or the newest ones.

        Raises:
            StoreError: the store cannot be read.
        """
        head = await asyncio.to_thread(self._store.log_head)
        bounded = min(max(1, limit), MAX_ENTRIES_READ)
        first = max(0, head.size - bounded) if start is None else start
        entries = await asyncio.to_thread(self._store.log_entries, start=first, limit=bounded)
        return LogPage(entries, head)

    async def inclusion(self, index: int, *, size: int) -> Inclusion:
        """Show that a leaf is in the tree of the first ``size`` leaves.

        Raises:
            InvalidInputError: there is no such leaf or tree, or its month was dropped.
            StoreError: the store cannot be read.
        """
        page = await self.page(start=index, limit=1)
        if size > page.head.size:
            raise InvalidInputError(f"the log has {page.head.size} leaves, not {size}")
        if not page.entries or page.entries[0].index != index:
            raise InvalidInputError(f"the log does not have entry {index} any more, or not yet")
        path = await over_tree(self._store, lambda read: inclusion_proof(index, size, read))
        return Inclusion(page.entries[0], path)
