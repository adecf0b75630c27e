"""Many witnesses that ask are one look at the database's rows, and a log that moved is seen."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from matl_common.errors import InvalidInputError
from matl_common.tlog.checkpoint import Checkpoint, sign_checkpoint
from matl_common.tlog.policy import threshold_policy
from matl_common.tlog.witness import Verdict, decide
from matl_coordinator.ports import CheckpointRecord, ForeignRow, Store
from matl_coordinator.service.checkpoints import VERIFIED_FOR, Checkpoints
from tests.coordinator.harness import Site, make_site
from tests.coordinator.test_checkpoints import (
    FIVE,
    A,
    B,
    C,
    Clock,
    D,
    cosigned,
    database_of,
    line_of,
    opened,
)
from tests.coordinator.test_foreign_rows import HUGE, put, put_checkpoint
from tests.logs import some_entries

ASKERS = 50


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, sizes=FIVE, byzantine=1)


@pytest.fixture
def store(site: Site) -> Store:
    store = site.connect_store()
    store.load()
    return store


@pytest.fixture
def clock() -> Clock:
    return Clock()


def count_verifications(store: Store) -> list[None]:
    """One element for each time that checkpoints are read from the database from now on."""
    counted = list[None]()

    class Counting(type(store)):  # type: ignore[misc]
        def checkpoints(self) -> Iterator[CheckpointRecord]:
            counted.append(None)
            found: Iterator[CheckpointRecord] = super().checkpoints()
            return found

    store.__class__ = Counting
    return counted


async def ask(checkpoints: Checkpoints, *, old_size: int) -> None:
    """Everybody at once."""
    asked = [checkpoints.to_cosign(old_size=old_size) for _ in range(ASKERS)]
    assert len({each.witnessed.note for each in await asyncio.gather(*asked)}) == 1


async def test_many_who_ask_at_once_are_answered_from_one_verification(
    site: Site, store: Store, clock: Clock
) -> None:
    store.commit([], some_entries("a"))
    checkpoints = site.checkpoints(store, clock=clock)
    for node in (A, B, C, D):
        await cosigned(site, checkpoints, node)
    clock.now += VERIFIED_FOR
    counted = count_verifications(store)
    await ask(checkpoints, old_size=1)
    clock.now += VERIFIED_FOR - timedelta(seconds=1)
    await ask(checkpoints, old_size=0)
    assert len(counted) == 1
    clock.now += timedelta(seconds=1)
    await ask(checkpoints, old_size=1)
    assert len(counted) == 2


async def test_a_log_that_grew_is_verified_again_before_it_is_signed(
    site: Site, store: Store, clock: Clock
) -> None:
    checkpoints = site.checkpoints(store, clock=clock)
    store.commit([], some_entries("a"))
    await checkpoints.newest()
    await checkpoints.newest()
    counted = count_verifications(store)
    store.commit([], some_entries("b"))
    assert (await checkpoints.newest()).size == 2
    assert len(counted) == 1


async def test_a_database_that_goes_back_under_a_running_coordinator_is_noticed_by_who_asks_next(
    site: Site, store: Store, clock: Clock
) -> None:
    checkpoints = site.checkpoints(store, clock=clock)
    store.commit([], some_entries("a"))
    await checkpoints.newest()
    store.close()
    shutil.copyfile(database_of(site), site.folder / "yesterday")
    store.commit([], some_entries("b"))
    before = await checkpoints.newest()
    assert (await checkpoints.to_cosign(old_size=2)).witnessed == before
    store.close()
    shutil.copyfile(site.folder / "yesterday", database_of(site))
    # Not a second later.
    told = await checkpoints.to_cosign(old_size=2)
    last, new = opened(site, before), opened(site, told.witnessed)
    assert decide(last, old_size=2, proof=told.proof, new=new).verdict is Verdict.ROLLBACK


async def test_a_tree_that_was_made_anew_at_the_same_size_is_noticed_by_who_asks_next(
    site: Site, store: Store, clock: Clock
) -> None:
    found = list[ForeignRow]()
    checkpoints = site.checkpoints(store, clock=clock, report=found.append)
    store.commit([], some_entries("a"))
    await checkpoints.newest()
    assert (await checkpoints.latest()) is not None
    put(site, "UPDATE log_nodes SET hash = :hash", hash=bytes(32))
    assert await checkpoints.latest() is None
    assert [row.reason for row in found] == ["it states another root than the log's"]


async def test_entries_that_went_away_under_their_checkpoint_are_no_answer_to_a_witness(
    site: Site, store: Store, clock: Clock
) -> None:
    checkpoints = site.checkpoints(store, clock=clock)
    store.commit([], some_entries("a", "b"))
    await checkpoints.newest()
    assert (await checkpoints.to_cosign(old_size=2)).proof == ()
    put(site, "DELETE FROM log_entries WHERE leaf_index = 1")
    put(site, "DELETE FROM log_nodes WHERE level = 1 OR node_index = 1")
    with pytest.raises(InvalidInputError, match="the log has 1 leaves"):
        await checkpoints.to_cosign(old_size=2)


@pytest.mark.parametrize("passed", [VERIFIED_FOR, -timedelta(seconds=1)], ids=["over", "set back"])
async def test_rows_of_somebody_else_are_told_of_when_the_verification_is_over(
    site: Site, store: Store, clock: Clock, passed: timedelta
) -> None:
    found = list[ForeignRow]()
    checkpoints = site.checkpoints(store, clock=clock, report=found.append)
    store.commit([], some_entries("a"))
    sound = await checkpoints.newest()
    await checkpoints.newest()
    put_checkpoint(site, HUGE, b"junk")
    key = checkpoints.policy.logs[0]
    forged = sign_checkpoint(Checkpoint(key.name, 0, bytes(32)), key, site.log_signer())
    put_checkpoint(site, 0, forged.note.encode())
    assert await checkpoints.newest() == sound
    clock.now += passed
    assert await checkpoints.newest() == sound
    assert [row.key for row in found] == [str(HUGE)]


async def test_a_cosignature_shows_in_the_very_next_answer(
    site: Site, store: Store, clock: Clock
) -> None:
    checkpoints = site.checkpoints(store, clock=clock)
    store.commit([], some_entries("a"))
    given = (await checkpoints.to_cosign(old_size=0)).witnessed
    await ask(checkpoints, old_size=0)
    await checkpoints.cosign(A, size=1, line=line_of(site, A, given))
    assert (await checkpoints.to_cosign(old_size=1)).witnessed.cosigners == {A}


async def test_an_answer_goes_by_the_witnesses_of_now(
    site: Site, store: Store, clock: Clock
) -> None:
    checkpoints = site.checkpoints(store, clock=clock)
    store.commit([], some_entries("a"))
    assert not (await cosigned(site, checkpoints, A)).has_quorum
    policy = checkpoints.policy
    checkpoints.go_by(threshold_policy(policy.logs, policy.witnesses, threshold=1))
    assert (await checkpoints.to_cosign(old_size=1)).witnessed.has_quorum
