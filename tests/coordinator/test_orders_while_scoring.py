"""An operator's order is kept, whatever the coordinator is busy with when it comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from matl_common.ids import NodeId
from matl_coordinator.core.rounds import Phase
from matl_coordinator.core.trust_record import TrustRecord, TrustState
from matl_coordinator.ports import HoldoutReport
from tests.coordinator.harness import (
    NODES,
    OPERATOR,
    Running,
    after_scoring,
    events_of,
    make_site,
    play,
    running,
)

A, B, C = NODES
FIVE = {f"hospital_{letter}": 500 for letter in "abcde"}


def order_while_scoring(
    coordinator: Running, *orders: Callable[[], Awaitable[None]]
) -> list[Phase | None]:
    """Give an order each time the scorer reports, until there are none left.

    Returns:
        The phase in which each order was given, filled as they are.
    """
    left, given = list(orders), []

    async def interrupted(found: HoldoutReport, _: Mapping[NodeId, float]) -> HoldoutReport:
        if left:
            await left.pop(0)()
            rnd = (await coordinator.register.state()).round
            given.append(None if rnd is None else rnd.phase)
        return found

    after_scoring(coordinator, interrupted)
    return given


async def standing_of(coordinator: Running, node: NodeId) -> TrustRecord:
    trust = (await coordinator.register.state()).trust
    return next(record for record in trust if record.node_id == node)


async def weights_of_round(coordinator: Running) -> dict[NodeId, float]:
    rnd = (await coordinator.register.state()).round
    assert rnd is not None
    assert rnd.phase is Phase.RELEASED
    return {each.node_id: each.weight for each in rnd.weights}


def names_of(coordinator: Running) -> list[Any]:
    return [each["event"] for each in events_of(coordinator.store)]


async def test_a_quarantine_ordered_while_scoring_counts_in_the_same_round(tmp_path: Path) -> None:
    async with running(make_site(tmp_path, study={"rounds": 1})) as coordinator:
        operations = coordinator.use_cases.operations
        given = order_while_scoring(
            coordinator, lambda: operations.quarantine(OPERATOR, C, "stolen laptop")
        )
        await play(coordinator)
        standing, weights = await standing_of(coordinator, C), await weights_of_round(coordinator)
        events = names_of(coordinator)
    assert given == [Phase.SCORING]
    assert (standing.state, standing.operator_hold) == (TrustState.QUARANTINED, True)
    assert weights[C] == 0.0
    assert weights[A] > 0.0
    assert events.count("round_scored") == 1
    assert events.index("node_quarantined") < events.index("round_scored")


async def test_a_release_ordered_while_scoring_is_kept(tmp_path: Path) -> None:
    async with running(make_site(tmp_path, study={"rounds": 1})) as coordinator:
        operations = coordinator.use_cases.operations
        await operations.quarantine(OPERATOR, C, "under inquiry")
        given = order_while_scoring(
            coordinator, lambda: operations.release(OPERATOR, C, "labels are right")
        )
        await play(coordinator)
        standing, weights = await standing_of(coordinator, C), await weights_of_round(coordinator)
    assert given == [Phase.SCORING]
    assert (standing.state is TrustState.QUARANTINED, standing.operator_hold) == (False, False)
    assert weights[C] > 0.0


async def test_a_quarantine_and_its_release_while_scoring_leave_one_judgement(
    tmp_path: Path,
) -> None:
    async with running(make_site(tmp_path, sizes=FIVE, study={"rounds": 1})) as coordinator:
        operations = coordinator.use_cases.operations
        given = order_while_scoring(
            coordinator,
            lambda: operations.quarantine(OPERATOR, C, "stolen laptop"),
            lambda: operations.quarantine(OPERATOR, B, "stolen as well"),
            lambda: operations.release(OPERATOR, C, "found again"),
        )
        await play(coordinator)
        kept = {node: (await standing_of(coordinator, node)).operator_hold for node in NODES}
        weights = await weights_of_round(coordinator)
        events = names_of(coordinator)
    assert given == [Phase.SCORING] * 3
    assert kept == {A: False, B: True, C: False}
    assert {node for node, weight in weights.items() if weight == 0.0} == {B}
    assert events.count("round_scored") == events.count("round_weighted") == 1
