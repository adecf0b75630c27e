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
from matl_coordinator.ports import HoldoutReport
from matl_coordinator.replay import ReplayDifferenceError, replay_round
from matl_coordinator.scoring.reach import HALVINGS, RISE_BORNE, reach_of
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


def reaching(coordinator: Running, reach: float) -> None:
    async def short(found: HoldoutReport, _: Mapping[NodeId, float]) -> HoldoutReport:
        return replace(found, reach=reach)

    after_scoring(coordinator, short)


async def played(folder: Path, reach: float) -> tuple[np.ndarray, list[dict[str, object]], Any]:
    site = make_site(folder, sizes=LOUD, study={"rounds": 1}, keep_spooled=10)
    async with running(site) as coordinator:
        reaching(coordinator, reach)
        await play(coordinator)
        model = weights_of(coordinator.scorer.models.path(await final_model(coordinator)))
        return model, events_of(coordinator.store), (site, metrics_of(coordinator))


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
    assert "step_shortened" in capsys.readouterr().out
    steps = await replay_round(site.config, entries, 1)
    assert steps[-1].what == "Model"
    lie = [{**each, "reach": 0.5} if each is told else each for each in entries]
    with pytest.raises(ReplayDifferenceError, match="the log says"):
        await replay_round(site.config, lie, 1)
    # As versions before this one wrote it.
    old = [{k: v for k, v in each.items() if k != "reach"} for each in entries]
    with pytest.raises(ReplayDifferenceError, match="the log says"):
        await replay_round(site.config, old, 1)
