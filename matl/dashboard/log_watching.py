"""Follows a coordinator's log and verifies what is shown of it, on this machine.

Reads what is new, checks that checkpoints extend one another, and proves every entry that is shown
by its leaf, its path and what it says. Nothing the coordinator says of its log is believed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from matl.dashboard.alerts import KEPT_EVENTS
from matl.dashboard.snapshot import Entry, LogState, Proof
from matl.log.proofs import check_entry
from matl.log.sources import CoordinatorSource
from matl.log.told import told
from matl.log.verification import Believed
from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.tlog.checkpoint import SignedCheckpoint, open_checkpoint
from matl_common.tlog.disclosure import Disclosure
from matl_common.tlog.merkle import leaf_hash, verify_consistency, verify_inclusion
from matl_common.tlog.proof import TlogProof

ENTRIES_SHOWN: Final = 12
_ALARMS_KEPT: Final = 50
_LOOKED_BACK: Final = 500


@dataclass(frozen=True, slots=True)
class _Trees:
    """The checkpoints that entries are proved under."""

    newest: SignedCheckpoint
    witnessed: SignedCheckpoint | None
    cosigners: tuple[str, ...]
    """Of the newest."""


class LogWatcher:
    """Follows one log. Not for several threads at once."""

    def __init__(self, source: CoordinatorSource, believed: Believed | None) -> None:
        """``believed`` says whose signatures count; without it nothing is verified."""
        self._source = source
        self._believed = believed
        self._next: int | None = None
        # Newest first, as they are shown.
        self._entries: deque[Entry] = deque(maxlen=ENTRIES_SHOWN)
        self._alarms: deque[Entry] = deque(maxlen=_ALARMS_KEPT)
        self._last: SignedCheckpoint | None = None
        # Once it is there it stays: a log that lied is not mended by its next answer.
        self._problem = ""

    def read_from(self, source: CoordinatorSource) -> None:
        """Go on with the same log from another of the coordinator's daemons."""
        self._source = source

    def look(self) -> tuple[LogState, tuple[Entry, ...], tuple[Entry, ...]]:
        """The log's state, its newest entries, and alarms, each newest first.

        Raises:
            OperationsError: the coordinator does not answer.
        """
        try:
            size = self._read_on()
        except (IntegrityError, InvalidInputError) as error:
            self._problem = self._problem or str(error)
            size = self._next or 0
        trees = self._trees()
        if trees is not None:
            self._prove(trees)
        return self._state(size, trees), tuple(self._entries), tuple(self._alarms)

    def _read_on(self) -> int:
        """Read entries that were appended since; returns the log's size."""
        size = self._source.size()
        if self._next is not None and size < self._next:
            raise IntegrityError(f"the log had {self._next} entries and now has {size}")
        start = max(0, size - _LOOKED_BACK) if self._next is None else self._next
        for page in self._source.pages(start=start, end=size):
            for stored in page:
                facts = told(stored, self._source.entry)
                entry = Entry(stored.index, facts, Proof.UNCHECKED)
                if "damaged" in facts:
                    self._problem = self._problem or f"entry {stored.index}: {facts['damaged']}"
                    entry = replace(entry, proof=Proof.BROKEN, why=str(facts["damaged"]))
                self._entries.appendleft(entry)
                if entry.event in KEPT_EVENTS:
                    self._alarms.appendleft(entry)
                # Here, and not after the last: whoever answers may be gone in between.
                self._next = stored.index + 1
        self._next = size
        return size

    def _trees(self) -> _Trees | None:
        """The newest checkpoint, shown to extend the last, and the newest that is witnessed."""
        believed = self._believed
        if believed is None:
            return None
        try:
            signed = [open_checkpoint(note, [believed.log]) for note in self._source.notes()]
            newest = max(signed, key=lambda each: each.checkpoint.size)
            self._check_extends(newest)
            # A line of a known witness that is not its signature is a lie too.
            witnessed = next(filter(believed.has_quorum, signed), None)
            cosigners = believed.cosigners(newest)
        except (IntegrityError, InvalidInputError) as error:
            self._problem = self._problem or str(error)
            return None
        if self._last is None or newest.checkpoint.size > self._last.checkpoint.size:
            self._last = newest
        return _Trees(newest, witnessed, cosigners)

    def _check_extends(self, newest: SignedCheckpoint) -> None:
        """Check that this checkpoint and the last one are of one log, whichever is larger."""
        if self._last is None or newest.checkpoint == self._last.checkpoint:
            return
        pair = (self._last.checkpoint, newest.checkpoint)
        old, new = sorted(pair, key=lambda each: each.size)
        if new.size == old.size:
            raise IntegrityError(f"the log has signed two different checkpoints of {new.size}")
        verify_consistency(
            old_size=old.size,
            new_size=new.size,
            old_root=old.root,
            new_root=new.root,
            proof=self._source.client.consistency(old.size, new.size),
        )

    def _prove(self, trees: _Trees) -> None:
        """Prove what is shown, under a witnessed tree where one holds it."""
        for at, entry in enumerate(self._entries):
            if entry.proof in {Proof.WITNESSED, Proof.BROKEN} or "dropped" in entry.facts:
                continue
            self._entries[at] = self._proved(entry, trees)

    def _proved(self, entry: Entry, trees: _Trees) -> Entry:
        witnessed = trees.witnessed
        if witnessed is not None and entry.index < witnessed.checkpoint.size:
            under, proof = witnessed, Proof.WITNESSED
        elif entry.proof is Proof.PROVEN:
            return entry
        elif entry.index < trees.newest.checkpoint.size:
            under, proof = trees.newest, Proof.PROVEN
        else:
            return replace(entry, proof=Proof.PENDING)
        try:
            self._check(entry, under)
        except (IntegrityError, InvalidInputError) as error:
            self._problem = self._problem or f"entry {entry.index}: {error}"
            return replace(entry, proof=Proof.BROKEN, why=str(error))
        return replace(entry, proof=proof)

    def _check(self, entry: Entry, under: SignedCheckpoint) -> None:
        """Check that the tree holds this entry, saying what is shown of it."""
        assert self._believed is not None, "without a key there are no trees"
        found = self._source.client.inclusion(entry.index, size=under.checkpoint.size)
        if found.damaged:
            raise IntegrityError(found.damaged)
        if entry.facts.get("sealed"):
            # Its key was erased: the leaf is all that anybody can be shown.
            verify_inclusion(
                index=entry.index,
                size=under.checkpoint.size,
                leaf=leaf_hash(found.leaf),
                proof=found.path,
                root=under.checkpoint.root,
            )
            return
        proven = check_entry(
            Disclosure(found.leaf, found.salt, found.entry),
            TlogProof(entry.index, found.path, under.note),
            Believed(self._believed.log),
        )
        if {"index": entry.index, **proven.facts} != dict(entry.facts):
            raise IntegrityError("the log holds another entry there than the one that was shown")

    def _state(self, size: int, trees: _Trees | None) -> LogState:
        if trees is None:
            return LogState(size, problem=self._problem)
        newest, witnessed = trees.newest.checkpoint, trees.witnessed
        return LogState(
            # Entries are appended while this asks; that it reads is one of them.
            size=max(size, newest.size),
            signed_size=newest.size,
            root=newest.root.hex(),
            witnessed_size=0 if witnessed is None else witnessed.checkpoint.size,
            cosigners=trees.cosigners,
            problem=self._problem,
        )
