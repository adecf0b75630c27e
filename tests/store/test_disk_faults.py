import errno
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId, RoundId, digest_of
from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import leaf_hash
from matl_coordinator.ports import SpoolError, SpoolFullError
from matl_coordinator.store.files import FencedFiles, LocalFiles
from matl_coordinator.store.models import FileModelStore, ModelFileError
from matl_coordinator.store.spool import DiskSpool
from tests.store.faults import FaultyFiles, FullDisk, SmallDisk

ROUND, NODE = RoundId(1), NodeId("hospital_a")
CHUNKS = (b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"c" * 10)
BYTES = sum(map(len, CHUNKS))
HASHES = b"".join(map(leaf_hash, CHUNKS))
SUM = b"".join(CHUNKS)

both_ways = pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done"])


def receive(spool: DiskSpool) -> tuple[int, Path]:
    """Receive the update, syncing after each chunk; returns where it began and the file."""
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    began = sink.received_chunks
    try:
        for index in range(began, len(CHUNKS)):
            sink.append(index, CHUNKS[index])
            if sink.sync() != index + 1:
                raise AssertionError("a synced chunk is not counted")
        return began, sink.finish()
    finally:
        sink.close()


@both_ways
def test_an_update_survives_the_failure_of_any_operation(tmp_path: Path, *, is_done: bool) -> None:
    for number in count():
        folder = tmp_path / f"{number}"
        files = FaultyFiles(fail_at=number, is_done=is_done)
        try:
            spool = DiskSpool.open_folder(folder, quota_bytes=BYTES, files=files)
            receive(spool)
        except (SpoolError, ConfigurationError):
            pass
        else:
            break
        # A new process finds what is there, and no chunk that was not the declared one.
        spool = DiskSpool.open_folder(folder, quota_bytes=BYTES)
        _, path = receive(spool)
        assert path.read_bytes() == SUM
        assert [each.name for each in path.parent.iterdir()] == ["hospital_a.update"]
    # open, three writes and syncs, rename, folders: the loop has met them all.
    assert number >= 12


@both_ways
def test_the_same_process_can_go_on_after_any_failure(tmp_path: Path, *, is_done: bool) -> None:
    for number in count(3):
        files = FaultyFiles(fail_at=number, is_done=is_done)
        spool = DiskSpool.open_folder(tmp_path / f"{number}", quota_bytes=BYTES, files=files)
        try:
            receive(spool)
        except SpoolError:
            _, path = receive(spool)
            assert path.read_bytes() == SUM
        else:
            break
    assert number >= 12


@both_ways
def test_discarding_can_be_repeated_after_any_failure(tmp_path: Path, *, is_done: bool) -> None:
    for number in range(2):
        folder = tmp_path / f"{number}"
        receive(DiskSpool.open_folder(folder, quota_bytes=BYTES))
        before = FaultyFiles()
        DiskSpool.open_folder(folder, files=before)
        files = FaultyFiles(fail_at=before.operations + number, is_done=is_done)
        spool = DiskSpool.open_folder(folder, quota_bytes=BYTES, files=files)
        with pytest.raises(SpoolError):
            spool.discard_before(RoundId(2))
        with pytest.raises(SpoolFullError):
            spool.open(RoundId(2), NODE, byte_count=BYTES, chunk_hashes=HASHES)
        spool.discard_before(RoundId(2))
        assert list(folder.iterdir()) == []
        spool.open(RoundId(2), NODE, byte_count=BYTES, chunk_hashes=HASHES).close()


def test_a_failed_sync_claims_nothing(tmp_path: Path) -> None:
    probe = FaultyFiles()
    spool = DiskSpool.open_folder(tmp_path / "probe", files=probe)
    spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES).close()
    files = FaultyFiles(fail_at=probe.operations + 3, is_done=False)
    spool = DiskSpool.open_folder(tmp_path / "spool", files=files)
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    sink.append(0, CHUNKS[0])
    assert sink.sync() == 1
    sink.append(1, CHUNKS[1])
    with pytest.raises(SpoolError):
        sink.sync()
    # Chunks that the kernel gave up on would still read back, until memory is short.
    assert (tmp_path / "spool/1/hospital_a.part").stat().st_size == CHUNK_BYTES
    with pytest.raises(SpoolError):
        sink.append(2, CHUNKS[2])
    sink.close()
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    assert sink.received_chunks == 1
    sink.close()


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (SUM[: CHUNK_BYTES + 5], 1),
        (SUM[: 2 * CHUNK_BYTES], 2),
        (SUM[:-1], 2),
        (SUM + b"x", 3),
        (b"A" + SUM[1:], 0),
        (SUM[:CHUNK_BYTES] + bytes(CHUNK_BYTES) + SUM[2 * CHUNK_BYTES :], 1),
        (b"", 0),
    ],
    ids=["partial", "whole", "last partial", "too long", "first bad", "hole", "empty"],
)
@pytest.mark.parametrize("suffix", [".part", ".update"])
def test_what_a_killed_process_left_is_cut_at_the_first_bad_chunk(
    tmp_path: Path, left: bytes, kept: int, suffix: str
) -> None:
    (tmp_path / "spool/1").mkdir(parents=True)
    (tmp_path / f"spool/1/{NODE}{suffix}").write_bytes(left)
    spool = DiskSpool.open_folder(tmp_path / "spool")
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    assert sink.received_chunks == kept
    (file,) = (tmp_path / "spool/1").iterdir()
    assert file.stat().st_size == min(kept * CHUNK_BYTES, BYTES)
    for index in range(kept, len(CHUNKS)):
        sink.append(index, CHUNKS[index])
    assert sink.finish().read_bytes() == SUM
    sink.close()


def test_reservations_of_others_count_against_the_disk(tmp_path: Path) -> None:
    disk = SmallDisk(2 * BYTES)
    spool = DiskSpool.open_folder(tmp_path / "spool", files=disk)
    first = spool.open(ROUND, NodeId("a"), byte_count=BYTES, chunk_hashes=HASHES)
    spool.open(ROUND, NodeId("b"), byte_count=BYTES, chunk_hashes=HASHES).close()
    # The part not written yet of an open update is spoken for; what is written is not.
    second = spool.open(ROUND, NodeId("b"), byte_count=BYTES, chunk_hashes=HASHES)
    with pytest.raises(SpoolFullError):
        spool.open(ROUND, NodeId("c"), byte_count=BYTES, chunk_hashes=HASHES)
    first.append(0, CHUNKS[0])
    disk.free -= CHUNK_BYTES
    with pytest.raises(SpoolFullError):
        spool.open(ROUND, NodeId("c"), byte_count=BYTES, chunk_hashes=HASHES)
    disk.free += BYTES
    spool.open(ROUND, NodeId("c"), byte_count=BYTES, chunk_hashes=HASHES).close()
    first.close()
    second.close()


def test_a_full_disk_is_told_apart(tmp_path: Path) -> None:
    spool = DiskSpool.open_folder(tmp_path / "spool", files=FullDisk())
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    with pytest.raises(SpoolFullError):
        sink.append(0, CHUNKS[0])
    assert sink.received_chunks == 0
    sink.close()


def test_nobody_else_can_read_the_spool(tmp_path: Path) -> None:
    _, path = receive(DiskSpool.open_folder(tmp_path / "spool"))
    assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0


@both_ways
def test_a_model_is_adopted_after_the_failure_of_any_operation(
    tmp_path: Path, *, is_done: bool
) -> None:
    digest = digest_of(SUM)
    for number in count():
        folder = tmp_path / f"{number}"
        FileModelStore.open(folder)
        source = folder / "incoming" / f"{digest}.safetensors"
        source.write_bytes(SUM)
        store = FileModelStore(folder, files=FaultyFiles(fail_at=number, is_done=is_done))
        try:
            store.adopt(source)
        except ModelFileError:
            assert store.has(digest) or source.exists()
            assert store.adopt(source) == digest
        else:
            break
        assert store.path(digest).read_bytes() == SUM
        assert not source.exists()
    assert number == 3


def test_what_a_failed_attempt_could_not_delete_goes_with_the_next_model(tmp_path: Path) -> None:
    store = FileModelStore.open(tmp_path / "models")
    (store.incoming / ".half.tmp").write_bytes(b"half")
    whole = store.incoming / "model"
    whole.write_bytes(b"model")
    store.adopt(whole)
    assert list(store.incoming.iterdir()) == []


def test_what_a_killed_process_was_making_is_removed(tmp_path: Path) -> None:
    store = FileModelStore.open(tmp_path / "models")
    kept = store.incoming / "model"
    kept.write_bytes(b"model")
    digest = store.adopt(kept)
    (store.incoming / "half").write_bytes(b"half")
    store = FileModelStore.open(tmp_path / "models")
    assert list(store.incoming.iterdir()) == []
    assert list(store.digests()) == [digest]


def test_a_missing_file_cannot_be_adopted(tmp_path: Path) -> None:
    store = FileModelStore.open(tmp_path / "models")
    with pytest.raises(ModelFileError):
        store.adopt(store.incoming / "nothing")


def test_another_disk_is_named_as_the_reason(tmp_path: Path) -> None:
    class OtherDisk(LocalFiles):
        def rename(self, source: Path, target: Path) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

    store = FileModelStore.open(tmp_path / "models", files=OtherDisk())
    source = tmp_path / "model"
    source.write_bytes(SUM)
    with pytest.raises(ModelFileError, match="one file system"):
        store.adopt(source)


def test_folders_are_not_made_without_a_parent(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        DiskSpool.open_folder(tmp_path / "missing/spool")
    with pytest.raises(ConfigurationError):
        FileModelStore.open(tmp_path / "missing/models")


def test_an_update_is_named_complete_only_once_it_is_durable(tmp_path: Path) -> None:
    class Recording(LocalFiles):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def sync(self, descriptor: int) -> None:
            self.calls.append("sync")
            super().sync(descriptor)

        def rename(self, source: Path, target: Path) -> None:
            self.calls.append("rename")
            super().rename(source, target)

        def sync_folder(self, path: Path) -> None:
            self.calls.append("sync folder")
            super().sync_folder(path)

    files = Recording()
    spool = DiskSpool.open_folder(tmp_path / "spool", files=files)
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    files.calls.clear()
    for index, chunk in enumerate(CHUNKS):
        sink.append(index, chunk)
    sink.finish()
    sink.close()
    assert files.calls == ["sync", "rename", "sync folder"]


def test_a_short_chunk_on_disk_is_not_resumed_though_its_hash_was_declared(tmp_path: Path) -> None:
    (tmp_path / "spool/1").mkdir(parents=True)
    (tmp_path / "spool/1/hospital_a.part").write_bytes(b"short")
    spool = DiskSpool.open_folder(tmp_path / "spool")
    declared = leaf_hash(b"short") + HASHES[32:]
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=declared)
    assert sink.received_chunks == 0
    sink.close()


def test_a_sink_that_could_not_be_opened_takes_no_room(tmp_path: Path) -> None:
    before = FaultyFiles()
    DiskSpool.open_folder(tmp_path / "spool", files=before)
    files = FaultyFiles(fail_at=before.operations)
    spool = DiskSpool.open_folder(tmp_path / "spool", quota_bytes=BYTES, files=files)
    with pytest.raises(SpoolError):
        spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    other = NodeId("hospital_b")
    spool.open(ROUND, other, byte_count=BYTES, chunk_hashes=HASHES).close()


def test_what_is_written_needs_no_room_again(tmp_path: Path) -> None:
    disk = SmallDisk(BYTES)
    spool = DiskSpool.open_folder(tmp_path / "spool", files=disk)
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    sink.append(0, CHUNKS[0])
    sink.close()
    disk.free -= CHUNK_BYTES
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    assert sink.received_chunks == 1
    sink.close()


def test_every_process_has_scratch_of_its_own_and_drops_that_of_those_before(
    tmp_path: Path,
) -> None:
    before, now = (DiskSpool.open_folder(tmp_path / "spool") for _ in range(2))
    theirs, ours = (spool.scratch(ROUND) for spool in (before, now))
    (theirs / "row").write_bytes(b"theirs")
    (ours / "row").write_bytes(b"ours")
    # One that was replaced and goes on computing.
    before.clear_scratch(ROUND)
    assert (ours / "row").read_bytes() == b"ours"
    _, path = receive(now)
    DiskSpool.open_folder(tmp_path / "spool").drop_leftovers()
    assert not ours.exists()
    assert path.exists()


def test_whoever_leads_no_more_changes_no_file(tmp_path: Path) -> None:
    leads = True
    spool = DiskSpool.open_folder(tmp_path / "spool", files=FencedFiles(lambda: leads))
    chunk = CHUNKS[2]
    sink = spool.open(ROUND, NODE, byte_count=len(chunk), chunk_hashes=leaf_hash(chunk))
    leads = False
    attempts: list[Callable[[], object]] = [
        lambda: sink.append(0, chunk),
        lambda: spool.scratch(ROUND),
        lambda: spool.open(ROUND, NodeId("other"), byte_count=BYTES, chunk_hashes=HASHES),
    ]
    for attempt in attempts:
        with pytest.raises(SpoolError, match="leads no more"):
            attempt()
    with pytest.raises(ConfigurationError, match="leads no more"):
        FileModelStore.open(tmp_path / "models", files=FencedFiles(lambda: leads))
    leads = True
    sink.append(0, chunk)
    leads = False
    with pytest.raises(SpoolError, match="leads no more"):
        sink.finish()
    assert not list((tmp_path / "spool" / str(ROUND)).glob("*.update"))
