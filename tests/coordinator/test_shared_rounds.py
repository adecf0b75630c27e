"""Rounds whose updates workers read from a shared store, and a store that is away meanwhile."""

import asyncio
from pathlib import Path

import pytest

from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.aggregation.stored import SharedPlace
from matl_coordinator.core.rounds import Phase
from matl_coordinator.ports import SharedStoreError, State
from tests.coordinator.harness import (
    NODES,
    TICK_SECONDS,
    Running,
    honest_update,
    make_site,
    next_round,
    running,
    seal,
    send,
)


async def phase_left(coordinator: Running, phase: Phase) -> State:
    """The state once the round is past a phase."""
    state = await coordinator.register.state()
    while state.round is not None and state.round.phase is phase:
        await coordinator.register.wait_for_change(state, seconds=10.0)
        state = await coordinator.register.state()
    return state


async def test_a_store_that_is_away_costs_a_hospital_another_try_and_the_round_nothing(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, minimum_participants=3, collect_seconds=3.0)
    folder = tmp_path / "mounted"
    folder.mkdir()
    away = tmp_path / "away"
    async with running(
        site,
        shared=SharedStore(
            SharedPlace(f"file://{folder}"), federation="eu-retina", study="dr-2026"
        ),
    ) as coordinator:
        starts = await asyncio.gather(*(next_round(coordinator, node) for node in NODES))
        sealed = {}
        for node, start in zip(NODES, starts, strict=True):
            assert start is not None
            sealed[node] = seal(site, node, start, coordinator.plan, honest_update(node, start))
        first, second, _ = NODES
        await send(coordinator, first, sealed[first])
        folder.rename(away)
        with pytest.raises(SharedStoreError, match="mount it"):
            await send(coordinator, second, sealed[second])
        away.rename(folder)
        # Nothing of the update is sent again: it is judged when it is declared.
        progress = await coordinator.use_cases.intake.open_update(
            site.allowed(second), sealed[second].envelope, sealed[second].hashes
        )
        assert progress.receipt is not None
        assert len(list(folder.rglob("*.update"))) == 2
        # Away again while the round is scored, for more tries than a failing round has.
        folder.rename(away)
        await phase_left(coordinator, Phase.COLLECTING)
        await asyncio.sleep(3 * site.config.worker.attempts * TICK_SECONDS)
        state = await coordinator.register.state()
        assert state.round is not None
        assert state.round.phase is Phase.SCORING
        away.rename(folder)
        for phase in (Phase.SCORING, Phase.AGGREGATING, Phase.EVALUATING):
            state = await phase_left(coordinator, phase)
        assert state.rounds_released == 1
