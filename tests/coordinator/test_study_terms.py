"""The terms of a study, from its configuration to the plan, the log and an operator's figures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from matl_common.ids import NodeId
from matl_common.privacy.budget import calibrate_noise, full_batch_epsilon
from matl_common.privacy.mechanisms import Noise, full_batch_event
from matl_common.protocol import RoundStart
from tests.coordinator.harness import (
    Running,
    events_of,
    honest_update,
    make_site,
    next_round,
    running,
    seal,
    send,
)

pytestmark = pytest.mark.privacy


async def sent(coordinator: Running, node: NodeId) -> NodeId:
    """Let a hospital send an update for the first round."""
    start = await next_round(coordinator, node)
    assert isinstance(start, RoundStart)
    sealed = seal(coordinator.site, node, start, coordinator.plan, honest_update(node, start))
    await send(coordinator, node, sealed)
    return node


@pytest.mark.parametrize("noise", Noise)
async def test_noise_is_calibrated_for_its_kind_and_accounted_for_as_such(
    tmp_path: Path, noise: Noise
) -> None:
    told = {"epsilon": 1.0, "noise": noise, "send_after_seconds": 30.0}
    site = make_site(tmp_path, study=told)
    store = site.connect_store()
    async with running(site, store) as coordinator:
        plan = coordinator.plan
        nodes = await asyncio.gather(*(sent(coordinator, node) for node in site.hospitals))
        declared = await coordinator.use_cases.overview.declared()
        founded = events_of(store)[0]
    steps, sigma = site.config.study.max_steps, plan.privacy.noise_multiplier
    assert (plan.privacy.noise, plan.send_after_seconds) == (noise, 30.0)
    assert (founded["noise"], founded["send_after_seconds"]) == (noise.value, 30.0)
    assert sigma == calibrate_noise(1.0, 1e-5, steps=steps, noise=noise)
    whole = full_batch_event(noise, sigma, steps)
    assert 0.999 < full_batch_epsilon([whole], 1e-5) <= 1.0
    one_round = full_batch_event(noise, sigma, plan.training.steps_per_round)
    spent = full_batch_epsilon([one_round], 1e-5)
    assert [declared(node).epsilon for node in nodes] == [spent] * len(nodes)
