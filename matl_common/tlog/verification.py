"""A whole log gone over once: every leaf against its hash, every checkpoint against the leaves.

Needs no key but the log's and its witnesses' public ones. What it says of a log that was
changed is which entry is the first that is wrong, or, where somebody changed the tree as well,
between which two checkpoints it lies. Nothing here reads a database or opens an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.tlog.checkpoint import Checkpoint
from matl_common.tlog.leaf import split_leaf, written_text
from matl_common.tlog.merkle import Frontier, NodeRun, grow, leaf_hash

_MONTH_CHARACTERS = len("YYYY-MM")


class StoredLeaf(NamedTuple):
    """A leaf as a store, an export or a server gives it; a tuple, since there are millions.

    Attributes:
        index: its place.
        hash: what the tree holds at its place.
        leaf: its bytes; ``None`` where its month was dropped.
        payload: the encrypted entry; ``None`` with ``leaf``.
        month: where a store files it, ``YYYY-MM``; ``None`` where that is not told.
    """

    # A tuple's own index() is not asked for.
    index: int  # type: ignore[assignment]
    hash: bytes
    leaf: bytes | None
    payload: bytes | None
    month: str | None = None


class LogDamagedError(IntegrityError):
    """Something in the log is not what it was; ``first`` to ``last`` bound where."""

    def __init__(self, message: str, *, first: int, last: int) -> None:
        """Say what is wrong, and with which leaves."""
        super().__init__(message)
        self.first = first
        self.last = last


@dataclass(frozen=True, slots=True)
class Tally:
    """What was gone over and found sound.

    Attributes:
        size: leaves.
        root: the root hash of all of them.
        dropped: leaves that are gone, and only their hashes count.
        first_gone: the first of these.
        checkpoints: how many checkpoints the leaves agree with.
        backdated: leaves dated before the one in front of them, which a clock set back explains.
    """

    size: int
    root: bytes
    dropped: int
    first_gone: int | None
    checkpoints: int
    backdated: int


class LogVerifier:
    """Goes over leaves in order. Every method raises at the first thing that is wrong."""

    def __init__(self, origin: str, checkpoints: Sequence[Checkpoint] = ()) -> None:
        """Expect a log of this name that agrees with these checkpoints.

        Args:
            origin: the log's name.
            checkpoints: with their signatures verified, in any order.
        """
        self._origin = origin
        self._written_origin = written_text(origin)
        self._due = sorted(checkpoints, key=lambda each: -each.size)
        self._frontier = Frontier()
        self._seen = 0
        self._agreed = 0
        self._checkpoints = 0
        self._dropped = 0
        self._first_gone: int | None = None
        self._backdated = 0
        self._newest = ""
        self._agree()

    def add(self, leaves: Sequence[StoredLeaf]) -> tuple[NodeRun, ...]:
        """Take the next leaves.

        Returns:
            The tree's nodes that they complete, one run a level, for a caller who can compare
            them with stored ones.

        Raises:
            LogDamagedError: a leaf is missing, changed or not of this log, or a checkpoint has
                another root.
        """
        # However many checkpoints lie among the leaves, the nodes of a level follow each other.
        grown: dict[int, tuple[int, list[bytes]]] = {}
        for leaf in leaves:
            self._look(leaf)
        begin = 0
        while begin < len(leaves):
            # Up to the next checkpoint, where the roots are compared.
            room = self._due[-1].size - self._frontier.size if self._due else len(leaves)
            part = leaves[begin : begin + room]
            self._frontier, runs = grow(self._frontier, [each.hash for each in part])
            for run in runs:
                grown.setdefault(run.level, (run.first, []))[1].extend(run.hashes)
            begin += len(part)
            self._agree()
        return tuple(
            NodeRun(level, first, tuple(hashes)) for level, (first, hashes) in grown.items()
        )

    def finish(self) -> Tally:
        """What was found, after the last leaf.

        Raises:
            LogDamagedError: a checkpoint is of more leaves than there are.
        """
        size = self._frontier.size
        if self._due:
            raise LogDamagedError(
                f"the log ends after {size} entries, and it has signed a checkpoint of "
                f"{self._due[0].size}: its end was cut off",
                first=size,
                last=self._due[0].size - 1,
            )
        return Tally(
            size=size,
            root=self._frontier.root(),
            dropped=self._dropped,
            first_gone=self._first_gone,
            checkpoints=self._checkpoints,
            backdated=self._backdated,
        )

    def _look(self, stored: StoredLeaf) -> None:
        index, data, payload = self._seen, stored.leaf, stored.payload
        self._seen = index + 1
        if stored.index != index:
            raise _damaged(index, f"entry {index} is missing; the next one is {stored.index}")
        if data is None or payload is None:
            self._dropped += 1
            if self._first_gone is None:
                self._first_gone = index
            return
        if leaf_hash(data) != stored.hash:
            raise _damaged(
                index, f"entry {index} was changed: its leaf does not give the hash in the tree"
            )
        try:
            at, ciphertext, _, place, _, _, origin, _, _ = split_leaf(data)
        except InvalidInputError:
            raise _damaged(
                index, f"the leaf of entry {index} is none that this software writes"
            ) from None
        if origin != self._written_origin or int(place) != index:
            raise _damaged(index, f"entry {index} is entry {place} of {origin}: it was moved here")
        if hashlib.sha256(payload).hexdigest() != ciphertext:
            raise _damaged(index, f"the payload of entry {index} is not what its leaf commits to")
        if stored.month is not None and stored.month != at[:_MONTH_CHARACTERS]:
            raise _damaged(
                index, f"entry {index} is filed under {stored.month}, and its leaf says {at}"
            )
        if at < self._newest:
            self._backdated += 1
        self._newest = at

    def _agree(self) -> None:
        """Compare the roots of the checkpoints that are of exactly the leaves so far."""
        size = self._frontier.size
        while self._due and self._due[-1].size == size:
            due = self._due.pop()
            if due.origin != self._origin:
                raise InvalidInputError(f"a checkpoint of {due.origin!r} is not of this log")
            if due.root != self._frontier.root():
                raise LogDamagedError(
                    f"entries {self._agreed} to {size - 1} are not those that the checkpoint of "
                    f"size {size} was signed over: at least one of them was changed, left out or "
                    "put in, and the tree with it",
                    first=self._agreed,
                    last=size - 1,
                )
            self._agreed = size
            self._checkpoints += 1


def check_nodes(computed: Sequence[NodeRun], stored: Sequence[NodeRun]) -> None:
    """Compare nodes that leaves complete with those that a store holds at their places.

    Raises:
        LogDamagedError: one differs or is not there.
    """
    for ours, theirs in zip(computed, stored, strict=True):
        if ours == theirs:
            continue
        held = dict(enumerate(theirs.hashes, start=theirs.first))
        for index, value in enumerate(ours.hashes, start=ours.first):
            if held.get(index) != value:
                first, last = index << ours.level, ((index + 1) << ours.level) - 1
                raise LogDamagedError(
                    f"the tree's node {index} of level {ours.level}, over entries {first} to "
                    f"{last}, is not what they give",
                    first=first,
                    last=last,
                )


def _damaged(index: int, message: str) -> LogDamagedError:
    return LogDamagedError(message, first=index, last=index)
