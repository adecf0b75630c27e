"""A spool without room: who does not fit is refused, and the others' uploads go on."""

import asyncio
from pathlib import Path

import pytest

from matl_coordinator.core.rounds import Phase
from matl_coordinator.ports import SpoolFullError
from tests.coordinator.harness import (
    NODES,
    SCHEMA,
    events_of,
    honest_update,
    make_site,
    next_round,
    running,
    seal,
    send,
)

pytestmark = pytest.mark.hostile
FIRST, SECOND, LATE = NODES


async def test_an_update_that_does_not_fit_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    site = make_site(tmp_path, minimum_participants=3, collect_seconds=4.0)
    room_for_two = 2 * SCHEMA.update_bytes + SCHEMA.update_bytes // 2
    async with running(site, spool_bytes=room_for_two) as coordinator:
        sealed = {}
        starts = await asyncio.gather(*(next_round(coordinator, node) for node in NODES))
        for node, start in zip(NODES, starts, strict=True):
            assert start is not None
            sealed[node] = seal(site, node, start, coordinator.plan, honest_update(node, start))
        # Half of one is there, all of another is promised: both count as taken.
        await send(coordinator, FIRST, sealed[FIRST], chunks=1)
        await coordinator.use_cases.intake.open_update(
            site.allowed(SECOND), sealed[SECOND].envelope, sealed[SECOND].hashes
        )
        for _ in range(2):
            with pytest.raises(SpoolFullError, match="does not fit"):
                await send(coordinator, LATE, sealed[LATE])
        for node in (FIRST, SECOND):
            progress = await send(coordinator, node, sealed[node])
            assert progress.receipt is not None
        # The round closes without the one who did not fit.
        state = await coordinator.register.state()
        while state.round is not None and state.round.phase is Phase.COLLECTING:
            await coordinator.register.wait_for_change(state, seconds=10.0)
            state = await coordinator.register.state()
    closed = next(
        each for each in events_of(site.connect_store()) if each["event"] == "collection_closed"
    )
    assert isinstance(closed["admitted"], dict)
    assert set(closed["admitted"]) == {FIRST, SECOND}
