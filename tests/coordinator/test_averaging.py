"""What a study that averages releases, and what it trains on from."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from matl_common.clock import utc_now
from matl_common.errors import IntegrityError
from matl_common.ids import NodeId
from matl_common.protocol import RoundStart
from matl_common.wire import operations_pb2 as pb
from matl_common.wire.documents import format_study_plan, parse_study_plan
from matl_common.worker import WorkerCrashedError
from matl_coordinator.core.rounds import Average, Phase, Round
from matl_coordinator.roster import Roster
from matl_coordinator.rpc.operations import OperationsServicer
from matl_coordinator.service.averaging import average_with_earlier
from matl_coordinator.service.founding import StudyMismatchError
from tests.coordinator.harness import (
    NODES,
    OPERATOR,
    Running,
    Site,
    events_of,
    final_model,
    honest_update,
    loss,
    make_site,
    play,
    running,
    weights_of,
)

A = NODES[0]


def averaging_site(folder: Path, *, rounds: int, averaging: str = "second-half") -> Site:
    return make_site(folder, study={"rounds": rounds, "averaging": averaging})


def released(coordinator: Running) -> list[Round]:
    found = coordinator.store.rounds(after=0, limit=100)
    return [rnd for rnd in found if rnd.phase is Phase.RELEASED]


def weights_in(coordinator: Running, digest: str | None) -> NDArray[np.float64]:
    assert digest is not None
    return weights_of(coordinator.models.path(digest))  # type: ignore[arg-type]  # a digest


async def told(coordinator: Running) -> list[pb.RoundSummary]:
    """The rounds as an operator hears of them."""
    servicer = OperationsServicer(
        operations=coordinator.use_cases.operations,
        overview=coordinator.use_cases.overview,
        roster=Roster(coordinator.site.allowlist),
        clock=utc_now,
    )
    answer = await servicer.ListRounds(pb.ListRoundsRequest(), None)  # type: ignore[arg-type]  # unused
    return list(answer.rounds)


async def test_the_second_half_releases_means_and_trains_on_from_the_rounds_own(
    tmp_path: Path,
) -> None:
    async with running(averaging_site(tmp_path, rounds=5)) as coordinator:
        await play(coordinator)
        rounds = released(coordinator)
        own = [weights_in(coordinator, rnd.candidate) for rnd in rounds]
        found = [weights_in(coordinator, rnd.to_release) for rnd in rounds]
        expected = [own[0], own[1], own[2], (own[2] + own[3]) / 2, np.mean(own[2:], axis=0)]
        for number in range(5):
            np.testing.assert_allclose(found[number], expected[number], rtol=0, atol=1e-8)
        assert [rnd.average and rnd.average.models for rnd in rounds] == [None, None, None, 2, 3]
        assert [rnd.base_model for rnd in rounds[1:]] == [rnd.candidate for rnd in rounds[:-1]]
        assert await final_model(coordinator) == rounds[-1].to_release != rounds[-1].candidate


async def test_what_is_evaluated_logged_and_told_is_the_model_that_is_released(
    tmp_path: Path,
) -> None:
    async with running(averaging_site(tmp_path, rounds=3)) as coordinator:
        await play(coordinator)
        rounds = released(coordinator)
        entries = [e for e in events_of(coordinator.store) if e["event"] == "model_released"]
        for rnd, event, summary in zip(rounds, entries, await told(coordinator), strict=True):
            accuracy = float(np.exp(-loss(weights_in(coordinator, rnd.to_release))))
            assert event["accuracy"] == summary.evaluation.accuracy == accuracy
            assert event["model"] == summary.released_model == rnd.to_release
            assert event.get("round_model", event["model"]) == summary.round_model == rnd.candidate
            assert event.get("averaged", 0) == summary.averaged
        assert [event.get("averaged") for event in entries] == [None, None, 2]


async def test_rounds_that_released_nothing_are_not_averaged(tmp_path: Path) -> None:
    async with running(averaging_site(tmp_path, rounds=4)) as coordinator:

        def failing_in_round_four(node_id: NodeId, start: RoundStart) -> NDArray[np.float64]:
            if start.round_id == 4:
                attempts = coordinator.site.config.worker.attempts
                coordinator.scorer.fail_next = [WorkerCrashedError("killed")] * attempts
            return honest_update(node_id, start)

        playing = asyncio.create_task(play(coordinator, make={A: failing_in_round_four}))
        state = await coordinator.register.state()
        while state.study is None or not state.study.paused:
            await coordinator.register.wait_for_change(state, seconds=10.0)
            state = await coordinator.register.state()
        await coordinator.use_cases.operations.resume(OPERATOR, "the worker is back")
        await playing
        rounds = released(coordinator)
        assert [rnd.round_id for rnd in rounds] == [1, 2, 3, 5]
        last = weights_in(coordinator, rounds[-1].to_release)
        own = [weights_in(coordinator, rnd.candidate) for rnd in rounds[-2:]]
        np.testing.assert_allclose(last, np.mean(own, axis=0), rtol=0, atol=1e-8)
        assert rounds[-1].base_model == rounds[-2].candidate
        assert [summary.averaged for summary in await told(coordinator)] == [0, 0, 0, 0, 2]


async def test_a_study_of_one_round_releases_its_model(tmp_path: Path) -> None:
    async with running(averaging_site(tmp_path, rounds=1)) as coordinator:
        await play(coordinator)
        (rnd,) = released(coordinator)
        assert rnd.average is None
        assert await final_model(coordinator) == rnd.candidate


async def test_the_plan_that_hospitals_get_says_what_is_released(tmp_path: Path) -> None:
    async with running(averaging_site(tmp_path, rounds=5)) as coordinator:
        plan = coordinator.plan
        (founded, *_) = events_of(coordinator.store)
    assert plan.average_from == 3
    assert parse_study_plan(format_study_plan(plan)) == plan
    assert founded["average_from"] == 3


async def test_a_study_does_not_go_on_with_another_averaging_than_it_began_with(
    tmp_path: Path,
) -> None:
    site = averaging_site(tmp_path, rounds=5)
    async with running(site):
        pass
    study = site.config.study.model_copy(update={"averaging": "none"})
    other = replace(site, config=site.config.model_copy(update={"study": study}))
    with pytest.raises(StudyMismatchError):
        async with running(other):
            pass


async def test_a_release_that_changed_on_disk_is_not_averaged_on(tmp_path: Path) -> None:
    async with running(averaging_site(tmp_path, rounds=3)) as coordinator:
        await play(coordinator)
        state = await coordinator.register.state()
        last = released(coordinator)[-1]
        assert last.candidate is not None
        before = replace(state, rounds_released=2)
        again = average_with_earlier(
            before, last.candidate, average_from=2, models=coordinator.models
        )
        assert isinstance(again, Average)
        path = coordinator.models.path(await final_model(coordinator))
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(IntegrityError, match="not that model"):
            average_with_earlier(before, last.candidate, average_from=2, models=coordinator.models)
