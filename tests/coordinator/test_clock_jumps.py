"""A coordinator whose clock is wrong for a while, and then is put right."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from matl_common.clock import utc_now
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.ports import State
from tests.coordinator.harness import (
    NODES,
    Running,
    honest_update,
    make_site,
    next_round,
    play,
    running,
    seal,
    send,
)

FORTY_DAYS = timedelta(days=40)


@dataclass
class Clock:
    """The machine's two clocks; only one of them can be set."""

    ahead: timedelta = FORTY_DAYS
    passed: float = 0.0

    def now(self) -> datetime:
        return utc_now() + self.ahead

    def elapsed(self) -> float:
        return time.monotonic() + self.passed


async def reached(coordinator: Running, condition: Callable[[State], bool]) -> State:
    async with asyncio.timeout(30):
        state = await coordinator.register.state()
        while not condition(state):
            await coordinator.register.wait_for_change(state, seconds=1.0)
            state = await coordinator.register.state()
    return state


async def in_phase(coordinator: Running, phase: Phase) -> Round:
    state = await reached(
        coordinator, lambda state: state.round is not None and state.round.phase is phase
    )
    assert state.round is not None
    return state.round


async def test_a_round_scheduled_by_a_wrong_clock_opens_once_the_clock_is_right(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with running(make_site(tmp_path), clock=clock.now) as coordinator:
        await in_phase(coordinator, Phase.SCHEDULED)
        clock.ahead = timedelta(0)
        async with asyncio.timeout(30):
            await play(coordinator)


async def test_a_collection_opened_by_a_wrong_clock_lasts_no_longer_than_any_other(
    tmp_path: Path,
) -> None:
    clock = Clock()
    site = make_site(tmp_path, collect_seconds=60.0)
    async with running(site, clock=clock.now, elapsed=clock.elapsed) as coordinator:
        starts = await asyncio.gather(*(next_round(coordinator, node) for node in NODES))
        clock.ahead = timedelta(0)
        for node, start in list(zip(NODES, starts, strict=True))[:2]:
            assert start is not None
            update = honest_update(node, start)
            await send(coordinator, node, seal(site, node, start, coordinator.plan, update))
        rnd = await in_phase(coordinator, Phase.COLLECTING)
        assert rnd.deadline is not None
        assert rnd.deadline - clock.now() > FORTY_DAYS / 2
        clock.passed = 60.0
        await reached(coordinator, lambda state: state.rounds_released == 1)
