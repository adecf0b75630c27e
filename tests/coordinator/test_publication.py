"""A model leaves the coordinator with the hospitals' cosignatures, and not before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from matl.cli import app
from matl_common.clock import utc_now
from matl_common.identity.keys import load_ed25519_private_key
from matl_common.ids import NodeId, digest_of_file
from matl_common.tlog.checkpoint import verify_checkpoint
from matl_common.tlog.cosignature import cosign
from matl_coordinator.ports import StoreError
from matl_coordinator.service.checkpoints import Checkpoints
from matl_coordinator.service.publication import Publication, Release
from matl_coordinator.store.releases import ReleaseFolder
from tests.coordinator.harness import Running, Site, events_of, make_site, play, running
from tests.logs import some_entries

FIVE = {f"hospital_{letter}": 1000 for letter in "abcde"}
HOSPITALS = tuple(map(NodeId, sorted(FIVE)))


def publication(
    coordinator: Running, releases: ReleaseFolder | None = None, *, tick_seconds: float = 0.01
) -> Publication:
    folder = coordinator.site.config.state_dir / "released"
    return Publication(
        register=coordinator.register,
        store=coordinator.store,
        models=coordinator.models,
        checkpoints=coordinator.use_cases.checkpoints,
        releases=releases or ReleaseFolder.open_folder(folder),
        clock=utc_now,
        tick_seconds=tick_seconds,
    )


def published(site: Site) -> list[str]:
    return sorted(path.name for path in (site.config.state_dir / "released").iterdir())


async def witness(site: Site, checkpoints: Checkpoints, *hospitals: NodeId) -> None:
    for node in hospitals:
        given = (await checkpoints.to_cosign(old_size=0)).witnessed
        key = site.allowed(node).witness_key
        assert key is not None
        signer = load_ed25519_private_key(site.nodes[node].witness_key)
        checkpoint = verify_checkpoint(given.note, checkpoints.policy.logs).checkpoint
        line = cosign(checkpoint, key, signer, unix_seconds=1_800_000_000).encode()
        await checkpoints.cosign(node, size=given.size, line=line)


async def test_a_model_is_published_once_a_quorum_has_witnessed_its_release(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, sizes=FIVE, byzantine=1)
    async with running(site) as coordinator:
        await play(coordinator)
        publishing, checkpoints = publication(coordinator), coordinator.use_cases.checkpoints
        assert await publishing.publish_due() == []
        await witness(site, checkpoints, *HOSPITALS[:3])
        # Training did not wait: both rounds are over, and nothing was published.
        assert await publishing.publish_due() == []
        assert published(site) == []
        await witness(site, checkpoints, HOSPITALS[3])
        assert await publishing.publish_due() == [1, 2]
        assert await publishing.publish_due() == []
        told = [each for each in events_of(coordinator.store) if each["event"] == "model_published"]
        released = [
            each for each in events_of(coordinator.store) if each["event"] == "model_released"
        ]
    assert published(site) == ["0001", "0002"]
    assert [each["cosigners"] for each in told] == [list(HOSPITALS[:4])] * 2
    assert [each["model"] for each in told] == [each["model"] for each in released]
    for name, facts in zip(published(site), released, strict=True):
        folder = site.config.state_dir / "released" / name
        (model,) = folder.glob("*.safetensors")
        assert digest_of_file(model) == facts["model"] == model.stem
        found = CliRunner().invoke(
            app,
            [
                "audit",
                "check",
                str(folder / "entry.json"),
                str(folder / "entry.tlog-proof"),
                "--policy",
                str(folder / "policy"),
            ],
        )
        assert found.exit_code == 0, found.output
        assert "a quorum of its witnesses has seen it" in found.stdout
        assert model.stem in found.stdout


async def test_what_a_quorum_has_witnessed_is_published_under_a_later_checkpoint_without_one(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, sizes=FIVE, byzantine=1)
    async with running(site) as coordinator:
        await play(coordinator)
        checkpoints = coordinator.use_cases.checkpoints
        await witness(site, checkpoints, *HOSPITALS[:4])
        quorum = await checkpoints.latest()
        # The hospital that made the quorum asks for the next at once; the others have left.
        coordinator.store.commit([], some_entries("a"))
        await witness(site, checkpoints, HOSPITALS[3])
        later = await checkpoints.latest()
        assert quorum is not None
        assert later is not None
        assert (later.size > quorum.size, later.has_quorum) == (True, False)
        assert await publication(coordinator).publish_due() == [1, 2]
        told = [each for each in events_of(coordinator.store) if each["event"] == "model_published"]
    assert [each["checkpoint"] for each in told] == [quorum.size] * 2


async def test_what_a_quorum_has_witnessed_is_published_before_the_coordinator_stops(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, sizes=FIVE, byzantine=1)
    async with running(site) as coordinator:
        await play(coordinator)
        publishing = asyncio.create_task(publication(coordinator, tick_seconds=3600.0).run())
        await asyncio.sleep(0.1)
        await witness(site, coordinator.use_cases.checkpoints, *HOSPITALS[:4])
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
    assert published(site) == ["0001", "0002"]


async def test_an_entry_that_was_changed_keeps_no_model_from_being_published(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, sizes=FIVE, byzantine=1)
    async with running(site) as coordinator:
        await play(coordinator)
        await witness(site, coordinator.use_cases.checkpoints, *HOSPITALS[:4])
        engine = create_engine(site.config.database_url)
        with engine.begin() as connection:
            connection.execute(text("UPDATE log_entries SET leaf = x'00' WHERE leaf_index = 2"))
        engine.dispose()
        assert await publication(coordinator).publish_due() == [1, 2]


async def test_a_restart_publishes_what_was_witnessed_and_nothing_twice(tmp_path: Path) -> None:
    site = make_site(tmp_path, sizes=FIVE, byzantine=1)
    async with running(site) as coordinator:
        await play(coordinator)
        await witness(site, coordinator.use_cases.checkpoints, *HOSPITALS[:4])
    async with running(site) as coordinator:
        assert await publication(coordinator).publish_due() == [1, 2]
    async with running(site) as coordinator:
        assert await publication(coordinator).publish_due() == []


class FailsAfter(ReleaseFolder):
    """Publishes, and fails before it can say so."""

    def put(self, release: Release) -> None:
        super().put(release)
        raise StoreError("injected")


@pytest.mark.crash
async def test_a_failure_half_way_is_made_good_and_leaves_nothing_partial(tmp_path: Path) -> None:
    site = make_site(tmp_path, sizes=FIVE, byzantine=1)
    folder = site.config.state_dir / "released"
    async with running(site) as coordinator:
        await play(coordinator)
        await witness(site, coordinator.use_cases.checkpoints, *HOSPITALS[:4])
        ReleaseFolder.open_folder(folder)
        # Killed in the middle of writing: a part without its final name.
        (folder / "0001.part").mkdir()
        (folder / "0001.part" / "entry.json").write_text("half")
        failing = publication(coordinator, FailsAfter(folder))
        with pytest.raises(StoreError):
            await failing.publish_due()
        assert await publication(coordinator).publish_due() == [2]
        told = [each for each in events_of(coordinator.store) if each["event"] == "model_published"]
    assert published(site) == ["0001", "0002"]
    assert [each["round"] for each in told] == [1, 2]


async def test_where_nobody_witnesses_a_model_is_published_and_its_proof_says_so(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)
    allowlist = site.config.federation.allowlist
    lines = allowlist.read_text().splitlines()
    allowlist.write_text("\n".join(each for each in lines if "witness_key" not in each) + "\n")
    site = site.read_again()
    async with running(site) as coordinator:
        await play(coordinator)
        assert await publication(coordinator).publish_due() == [1, 2]
    assert "quorum none" in (site.config.state_dir / "released/0001/policy").read_text()
