"""The coordinator's state: in memory what the store has confirmed, never more.

Every change goes through ``Register.decide``: a function of the state says what
should happen, the store makes it durable together with its log entries, and only
then does the state in memory follow. Decisions take turns, each on the state that the
one before it leaves, and those that wait while the store writes are made durable
together: one transaction for up to ``MAX_BATCH`` of them, so that many hospitals at once
do not each wait for a disk of their own. When the store does not confirm, none of them
counts, the state is forgotten and read again, which is the same path as starting up.

A decision that was begun is finished even if the call that asked for it is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from matl_common.tlog.entry import Entry, with_fact
from matl_coordinator.core.rounds import Phase
from matl_coordinator.ports import (
    Change,
    LoggedEntry,
    PutModel,
    PutRound,
    PutStudy,
    PutTrust,
    PutUpdate,
    StaleWriterError,
    State,
    Store,
    UpdateRecord,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """What should happen: changes and log entries, all or nothing."""

    outcome: T
    changes: tuple[Change, ...] = ()
    entries: tuple[Entry, ...] = ()


REIGN = "reign"
"""The fact in every entry that tells which coordinator wrote it."""
MAX_BATCH = 256
"""Decisions that one transaction makes durable at most."""


@dataclass(slots=True)
class _Asked:
    """A decision that waits for its turn, and where its answer goes."""

    decision: Callable[[State], Decision[Any]]
    answer: asyncio.Future[tuple[Any, tuple[LoggedEntry, ...]]]

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            # Whoever asked may be gone; they had their chance to see it.
            self.answer.exception()

    def succeed(self, outcome: object, logged: tuple[LoggedEntry, ...]) -> None:
        if not self.answer.done():
            self.answer.set_result((outcome, logged))


class Register:
    """Owns the state and the order of all decisions.

    Runs on the event loop that created it; the store is called from a thread, by one task.
    """

    def __init__(
        self, store: Store, *, on_commit: Callable[[float], None] = lambda _: None
    ) -> None:
        """``on_commit`` is told how many seconds the store took to confirm a transaction."""
        self._store = store
        self._on_commit = on_commit
        # None: unknown, to be loaded before the next use.
        self._state: State | None = None
        # Another coordinator took over; this one must not take the study back.
        self._superseded: StaleWriterError | None = None
        # Leaves of the log as far as this process has seen it grow.
        self._log_size = 0
        # Set when the state changes, then replaced; see wait_for_change.
        self._turn = asyncio.Event()
        self._waiting: deque[_Asked] = deque()
        # Makes decisions while there are any; the only one who writes to the store.
        self._working: asyncio.Task[None] | None = None

    async def state(self) -> State:
        """The state as confirmed.

        Raises:
            StoreError: it is unknown and the store cannot be read.
        """
        if self._state is not None:
            return self._state
        return (await self.decide(_look))[0]

    async def decide(
        self, decision: Callable[[State], Decision[T]]
    ) -> tuple[T, tuple[LoggedEntry, ...]]:
        """Make a decision durable and return its outcome and log entries.

        ``decision`` runs in its turn, on the newest state, of which the decisions just before
        it may not be durable yet; they are when this returns. Records that these decided have
        no log index there yet. It must not block. What it raises is raised here, and nothing
        has happened then.

        Raises:
            StaleWriterError: another coordinator took over; from now on, always.
            StoreError: the store did not confirm; the decision may be durable or not.
        """
        asked = _Asked(decision, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await asyncio.shield(asked.answer)

    async def _work(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            try:
                await self._decide(batch)
            except BaseException as error:
                for asked in batch:
                    asked.fail(error)
                if not isinstance(error, Exception):
                    raise

    async def _decide(self, batch: Sequence[_Asked]) -> None:
        """Make a batch of decisions durable together; what it raises, all of them get."""
        if self._superseded is not None:
            raise self._superseded
        if self._state is None:
            self._state = await asyncio.to_thread(self._store.load)
            self.wake()  # A commit that was not confirmed may have changed it.
        before, expected = self._state, self._state
        changes: list[Change] = []
        entries: list[Entry] = []
        made: list[tuple[_Asked, object, slice]] = []
        refused: list[tuple[_Asked, Exception]] = []
        for asked in batch:
            try:
                decided = asked.decision(expected)
            except Exception as error:  # noqa: BLE001 - it is the asker's
                refused.append((asked, error))
                continue
            first = len(entries)
            changes += [_moved(change, by=first) for change in decided.changes]
            entries += decided.entries
            made.append((asked, decided.outcome, slice(first, len(entries))))
            expected = applied(expected, decided.changes, None)
        logged: tuple[LoggedEntry, ...] = ()
        if changes or entries:
            logged = await self._commit(before, changes, entries)
        # Not before: a refusal, too, may rest on what has only just become durable.
        for asked, outcome, mine in made:
            asked.succeed(outcome, logged[mine])
        for asked, reason in refused:
            asked.fail(reason)

    async def _commit(
        self, before: State, changes: Sequence[Change], entries: Sequence[Entry]
    ) -> tuple[LoggedEntry, ...]:
        self._state = None
        stamped = [with_fact(each, REIGN, before.epoch) for each in entries]
        begun = time.monotonic()
        try:
            logged = await asyncio.to_thread(self._store.commit, changes, stamped)
        except StaleWriterError as error:
            self._superseded = error
            raise
        self._on_commit(time.monotonic() - begun)
        self._state = applied(before, changes, logged)
        if logged:
            self._log_size = logged[-1].index + 1
        self.wake()
        return logged

    @property
    def log_size(self) -> int:
        """Leaves of the log as of this process's last entry; 0 before it wrote one."""
        return self._log_size

    def wake(self) -> None:
        """Have whoever waits for a change look again."""
        self._turn.set()
        self._turn = asyncio.Event()

    async def wait_for_change(self, since: State, *, seconds: float) -> None:
        """Return once the state is no longer ``since``, after ``seconds``, or when woken."""
        if self._state is not since:
            return
        # Not wait_for, which before Python 3.12 may swallow a cancellation.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._turn.wait()

    async def settle(self) -> None:
        """Wait for the decisions under way."""
        if self._working is not None:
            await asyncio.wait({self._working})


def _moved(change: Change, *, by: int) -> Change:
    """A change whose entry comes so many places later in the transaction."""
    if isinstance(change, PutUpdate) and change.decided_by is not None:
        return replace(change, decided_by=change.decided_by + by)
    return change


def applied(
    state: State, changes: Sequence[Change], logged: tuple[LoggedEntry, ...] | None
) -> State:
    """The state after ``changes``, as ``Store.load`` would read it.

    Before they are durable, ``logged`` is ``None``: what they decide is known, its place in the
    log is not.
    """
    for change in changes:
        match change:
            case PutStudy(record=study):
                state = replace(state, study=study)
            case PutRound(round=rnd):
                is_new = state.round is None or state.round.round_id != rnd.round_id
                released = rnd.phase is Phase.RELEASED
                state = replace(
                    state,
                    round=rnd,
                    updates=() if is_new else state.updates,
                    rounds_released=state.rounds_released + released,
                )
            case PutUpdate(record=record, decided_by=position):
                if logged is not None:
                    record = decided_record(record, position, logged)
                others = (each for each in state.updates if each.node_id != record.node_id)
                kept = sorted((*others, record), key=lambda each: each.node_id)
                state = replace(state, updates=tuple(kept))
            case PutTrust(records=records):
                state = replace(state, trust=records)
            case PutModel(record=model):
                state = replace(state, latest_model=model)
    return state


def decided_record(
    record: UpdateRecord, position: int | None, logged: Sequence[LoggedEntry]
) -> UpdateRecord:
    """The record with the log entry that decided it filled in."""
    if position is None:
        return record
    entry = logged[position]
    return replace(record, log_index=entry.index, log_leaf_hash=entry.leaf_hash)


def _look(state: State) -> Decision[State]:
    return Decision(state)
