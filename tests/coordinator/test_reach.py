"""How much of a step is taken, and what becomes of it in a round."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from matl_common.ids import NodeId
from matl_common.protocol import RoundStart
from matl_common.worker import WorkerCrashedError
from matl_coordinator.core.rounds import Phase
from matl_coordinator.ports import HoldoutReport
from matl_coordinator.replay import ReplayDifferenceError, replay_round
from matl_coordinator.scoring.reach import HALVINGS, RISE_BORNE, reach_of, try_change, try_step
from matl_coordinator.service.judging import Built
from tests.coordinator.harness import (
    NODES,
    Running,
    after_scoring,
    events_of,
    final_model,
    honest_update,
    make_site,
    metrics_of,
    play,
    running,
    until_paused,
    weights_of,
)

CALM = np.linspace(0.5, 1.5, 101)
LOUD = {"hospital_a": 1000, "hospital_b": 500, "hospital_c": 300}
Losses = Callable[[float], np.ndarray]


def test_a_step_is_halved_as_often_as_the_documentation_says() -> None:
    assert 0.5**HALVINGS == 1 / 32


def rising_to(*rises: float) -> Losses:
    """Every image's loss rises by as much, for the whole step, half of it, and so on."""
    return lambda share: CALM + rises[min(len(rises) - 1, round(-np.log2(share)))]


@pytest.mark.parametrize("rise", [-1.0, 0.0, 0.99 * RISE_BORNE])
def test_a_step_that_costs_nothing_to_speak_of_is_taken_whole(rise: float) -> None:
    tried: list[float] = []

    def after(share: float) -> np.ndarray:
        tried.append(share)
        return rising_to(rise, -2.0)(share)

    assert reach_of(CALM, after) == 1.0
    assert tried == [1.0]


def test_a_step_too_far_is_shortened_to_where_the_loss_is_least() -> None:
    assert reach_of(CALM, rising_to(1.01 * RISE_BORNE, -0.2, -0.3, -0.1)) == 0.25
    assert reach_of(CALM, rising_to(9.0, 0.02, -0.3, -0.3, -0.1)) == 0.25


def test_of_steps_alike_the_longest_is_taken() -> None:
    assert reach_of(CALM, rising_to(1.0, 0.5)) == 0.5


def test_a_step_that_costs_at_every_length_is_the_shortest_tried() -> None:
    assert reach_of(CALM, lambda share: CALM + share) == 0.5**HALVINGS
    assert reach_of(CALM, lambda _: np.full(101, 1e6)) == 0.5


@pytest.mark.parametrize(("images", "reach"), [(20, 1.0), (2000, 0.5)])
def test_a_rise_within_the_chance_of_the_images_is_borne(images: int, reach: float) -> None:
    losses = np.random.default_rng(1).normal(0.0, 1.0, images)
    losses += 1.5 * RISE_BORNE - losses.mean()
    before = np.zeros(images)
    assert reach_of(before, lambda share: losses if share == 1.0 else before - share) == reach


@pytest.mark.parametrize(("mean", "reach"), [(0.99, 1.0), (1.01, 0.5)])
def test_no_rise_of_more_than_a_nat_passes_for_chance(mean: float, reach: float) -> None:
    few = np.zeros(400)
    few[:2] = 200.0 * mean
    assert reach_of(np.zeros(400), lambda share: few if share == 1.0 else -few) == reach


@pytest.mark.parametrize(
    ("length", "reach", "scored"), [(0.1, 1.0, 1.0), (2.2, 0.5, 1.0), (4.2, 0.25, 0.5)]
)
def test_updates_are_scored_along_twice_what_is_taken(
    length: float, reach: float, scored: float
) -> None:
    valley = np.array([1.0, 0.0], dtype=np.float32)

    def losses(change: np.ndarray) -> np.ndarray:
        return CALM + float(np.square(change - valley).sum())

    step = length * valley
    found, along = try_step(step, before=losses(0 * step), losses=losses)
    assert found == reach
    np.testing.assert_array_equal(along, scored * step)
    assert try_change(step, before=losses(0 * step), losses=losses) == reach
    assert try_step(None, before=CALM, losses=losses) == (1.0, None)


def reaching(coordinator: Running, reach: float) -> None:
    async def short(found: HoldoutReport, _: Mapping[NodeId, float]) -> HoldoutReport:
        return replace(found, reach=reach)

    after_scoring(coordinator, short)


async def played(
    folder: Path, reach: float, further: float = 1.0, *, failures: int = 0
) -> tuple[np.ndarray, list[dict[str, object]], Any]:
    site = make_site(folder, sizes=LOUD, study={"rounds": 1}, keep_spooled=10)
    async with running(site) as coordinator:
        reaching(coordinator, reach)
        coordinator.scorer.bears = [further]
        build = coordinator.use_cases.judge.build

        async def failing(*args: Any, **facts: Any) -> Built:
            coordinator.scorer.fail_next = [WorkerCrashedError("killed")] * failures
            # Only the first attempt.
            coordinator.use_cases.judge.build = build  # type: ignore[method-assign]
            return await build(*args, **facts)

        coordinator.use_cases.judge.build = failing  # type: ignore[method-assign]
        await play(coordinator)
        assert len(coordinator.scorer.tried) == 1
        assert list(coordinator.models.incoming.iterdir()) == []
        (rnd,) = coordinator.store.rounds(after=0, limit=2)
        assert rnd.reach == reach * further
        model = weights_of(coordinator.scorer.models.path(await final_model(coordinator)))
        return model, events_of(coordinator.store), (site, metrics_of(coordinator))


async def test_without_a_holdout_set_nothing_is_tried(tmp_path: Path) -> None:
    async with running(make_site(tmp_path, has_holdout=False)) as coordinator:
        await play(coordinator)
        assert coordinator.scorer.tried == []


async def test_a_candidate_whose_trial_failed_is_not_left_behind(tmp_path: Path) -> None:
    async with running(make_site(tmp_path, study={"rounds": 1}, keep_spooled=10)) as coordinator:
        await play(coordinator)
        (rnd,) = coordinator.store.rounds(after=0, limit=2)
        coordinator.scorer.fail_next = [WorkerCrashedError("killed")]
        with pytest.raises(WorkerCrashedError):
            await coordinator.use_cases.judge.build(
                replace(rnd, phase=Phase.AGGREGATING, candidate=None),
                updates=coordinator.store.updates(rnd.round_id),
                released_in=0,
            )
        assert coordinator.scorer.fail_next == []
        assert list(coordinator.models.incoming.iterdir()) == []


async def test_of_a_held_round_too_the_log_says_where_its_updates_were_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def harmful(node_id: NodeId, start: RoundStart) -> np.ndarray:
        return -honest_update(node_id, start)

    async with running(make_site(tmp_path, study={"rounds": 1})) as coordinator:
        assert math.isnan(metrics_of(coordinator)["matl_step_reach_ratio"])
        reaching(coordinator, 0.125)
        playing = asyncio.create_task(play(coordinator, make=dict.fromkeys(NODES, harmful)))
        await until_paused(coordinator)
        playing.cancel()
        # Reported once the hold is on record.
        while metrics_of(coordinator)["matl_step_reach_ratio"] != 0.125:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        (scored,) = (e for e in events_of(coordinator.store) if e["event"] == "round_scored")
        events = {each["event"] for each in events_of(coordinator.store)}
    assert "round_weighted" not in events
    assert scored["hold"]
    assert scored["reach"] == 0.125
    assert "step_shortened" in capsys.readouterr().out


async def test_a_round_takes_as_much_of_the_aggregate_as_the_holdout_set_bears(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole, _, _ = await played(tmp_path / "whole", 1.0)
    assert "step_shortened" not in capsys.readouterr().out
    part, entries, (site, metrics) = await played(tmp_path / "part", 0.25)
    assert np.abs(whole).max() > 0.001
    # The first model is all zeros.
    np.testing.assert_allclose(part, 0.25 * whole, rtol=1e-6)
    (told,) = (each for each in entries if each["event"] == "round_weighted")
    assert told["reach"] == 0.25
    assert sum(cast("dict[str, float]", told["weights"]).values()) == pytest.approx(1.0)
    assert metrics["matl_step_reach_ratio"] == 0.25
    written = capsys.readouterr().out
    assert "step_shortened" in written
    assert "aggregate_shortened" not in written
    steps = await replay_round(site.config, entries, 1)
    assert steps[-1].what == "Model"
    (taken,) = (each for each in entries if each["event"] == "model_aggregated")
    lie = [{**each, "reach": 0.5} if each is taken else each for each in entries]
    with pytest.raises(ReplayDifferenceError, match="the log says"):
        await replay_round(site.config, lie, 1)
    # As earlier versions wrote it, which tried the common step, and before that nothing.
    without = {k: v for k, v in taken.items() if k != "reach"}
    older = [without if each is taken else each for each in entries]
    assert (await replay_round(site.config, older, 1))[-1].what == "Model"
    oldest = [{k: v for k, v in each.items() if k != "reach"} for each in entries]
    with pytest.raises(ReplayDifferenceError, match="the log says"):
        await replay_round(site.config, oldest, 1)


@pytest.mark.parametrize("failures", [0, 1])
async def test_an_aggregate_longer_than_the_step_is_shortened_once_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failures: int
) -> None:
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole, _, _ = await played(tmp_path / "whole", 1.0)
    assert "aggregate_shortened" not in capsys.readouterr().out
    part, entries, (site, metrics) = await played(tmp_path / "part", 0.5, 0.25, failures=failures)
    assert np.abs(whole).max() > 0.001
    np.testing.assert_allclose(part, 0.125 * whole, rtol=1e-6)
    told = {str(each["event"]): each for each in entries}
    assert told["round_scored"]["reach"] == told["round_weighted"]["reach"] == 0.5
    assert told["model_aggregated"]["reach"] == 0.125
    assert metrics["matl_step_reach_ratio"] == 0.125
    written = capsys.readouterr().out
    (warning,) = (line for line in written.splitlines() if "aggregate_shortened" in line)
    admitted = [each for each in entries if each["event"] == "update_admitted"]
    norms = {str(each["node"]): cast("float", each["norm"]) for each in admitted}
    order = sorted(norms, key=lambda node: -norms[node])
    assert len(order) == 3
    assert ", ".join(f"{node} {norms[node]:.3g}" for node in order) in warning
    assert written.count("phase_failed") == failures
    assert (await replay_round(site.config, entries, 1))[-1].what == "Model"
