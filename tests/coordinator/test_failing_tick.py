"""A step that fails costs its round in the end, and never the conductor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from matl_common.errors import InvalidInputError
from matl_common.tlog.entry import Entry
from matl_coordinator.core.rounds import Phase
from matl_coordinator.ports import Change, LoggedEntry, State, Store
from tests.coordinator.harness import OPERATOR, Running, make_site, next_round, play, running
from tests.fakes import FaultyStore


class Refusing(FaultyStore):
    """A store that will not take some events."""

    def __init__(self, store: Store, *events: str) -> None:
        super().__init__(store)
        self.refused = set(events)

    def commit(
        self, changes: Sequence[Change], entries: Sequence[Entry]
    ) -> tuple[LoggedEntry, ...]:
        if any(each.event in self.refused for each in entries):
            raise InvalidInputError("too long (injected)")
        return super().commit(changes, entries)


async def until_paused(coordinator: Running) -> State:
    async with asyncio.timeout(10.0):
        state = await coordinator.register.state()
        while state.study is None or not state.study.paused:
            await coordinator.register.wait_for_change(state, seconds=1.0)
            state = await coordinator.register.state()
    return state


async def hospitals_wait(coordinator: Running) -> None:
    """Be present, which opens a round, and be offered none."""
    waiting = [
        asyncio.create_task(next_round(coordinator, node)) for node in coordinator.site.hospitals
    ]
    try:
        await until_paused(coordinator)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_tick_that_fails_pauses_the_study_and_resuming_goes_on(tmp_path: Path) -> None:
    site = make_site(tmp_path, study={"rounds": 1})
    store = Refusing(site.connect_store(), "round_opened")
    async with running(site, store) as coordinator:
        await hospitals_wait(coordinator)
        state = await coordinator.register.state()
        assert state.study is not None
        assert state.study.pause_reason.startswith("scheduled failed 5 times, last: too long")
        assert state.round is not None
        assert state.round.phase is Phase.ABORTED
        store.refused.clear()
        await coordinator.use_cases.operations.resume(OPERATOR, "mended")
        async with asyncio.timeout(20.0):
            await play(coordinator)
        assert (await coordinator.register.state()).rounds_released == 1


async def test_a_step_whose_failure_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    site = make_site(tmp_path, study={"rounds": 1})
    store = Refusing(site.connect_store(), "round_scheduled")
    async with running(site, store) as coordinator:
        await asyncio.sleep(0.1)
        assert (await coordinator.register.state()).round is None
        store.refused.clear()
        async with asyncio.timeout(20.0):
            await play(coordinator)
        assert (await coordinator.register.state()).rounds_released == 1
