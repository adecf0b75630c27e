"""The log is signed, cosigned by hospitals, and never goes back."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from matl_common.clock import utc_now
from matl_common.errors import InvalidInputError
from matl_common.identity.keys import load_ed25519_private_key
from matl_common.ids import NodeId
from matl_common.tlog.checkpoint import Checkpoint, verify_checkpoint
from matl_common.tlog.cosignature import cosign
from matl_common.tlog.merkle import verify_consistency
from matl_common.tlog.policy import Policy, assess
from matl_common.tlog.witness import Verdict, decide
from matl_coordinator.ports import Store, StoreError
from matl_coordinator.service.audit import Audit
from matl_coordinator.service.checkpoints import (
    PATIENCE,
    CheckpointError,
    Checkpoints,
    LogRewrittenError,
    Witnessed,
)
from matl_coordinator.store.database import create_database_engine, writing
from tests.coordinator.harness import OPERATOR, Site, make_site
from tests.logs import an_entry, some_entries

FIVE = {f"hospital_{letter}": 1000 for letter in "abcde"}
A, B, C, D, E = map(NodeId, sorted(FIVE))


class Clock:
    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, sizes=FIVE, byzantine=1)


@pytest.fixture
def store(site: Site) -> Store:
    store = site.connect_store()
    store.load()
    return store


def line_of(site: Site, node: NodeId, given: Witnessed) -> bytes:
    key = site.allowed(node).witness_key
    assert key is not None
    checkpoint = opened(site, given)
    signer = load_ed25519_private_key(site.nodes[node].witness_key)
    return cosign(checkpoint, key, signer, unix_seconds=1_800_000_000).encode()


def opened(site: Site, given: Witnessed) -> Checkpoint:
    keys = [site.checkpoints(site.connect_store()).policy.logs[0]]
    return verify_checkpoint(given.note, keys).checkpoint


def database_of(site: Site) -> Path:
    return Path(site.config.database_url.removeprefix("sqlite:///"))


async def cosigned(site: Site, checkpoints: Checkpoints, node: NodeId) -> Witnessed:
    given = (await checkpoints.to_cosign(old_size=0)).witnessed
    line = line_of(site, node, given)
    return await checkpoints.cosign(node, size=given.size, line=line)


def test_five_hospitals_and_one_hostile_one_need_four_cosignatures(site: Site) -> None:
    policy = site.checkpoints(site.connect_store()).policy
    assert sorted(policy.witnesses) == [A, B, C, D, E]
    assert policy.groups[0].threshold == 4


async def test_four_of_five_make_a_quorum_that_an_outsider_can_check(
    site: Site, store: Store
) -> None:
    store.commit([], some_entries("a", "b", "c"))
    checkpoints = site.checkpoints(store)
    for node in (A, B, C):
        assert not (await cosigned(site, checkpoints, node)).has_quorum
    complete = await cosigned(site, checkpoints, D)
    assert complete.has_quorum
    assert complete.cosigners == {A, B, C, D}
    policy: Policy = checkpoints.policy
    assert assess(verify_checkpoint(complete.note, policy.logs), policy).quorum_met
    # All of it is still there after a restart.
    again = await site.checkpoints(store).newest()
    assert again == complete


async def test_the_largest_checkpoint_with_a_quorum_is_found_under_later_ones(
    site: Site, store: Store
) -> None:
    checkpoints = site.checkpoints(store)
    assert await checkpoints.witnessed() is None
    store.commit([], some_entries("a"))
    for node in (A, B, C):
        await cosigned(site, checkpoints, node)
    assert await checkpoints.witnessed() is None
    complete = await cosigned(site, checkpoints, D)
    assert await checkpoints.witnessed() == complete
    store.commit([], some_entries("b"))
    await cosigned(site, checkpoints, A)
    store.commit([], some_entries("c"))
    assert (await checkpoints.newest()).size == 3
    assert await checkpoints.witnessed() == complete
    # A line that is not its witness's makes no quorum.
    for node in (B, C, D):
        store.put_cosignature(2, node, line_of(site, A, complete))
    assert await checkpoints.witnessed() == complete


async def test_witnesses_who_ask_at_different_times_get_the_same_checkpoint(
    site: Site, store: Store
) -> None:
    checkpoints = site.checkpoints(store)
    store.commit([], some_entries("a"))
    first = await checkpoints.to_cosign(old_size=0)
    store.commit([], some_entries("b"))
    assert (await checkpoints.to_cosign(old_size=0)).witnessed == first.witnessed
    for node in (A, B, C, D):
        await cosigned(site, checkpoints, node)
    # A quorum has it, so the next may come, with a proof that it goes on from there.
    following = await checkpoints.to_cosign(old_size=1)
    old, new = opened(site, first.witnessed), opened(site, following.witnessed)
    assert (old.size, new.size) == (1, 2)
    verify_consistency(
        old_size=1, new_size=2, old_root=old.root, new_root=new.root, proof=following.proof
    )


async def test_a_checkpoint_that_never_gets_its_quorum_is_not_waited_for_without_end(
    site: Site, store: Store
) -> None:
    clock = Clock()
    checkpoints = site.checkpoints(store, clock=clock)
    store.commit([], some_entries("a"))
    assert (await checkpoints.to_cosign(old_size=0)).witnessed.size == 1
    store.commit([], some_entries("b"))
    clock.now += PATIENCE - timedelta(seconds=1)
    assert (await checkpoints.to_cosign(old_size=0)).witnessed.size == 1
    clock.now += timedelta(seconds=1)
    assert (await checkpoints.to_cosign(old_size=0)).witnessed.size == 2


async def test_a_log_that_does_not_grow_signs_nothing_new(site: Site, store: Store) -> None:
    clock = Clock()
    checkpoints = site.checkpoints(store, clock=clock)
    store.commit([], some_entries("a"))
    first = await checkpoints.newest()
    clock.now += 2 * PATIENCE
    assert await checkpoints.newest() == first
    assert (await checkpoints.to_cosign(old_size=1)).witnessed == first


async def test_only_enrolled_witnesses_cosign_and_only_with_their_own_keys(
    site: Site, store: Store
) -> None:
    store.commit([], some_entries("a"))
    checkpoints = site.checkpoints(store)
    given = (await checkpoints.to_cosign(old_size=0)).witnessed
    mine = line_of(site, A, given)
    with pytest.raises(CheckpointError, match="without a witness_key"):
        await checkpoints.cosign(OPERATOR, size=1, line=mine)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        await checkpoints.cosign(A, size=2, line=mine)
    broken = (b"", b"x", mine[:-1], mine + mine, b"\n" + mine, line_of(site, B, given))
    for line in broken:
        with pytest.raises(InvalidInputError):
            await checkpoints.cosign(A, size=1, line=line)
    forged = mine.replace(b"hospital_a", b"hospital_b")
    with pytest.raises(InvalidInputError):
        await checkpoints.cosign(B, size=1, line=forged)
    (latest,) = store.checkpoints()
    assert latest.cosignatures == {}


async def test_cosigning_twice_counts_once(site: Site, store: Store) -> None:
    store.commit([], some_entries("a"))
    checkpoints = site.checkpoints(store)
    first = await cosigned(site, checkpoints, A)
    assert await cosigned(site, checkpoints, A) == first


async def test_a_checkpoint_that_was_not_kept_is_not_given_out(site: Site, store: Store) -> None:
    store.commit([], some_entries("a"))

    class Failing(type(store)):  # type: ignore[misc]
        def put_checkpoint(self, size: int, note: bytes) -> None:
            raise StoreError("injected")

    store.__class__ = Failing
    with pytest.raises(StoreError):
        await site.checkpoints(store).to_cosign(old_size=0)
    assert not (site.config.state_dir / "log-checkpoint.txt").exists()


async def test_a_restart_finds_the_log_as_it_was(site: Site, store: Store) -> None:
    await site.checkpoints(store).resume()
    for number in range(100):
        store.commit([], [an_entry(f"start {number}")])
        checkpoints = site.checkpoints(store)
        await checkpoints.resume()
        await checkpoints.newest()
    assert [each.size for each in store.checkpoints()] == [*range(100, 0, -1)]


async def test_a_database_that_was_rolled_back_is_refused(site: Site, store: Store) -> None:
    store.commit([], some_entries("a"))
    store.close()
    shutil.copyfile(database_of(site), site.folder / "yesterday")
    store = site.connect_store()
    store.load()
    store.commit([], some_entries("b"))
    before = await site.checkpoints(store).newest()
    store.close()
    shutil.copyfile(site.folder / "yesterday", database_of(site))
    store = site.connect_store()
    store.load()
    checkpoints = site.checkpoints(store)
    with pytest.raises(LogRewrittenError, match="older than that"):
        await checkpoints.resume()
    # A witness that asks gets the smaller log, signed: it is evidence.
    told = await checkpoints.to_cosign(old_size=before.size)
    last, new = opened(site, before), opened(site, told.witnessed)
    verdict = decide(last, old_size=before.size, proof=told.proof, new=new).verdict
    assert verdict is Verdict.ROLLBACK


async def test_a_database_with_another_history_is_refused(site: Site, store: Store) -> None:
    store.commit([], some_entries("a", "b"))
    await site.checkpoints(store).newest()
    engine = create_database_engine(site.config.database_url)
    with writing(engine) as connection:
        connection.execute(text("DELETE FROM log_entries"))
        connection.execute(text("DELETE FROM log_nodes"))
    engine.dispose()
    store.load()
    store.commit([], some_entries("c", "d", "e"))
    with pytest.raises(LogRewrittenError, match="not those whose"):
        await site.checkpoints(store).resume()


async def test_an_inclusion_is_shown_in_every_later_tree(site: Site, store: Store) -> None:
    store.commit([], some_entries(*map(str, range(9))))
    audit = Audit(store)
    for index, size in ((9, 9), (0, 10), (3, 2), (3, 0)):
        with pytest.raises(InvalidInputError):
            await audit.inclusion(index, size=size)
    found = await audit.inclusion(8, size=9)
    assert found.entry.index == 8
    assert len(found.path) == 1
