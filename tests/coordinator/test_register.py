"""Decisions take turns and are made durable together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from matl_common.ids import NodeId
from matl_common.tlog.entry import Entry
from matl_coordinator.ports import (
    Change,
    LoggedEntry,
    PutRound,
    PutStudy,
    PutUpdate,
    StaleWriterError,
    State,
    StoreError,
    UpdateStatus,
)
from matl_coordinator.service.register import MAX_BATCH, Decision, Register
from tests.contracts.samples import NODES, a_round, a_study, an_admitted_update
from tests.fakes import FakeDatabase, FakeStore, Fault, FaultyStore
from tests.logs import an_entry, events_of


class SlowStore(FaultyStore):
    """A store whose commits wait until they are let through."""

    def __init__(self, store: FakeStore | None = None) -> None:
        super().__init__(store or FakeStore())
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()

    def commit(
        self, changes: Sequence[Change], entries: Sequence[Entry]
    ) -> tuple[LoggedEntry, ...]:
        self.asked.set()
        assert self.gate.wait(30)
        return super().commit(changes, entries)


def said(event: str) -> Callable[[State], Decision[str]]:
    return lambda _: Decision(event, (), (an_entry(event),))


async def blocked(store: SlowStore, register: Register) -> asyncio.Task[object]:
    """Have one decision in the store's hands, so that others gather behind it."""
    await register.state()
    store.gate.clear()
    first = asyncio.create_task(register.decide(said("first")))
    assert await asyncio.to_thread(store.asked.wait, 30)
    return first


def told(store: FaultyStore | FakeStore) -> list[str]:
    return events_of(store.log_entries(start=0, limit=10_000))


async def test_decisions_that_wait_are_one_transaction_in_their_order() -> None:
    store = SlowStore()
    register = Register(store)
    first = await blocked(store, register)
    names = [f"number {number}" for number in range(MAX_BATCH + 10)]
    waiting = [asyncio.create_task(register.decide(said(name))) for name in names]
    await asyncio.sleep(0)
    store.gate.set()
    answers = await asyncio.gather(*waiting)
    await first
    assert store.commits == 3
    assert told(store) == ["first", *names]
    for number, (outcome, logged) in enumerate(answers):
        assert outcome == names[number]
        assert [each.index for each in logged] == [number + 1]
    assert register.log_size == len(names) + 1


async def test_each_decision_sees_what_the_one_before_it_made() -> None:
    store = SlowStore()
    register = Register(store)
    first = await blocked(store, register)

    def next_round(state: State) -> Decision[int]:
        number = 1 if state.round is None else state.round.round_id + 1
        return Decision(number, (PutRound(a_round(number)),), ())

    waiting = [asyncio.create_task(register.decide(next_round)) for _ in range(5)]
    await asyncio.sleep(0)
    store.gate.set()
    assert [number for number, _ in await asyncio.gather(*waiting)] == [1, 2, 3, 4, 5]
    await first
    assert store.commits == 2


async def test_an_update_learns_its_own_leaf_among_those_of_others() -> None:
    store = SlowStore()
    register = Register(store)
    await register.decide(lambda _: Decision(None, (PutRound(a_round(1)),), ()))
    store.asked.clear()
    first = await blocked(store, register)

    def admit(node: NodeId) -> Callable[[State], Decision[None]]:
        put = PutUpdate(an_admitted_update(1, node), decided_by=1)
        return lambda _: Decision(None, (put,), (an_entry("other"), an_entry(f"admit {node}")))

    waiting = [asyncio.create_task(register.decide(admit(node))) for node in NODES]
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(first, *waiting)
    state = await register.state()
    assert state == store.load()
    events = told(store)
    for update in state.updates:
        assert update.status is UpdateStatus.ADMITTED
        assert update.log_index is not None
        assert events[update.log_index] == f"admit {update.node_id}"


async def test_a_decision_that_refuses_does_not_touch_the_others() -> None:
    store = SlowStore()
    register = Register(store)
    first = await blocked(store, register)

    def refuse(_: State) -> Decision[None]:
        raise ValueError("not like this")

    before = asyncio.create_task(register.decide(said("before")))
    refused = asyncio.create_task(register.decide(refuse))
    after = asyncio.create_task(register.decide(said("after")))
    await asyncio.sleep(0)
    store.gate.set()
    with pytest.raises(ValueError, match="not like this"):
        await refused
    await asyncio.gather(first, before, after)
    assert told(store) == ["first", "before", "after"]


@pytest.mark.parametrize("fault", list(Fault))
async def test_what_the_store_does_not_confirm_counts_for_nobody_who_waited(fault: Fault) -> None:
    store = SlowStore()
    register = Register(store)
    first = await blocked(store, register)
    store.fail_commit(1, fault)

    def refuse(state: State) -> Decision[None]:
        assert state.round is not None, "the round before it in the batch"
        raise ValueError("there is a round already")

    waiting = [
        asyncio.create_task(register.decide(lambda _: Decision(None, (PutRound(a_round(1)),), ()))),
        asyncio.create_task(register.decide(refuse)),
        asyncio.create_task(register.decide(said("lost"))),
    ]
    await asyncio.sleep(0)
    store.gate.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    # The refusal rested on a round that may never have been: it is not told either.
    assert [type(each) for each in answers] == [StoreError] * 3
    await first
    kept = fault is Fault.PERSISTED
    assert (await register.state()).round == (a_round(1) if kept else None)
    assert told(store) == (["first", "lost"] if kept else ["first"])
    await register.decide(said("next"))
    assert told(store)[-1] == "next"


async def test_a_call_that_is_cancelled_does_not_take_its_decision_back() -> None:
    store = SlowStore()
    register = Register(store)
    first = await blocked(store, register)
    gone = asyncio.create_task(register.decide(said("finished all the same")))
    await asyncio.sleep(0)
    gone.cancel()
    store.gate.set()
    await first
    await register.settle()
    assert told(store) == ["first", "finished all the same"]


async def test_a_register_that_was_superseded_never_writes_again() -> None:
    database = FakeDatabase()
    store = SlowStore(FakeStore(database))
    register = Register(store)
    await register.decide(said("mine"))
    newer = FakeStore(database)
    newer.load()
    for _ in range(2):
        with pytest.raises(StaleWriterError):
            await register.decide(said("stale"))
    assert told(newer) == ["mine"]


async def test_a_decision_without_changes_writes_nothing() -> None:
    store = SlowStore()
    register = Register(store)
    assert await register.decide(lambda state: Decision(state.round)) == (None, ())
    assert store.commits == 0
    await register.decide(lambda _: Decision(None, (PutStudy(a_study()),), ()))
    assert store.commits == 1
