"""Rounds through the use cases: the good, the bad, and what stays alive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from matl_common.ids import NodeId
from matl_common.protocol import RoundStart
from tests.coordinator.harness import (
    NODES,
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


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


async def test_a_study_runs_to_its_end_and_the_model_learns(site: Site) -> None:
    store = site.connect_store()
    async with running(site, store) as coordinator:
        await play(coordinator)
        final = await final_model(coordinator)
        assert loss(weights_of(coordinator.models.path(final))) < 0.6 * loss(
            np.zeros_like(weights_of(coordinator.models.path(final)))
        )
        names = [event["event"] for event in events_of(store)]
    assert names.count("model_released") == 2
    assert names.count("update_admitted") == 2 * len(NODES)
    assert names[0] == "study_founded"


async def test_two_undisturbed_runs_end_in_the_same_model(tmp_path: Path) -> None:
    finals = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        async with running(make_site(tmp_path / name)) as coordinator:
            await play(coordinator)
            finals.append(await final_model(coordinator))
    assert finals[0] == finals[1]


async def test_one_hospital_that_sends_nan_is_refused_and_the_round_goes_on(site: Site) -> None:
    def poisoned(node_id: NodeId, start: RoundStart) -> np.ndarray:
        update = honest_update(node_id, start)
        update[12345] = np.nan
        return update

    store = site.connect_store()
    async with running(site, store) as coordinator:
        from matl_coordinator.service.intake import RefusedError

        with pytest.raises(RefusedError, match="1 values are NaN"):
            await play(coordinator, make={NODES[2]: poisoned})
