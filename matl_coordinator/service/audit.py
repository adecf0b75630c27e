"""What anyone enrolled may ask of the log: stretches of it, and proofs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from matl_common.errors import InvalidInputError
from matl_common.ids import Digest
from matl_common.tlog.merkle import inclusion_proof
from matl_coordinator.ports import LoggedEntry, LogHead, Store
from matl_coordinator.service.tree import over_tree

MAX_ENTRIES_READ = 500


@dataclass(frozen=True, slots=True)
class GoneLeaf:
    """What is left of a leaf that is not there: whether its month was dropped, the log tells."""

    index: int
    leaf_hash: Digest


@dataclass(frozen=True, slots=True)
class LogPage:
    """A stretch of the log without a gap, and the log's head."""

    entries: tuple[LoggedEntry | GoneLeaf, ...]
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
            IntegrityError: a leaf of the tree is missing with its hash.
            StoreError: the store cannot be read.
        """
        head = await asyncio.to_thread(self._store.log_head)
        bounded = min(max(1, limit), MAX_ENTRIES_READ)
        first = max(0, head.size - bounded) if start is None else start
        wanted = range(first, min(first + bounded, head.size))
        return LogPage(await asyncio.to_thread(self._stretch, wanted), head)

    async def inclusion(self, index: int, *, size: int) -> Inclusion:
        """Show that a leaf is in the tree of the first ``size`` leaves.

        Raises:
            InvalidInputError: there is no such leaf or tree, or its month was dropped.
            StoreError: the store cannot be read.
        """
        page = await self.page(start=index, limit=1)
        if size > page.head.size:
            raise InvalidInputError(f"the log has {page.head.size} leaves, not {size}")
        match page.entries:
            case (LoggedEntry() as found,):
                path = await over_tree(self._store, lambda read: inclusion_proof(index, size, read))
                return Inclusion(found, path)
        raise InvalidInputError(f"the log does not have entry {index} any more, or not yet")

    def _stretch(self, wanted: range) -> tuple[LoggedEntry | GoneLeaf, ...]:
        if not wanted:
            return ()
        held = {
            each.index: each
            for each in self._store.log_entries(start=wanted.start, limit=len(wanted))
        }
        gone = [(0, index) for index in wanted if index not in held]
        hashes = self._store.log_nodes(gone) if gone else {}
        return tuple(
            held.get(index) or GoneLeaf(index, Digest(hashes[0, index].hex())) for index in wanted
        )
