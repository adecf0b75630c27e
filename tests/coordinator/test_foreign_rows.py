"""Rows of somebody else stop nothing, and a coordinator that was replaced shows nothing."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from matl_common.ids import NodeId
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.witness import Verdict, decide
from matl_coordinator.ports import ForeignRow, LogHead, StaleReaderError, StaleWriterError, Store
from matl_coordinator.rpc.statuses import status_of
from matl_coordinator.service.audit import Audit
from matl_coordinator.service.checkpoints import CheckpointError
from matl_coordinator.store.database import create_database_engine, writing
from tests.coordinator.harness import Site, make_site
from tests.coordinator.test_checkpoints import FIVE, A, B, C, D, cosigned, line_of, opened
from tests.logs import some_entries

HUGE = 1 << 60


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, sizes=FIVE, byzantine=1)


@pytest.fixture
def store(site: Site) -> Store:
    store = site.connect_store()
    store.load()
    return store


def put(site: Site, statement: str, **values: object) -> None:
    """Write to the database as whoever has a way to."""
    engine = create_database_engine(site.config.database_url)
    with writing(engine) as connection:
        connection.execute(text(statement), values)
    engine.dispose()


def put_checkpoint(site: Site, size: int, note: bytes) -> None:
    put(
        site, "INSERT INTO log_checkpoints (size, note) VALUES (:size, :note)", size=size, note=note
    )


def note_by_a_stranger(site: Site, head: LogHead) -> bytes:
    signer = Ed25519PrivateKey.from_private_bytes(bytes(32))
    origin = site.checkpoints(site.connect_store()).policy.logs[0].name
    checkpoint = Checkpoint(origin, head.size, bytes.fromhex(head.root))
    return sign_checkpoint(checkpoint, log_key(origin, signer.public_key()), signer).note.encode()


async def test_a_checkpoint_that_the_log_did_not_sign_is_passed_over_and_told_of_once(
    site: Site, store: Store
) -> None:
    found = list[ForeignRow]()
    checkpoints = site.checkpoints(store, report=found.append)
    store.commit([], some_entries("a"))
    sound = await checkpoints.newest()
    for number in range(30):
        put_checkpoint(site, HUGE + number, b"junk")
    put_checkpoint(site, HUGE - 1, note_by_a_stranger(site, store.log_head()))
    # A sound note, filed where it does not belong.
    put_checkpoint(site, HUGE - 2, sound.note.encode())
    assert await checkpoints.newest() == sound
    assert await site.checkpoints(store).latest() == sound
    store.commit([], some_entries("b"))
    following = await checkpoints.newest()
    assert opened(site, following).size == 2
    assert await checkpoints.latest() == following
    assert [row.table for row in found] == ["log_checkpoints"] * 32
    assert found[0].key == str(HUGE + 29)
    assert found[-1].reason == "it states 1 entries"


async def test_a_signed_checkpoint_of_another_tree_is_passed_over(site: Site, store: Store) -> None:
    found = list[ForeignRow]()
    store.commit([], some_entries("a"))
    sound = await site.checkpoints(store).newest()
    store.commit([], some_entries("b", "c"))
    checkpoints = site.checkpoints(store, report=found.append)
    key = checkpoints.policy.logs[0]
    signer = site.log_signer()
    for size in (2, 3):
        forged = sign_checkpoint(Checkpoint(key.name, size, bytes(32)), key, signer)
        put_checkpoint(site, size, forged.note.encode())
    # It cannot be signed in the other's place: the next waits for the log to grow.
    assert await checkpoints.newest() == sound
    assert {row.reason for row in found} == {"it states another root than the log's"}
    store.commit([], some_entries("d"))
    assert (await checkpoints.newest()).size == 4


async def test_a_first_checkpoint_that_is_taken_waits_for_the_log_to_grow(
    site: Site, store: Store
) -> None:
    store.commit([], some_entries("a"))
    put_checkpoint(site, 1, note_by_a_stranger(site, store.log_head()))
    checkpoints = site.checkpoints(store)
    with pytest.raises(CheckpointError, match="somebody else has put"):
        await checkpoints.newest()
    store.commit([], some_entries("b"))
    assert (await checkpoints.newest()).size == 2


async def test_a_line_that_is_no_cosignature_does_not_keep_a_witness_from_cosigning(
    site: Site, store: Store
) -> None:
    found = list[ForeignRow]()
    store.commit([], some_entries("a"))
    checkpoints = site.checkpoints(store, report=found.append)
    given = (await checkpoints.to_cosign(old_size=0)).witnessed
    put_line = "INSERT INTO log_cosignatures (size, node_id, line) VALUES (1, :node, :line)"
    forged = line_of(site, B, given)[:-4] + b"AA=\n"
    for node, line in ((A, b"junk"), (B, forged), (C, line_of(site, D, given) * 2)):
        put(site, put_line, node=node, line=line)
    assert (await checkpoints.latest()) == given
    for node in (A, B, C):
        await cosigned(site, checkpoints, node)
    complete = await cosigned(site, checkpoints, D)
    assert complete.has_quorum
    assert complete.cosigners == {A, B, C, D}
    assert (await checkpoints.latest()) == complete
    assert [(row.table, row.key) for row in found] == [
        ("log_cosignatures", f"1, {node}") for node in (A, B, C)
    ]


async def test_a_coordinator_that_was_replaced_shows_no_witness_an_older_log(
    site: Site, store: Store
) -> None:
    store.commit([], some_entries("a"))
    old = site.checkpoints(store)
    before = await cosigned(site, old, A)
    line = line_of(site, B, before)
    other = site.connect_store()
    other.load()
    other.commit([], some_entries("b"))
    new = site.checkpoints(other)
    shown = await new.newest()
    reads = (
        old.latest,
        old.newest,
        lambda: old.to_cosign(old_size=0),
        lambda: old.to_cosign(old_size=shown.size),
        lambda: old.consistency(1, 1),
        lambda: old.cosign(B, size=1, line=line),
        lambda: Audit(store).page(start=0, limit=1),
        lambda: Audit(store).inclusion(0, size=1),
    )
    for read in reads:
        with pytest.raises(StaleReaderError) as caught:
            await read()
        code, told = status_of(caught.value)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "another coordinator took over" in told
    # What it would have shown is what a witness stops for.
    last, behind = opened(site, shown), opened(site, before)
    assert decide(last, old_size=last.size, proof=(), new=behind).verdict is Verdict.ROLLBACK
    with pytest.raises(StaleWriterError):
        store.put_cosignature(1, NodeId(B), line)


async def test_a_coordinator_that_takes_over_goes_on_from_what_the_other_signed(
    site: Site, store: Store
) -> None:
    store.commit([], some_entries("a"))
    assert (await site.checkpoints(store).newest()).size == 1
    other = site.connect_store()
    other.load()
    other.commit([], some_entries("b"))
    shown = await site.checkpoints(other).newest()
    again = site.connect_store()
    again.load()
    assert await site.checkpoints(again).latest() == shown
