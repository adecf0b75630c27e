"""Old models leave the disk by policy, and nothing that somebody may still need."""

# Before gRPC, which reads its TLS settings once.
import asyncio
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import matl_common  # noqa: F401
from matl_common.clock import utc_now
from matl_common.ids import NodeId, RoundId
from matl_common.protocol import RoundStart
from matl_coordinator.service.housekeeping import Housekeeping, Policy
from matl_coordinator.store.copying import folder_bytes
from matl_coordinator.store.releases import ReleaseFolder
from tests.coordinator.harness import (
    Running,
    Site,
    events_of,
    honest_update,
    make_site,
    play,
    running,
)
from tests.coordinator.test_publication import publication, witness

ROUNDS = 6
KEEP_SPOOLED = 1


def a_site(folder: Path, *, averaging: str = "none", rounds: int = ROUNDS) -> Site:
    folder.mkdir(exist_ok=True)
    return make_site(
        folder,
        study={"rounds": rounds, "averaging": averaging},
        keep_spooled=KEEP_SPOOLED,
        collect_seconds=600.0,
    )


def approaching(node_id: NodeId, start: RoundStart) -> NDArray[np.float64]:
    """A step of what is left of the way, so that a long study ends at the target."""
    return 0.7 ** (start.round_id - 1) * honest_update(node_id, start)


async def study(coordinator: Running) -> None:
    await play(coordinator, make=dict.fromkeys(coordinator.site.hospitals, approaching))


def released(site: Site) -> ReleaseFolder:
    return ReleaseFolder.open_folder(site.config.state_dir / "released")


def housekeeping(site: Site, coordinator: Running, *, keep: int | None) -> Housekeeping:
    return Housekeeping(
        register=coordinator.register,
        store=coordinator.store,
        models=coordinator.models,
        published=released(site),
        policy=Policy(keep, KEEP_SPOOLED),
        meter=coordinator.meter,
        measure=lambda: {"models": folder_bytes(site.config.state_dir / "models")},
        clock=utc_now,
        tick_seconds=0.01,
    )


async def keep_house(coordinator: Running, *, keep: int) -> list[int]:
    """A whole study that is witnessed and published; how many models were there over time."""
    site, counts = coordinator.site, list[int]()
    keeper, publishing = housekeeping(site, coordinator, keep=keep), publication(coordinator)
    studying = asyncio.create_task(study(coordinator))
    seen = 0
    while seen < ROUNDS:
        state = await coordinator.register.state()
        if state.rounds_released == seen:
            await asyncio.sleep(0.05)
            continue
        seen = state.rounds_released
        await witness(site, coordinator.use_cases.checkpoints, *site.hospitals)
        await publishing.publish_due()
        await keeper.tidy()
        counts.append(len(list(coordinator.models.digests())))
    await studying
    return counts


def published(site: Site, pattern: str) -> list[int]:
    found = (site.config.state_dir / "released").glob(f"*/{pattern}")
    return sorted(int(path.parent.name) for path in found)


@pytest.mark.parametrize("averaging", ["none", "second-half"])
async def test_a_long_study_keeps_its_last_models_and_every_proof(
    tmp_path: Path, averaging: str
) -> None:
    site = a_site(tmp_path / "site", averaging=averaging)
    async with running(site) as coordinator:
        counts = await keep_house(coordinator, keep=1)
        # What a replay of the spooled round needs is more than the policy asks for.
        kept = range(ROUNDS - KEEP_SPOOLED - 1, ROUNDS + 1)
        for number in kept:
            rnd = coordinator.store.round(RoundId(number))
            assert rnd is not None
            for model in (rnd.base_model, rnd.candidate, rnd.to_release):
                assert model is not None
                assert coordinator.models.has(model)
    assert published(site, "entry.tlog-proof") == list(range(1, ROUNDS + 1))
    assert published(site, "*.safetensors") == list(kept)
    # Flat: a round's own model and its mean, the oldest one's base, and what the next began.
    assert max(counts) <= 2 * (len(kept) + 1) + 1
    assert counts[-1] <= 2 * len(kept) + 1


async def test_what_is_witnessed_goes_and_the_log_and_the_metrics_tell_of_it(
    tmp_path: Path,
) -> None:
    site = a_site(tmp_path / "site")
    async with running(site) as coordinator:
        stranger = coordinator.models.incoming / "stranger"
        stranger.write_bytes(b"adopted for a round that is under way")
        under_way = coordinator.models.adopt(stranger)
        await study(coordinator)
        models = coordinator.models
        sizes = {each: models.path(each).stat().st_size for each in models.digests()}
        keeper = housekeeping(site, coordinator, keep=1)
        assert await keeper.tidy() == [], "no quorum has witnessed any of them"

        await witness(site, coordinator.use_cases.checkpoints, *site.hospitals)
        await publication(coordinator).publish_due()
        assert await housekeeping(site, coordinator, keep=None).tidy() == []
        gone = await keeper.tidy()
        assert await keeper.tidy() == []
        (told,) = (
            each for each in events_of(coordinator.store) if each["event"] == "models_put_away"
        )
        assert gone
        assert told["models"] == gone
        assert set(gone) == sizes.keys() - set(models.digests())
        assert models.has(under_way)
        assert told["byte_count"] == sum(sizes[each] for each in gone)
        counted = coordinator.meter.registry.get_sample_value
        assert counted("matl_models_put_away_bytes_total") == told["byte_count"]
        left = folder_bytes(site.config.state_dir / "models")
        assert counted("matl_disk_bytes", {"kind": "models"}) == left
        # A file that is there again, as after a kill before it was deleted, goes at the next start.
        models.path(gone[0]).write_bytes(b"as it was")
        assert await housekeeping(site, coordinator, keep=1).tidy() == [gone[0]]
