"""The coordinator's state: in memory what the store has confirmed, never more.

Every change goes through ``Register.decide``: a function of the state says what
should happen, the store makes it durable together with its log entries, and only
then does the state in memory follow. A decision that was begun is finished even if
the call that asked for it is cancelled. When the store does not confirm, the state
is forgotten and read again, which is the same path as starting up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from matl_common.tlog.entry import Entry
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


class Register:
    """Owns the state and the one lock.

    Runs on the event loop that created it; the store is called from a thread.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Guards _state and every write to the store.
        self._lock = asyncio.Lock()
        # None: unknown, to be loaded before the next use.
        self._state: State | None = None
        # Another coordinator took over; this one must not take the study back.
        self._superseded: StaleWriterError | None = None
        # Leaves of the log as far as this process has seen it grow.
        self._log_size = 0
        # Set when the state changes, then replaced; see wait_for_change.
        self._turn = asyncio.Event()
        # Decisions under way, kept so that they are not collected as garbage.
        self._deciding: set[asyncio.Task[object]] = set()

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

        ``decision`` runs under the lock, on the newest state; it must not block. What it
        raises is raised here, and nothing has happened then.

        Raises:
            StaleWriterError: another coordinator took over; from now on, always.
            StoreError: the store did not confirm; the decision may be durable or not.
        """
        task = asyncio.create_task(self._decide(decision))
        self._deciding.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._deciding.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever asked may be gone; they had their chance to see it.

    async def _decide(
        self, decision: Callable[[State], Decision[T]]
    ) -> tuple[T, tuple[LoggedEntry, ...]]:
        async with self._lock:
            if self._superseded is not None:
                raise self._superseded
            if self._state is None:
                self._state = await asyncio.to_thread(self._store.load)
                self._wake()  # A commit that was not confirmed may have changed it.
            decided = decision(self._state)
            if not decided.changes and not decided.entries:
                return decided.outcome, ()
            # I/O under the lock: the order of the log is the order of the decisions.
            before, self._state = self._state, None
            try:
                logged = await asyncio.to_thread(
                    self._store.commit, decided.changes, decided.entries
                )
            except StaleWriterError as error:
                self._superseded = error
                raise
            self._state = applied(before, decided.changes, logged)
            if logged:
                self._log_size = logged[-1].index + 1
            self._wake()
            return decided.outcome, logged

    @property
    def log_size(self) -> int:
        """Leaves of the log as of this process's last entry; 0 before it wrote one."""
        return self._log_size

    def _wake(self) -> None:
        self._turn.set()
        self._turn = asyncio.Event()

    async def wait_for_change(self, since: State, *, seconds: float) -> None:
        """Return once the state is no longer ``since``, or after ``seconds``."""
        if self._state is not since:
            return
        # Not wait_for, which before Python 3.12 may swallow a cancellation.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._turn.wait()

    async def settle(self) -> None:
        """Wait for the decisions under way."""
        if self._deciding:
            await asyncio.wait(self._deciding)


def applied(state: State, changes: Sequence[Change], logged: tuple[LoggedEntry, ...]) -> State:
    """The state after ``changes``, as ``Store.load`` would read it."""
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
