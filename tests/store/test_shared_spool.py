"""What is in the shared store, and when."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId, RoundId
from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import leaf_hash
from matl_coordinator.aggregation import LocalExecutor, Row, aggregate_chunks
from matl_coordinator.aggregation.folder import FolderFiles
from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.aggregation.stored import SharedPlace
from matl_coordinator.core.robust.plan import Identity, Plan
from matl_coordinator.ports import SharedStoreError, UpdateSink
from matl_coordinator.store.shared import SharedSpool
from matl_coordinator.store.spool import DiskSpool

NODE = NodeId("hospital_a")
VALUES = np.arange(CHUNK_BYTES // 4 + 3, dtype="<f4")
DATA = VALUES.tobytes()
CHUNKS = (DATA[:CHUNK_BYTES], DATA[CHUNK_BYTES:])
HASHES = b"".join(map(leaf_hash, CHUNKS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mounted"
    folder.mkdir()
    return folder


def shared_store(folder: Path, *, federation: str = "eu-retina") -> SharedStore:
    return SharedStore(SharedPlace(f"file://{folder}"), federation=federation, study="dr-2026")


@pytest.fixture
def spool(tmp_path: Path, folder: Path) -> SharedSpool:
    disk = DiskSpool.open_folder(tmp_path / "spool", quota_bytes=1 << 30)
    return SharedSpool(disk, shared_store(folder))


def files_in(folder: Path) -> list[str]:
    return sorted(f"{each.relative_to(folder)}" for each in folder.rglob("*") if each.is_file())


def filled(spool: SharedSpool, number: int) -> UpdateSink:
    sink = spool.open(RoundId(number), NODE, byte_count=len(DATA), chunk_hashes=HASHES)
    for index in range(sink.received_chunks, len(CHUNKS)):
        sink.append(index, CHUNKS[index])
    return sink


def test_an_update_is_shared_once_it_is_complete_and_no_sooner(
    spool: SharedSpool, folder: Path
) -> None:
    sink = filled(spool, 1)
    sink.sync()
    assert files_in(folder) == []
    path = sink.finish()
    (name,) = files_in(folder)
    assert name.startswith("eu-retina/dr-2026/round-1/hospital_a-")
    assert (folder / name).read_bytes() == path.read_bytes() == DATA


def test_an_update_that_cannot_be_shared_is_not_finished_and_nothing_of_it_is_sent_again(
    spool: SharedSpool, folder: Path
) -> None:
    folder.rmdir()
    sink = filled(spool, 1)
    with pytest.raises(SharedStoreError, match="mount it"):
        sink.finish()
    sink.close()
    assert not folder.exists()
    folder.mkdir()
    again = spool.open(RoundId(1), NODE, byte_count=len(DATA), chunk_hashes=HASHES)
    assert again.received_chunks == len(CHUNKS)
    again.finish()
    assert len(files_in(folder)) == 1


def test_what_the_store_lost_is_put_there_again(spool: SharedSpool, folder: Path) -> None:
    path = filled(spool, 1).finish()
    (name,) = files_in(folder)
    (folder / name).unlink()
    store = shared_store(folder)
    row = store.shared(Row(NODE, path), RoundId(1), chunk_hashes=HASHES)
    assert files_in(folder) == [name]
    plan = Plan((NODE,), np.ones((1, 1)), Identity())
    found = np.concatenate(
        list(aggregate_chunks(plan, [row], elements=len(VALUES), executor=LocalExecutor()))
    )
    np.testing.assert_array_equal(found, VALUES)


def test_earlier_rounds_and_lent_rows_of_the_study_are_deleted_and_nothing_else(
    spool: SharedSpool, folder: Path
) -> None:
    for number in (1, 2, 10):
        filled(spool, number).finish()
    store = shared_store(folder)
    row = Row(NODE, spool.path(RoundId(10), NODE))
    store.lent(replace(row, name="previous"), RoundId(10))
    shared_store(folder, federation="us-retina").shared(row, RoundId(1), chunk_hashes=HASHES)
    for name in ("1/update", "eu-retina/dr-2026/1", "eu-retina/dr-2026/round-1a", "round-1/update"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("somebody else's")
    before = files_in(folder)
    store.clear_scratch(RoundId(10))
    store.clear_scratch(RoundId(10))
    spool.discard_before(RoundId(10))
    gone = set(before) - set(files_in(folder))
    assert len(gone) == 3
    for part in ("round-1/hospital_a-", "round-2/hospital_a-", "round-10/scratch-"):
        assert any(name.startswith(f"eu-retina/dr-2026/{part}") for name in gone)


@pytest.mark.hostile
def test_a_link_in_the_shared_folder_leads_nothing_that_is_written_or_deleted_out_of_it(
    spool: SharedSpool, folder: Path, tmp_path: Path
) -> None:
    row = Row(NODE, filled(spool, 1).finish())
    store = shared_store(folder)
    (name,) = files_in(folder)
    shared = folder / name
    ledger = tmp_path / "ledger"
    # The second has the right size: nothing but its being a link tells it from the update.
    for content in (b"the coordinator's own", bytes(len(DATA))):
        ledger.write_bytes(content)
        shared.unlink()
        shared.symlink_to(ledger)
        store.shared(row, RoundId(1), chunk_hashes=HASHES)
        assert ledger.read_bytes() == content
        assert not shared.is_symlink()
        assert shared.read_bytes() == DATA
    own = tmp_path / "own"
    own.mkdir()
    (own / "file").write_text("kept")
    shared.parent.rename(tmp_path / "away")
    shared.parent.symlink_to(own)
    with pytest.raises(SharedStoreError, match="cannot put the update of hospital_a"):
        store.shared(row, RoundId(1), chunk_hashes=HASHES)
    store.discard_before(RoundId(2))
    assert files_in(own) == ["file"]
    assert not shared.parent.is_symlink()


def test_a_copy_that_breaks_off_leaves_nothing_in_the_shared_folder(folder: Path) -> None:
    # Opens, and cannot be read.
    with pytest.raises(OSError, match="Input/output"):
        FolderFiles(folder).put(Path("/proc/self/mem"), "1/update")
    assert files_in(folder) == []


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("", ""),
        ("/mnt/updates", ""),
        ("file://host/folder", ""),
        ("file:///", ""),
        ("s3://", ""),
        ("https://bucket/prefix", ""),
        ("s3://key:topsecret@bucket/prefix", ""),
        ("key:topsecret@bucket/prefix", ""),
        ("s3://bucket/prefix?topsecret=1", ""),
        ("file:///mnt/updates#topsecret", ""),
        ("s3://bucket", "http://store.internal:9000"),
        ("s3://bucket", "store.internal:9000"),
        ("s3://bucket", "https://key:topsecret@store.internal"),
        ("s3://bucket", "http://key:topsecret@store.internal"),
        ("s3://bucket", "key:topsecret@store.internal"),
        ("s3://bucket", "https://store.internal?key=topsecret"),
        ("s3://bucket", "https://store.internal#topsecret"),
    ],
)
def test_a_place_that_is_none_or_is_in_the_clear_or_holds_a_secret_is_refused_without_the_secret(
    url: str, endpoint: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SharedPlace(url, endpoint)
    assert "topsecret" not in str(refused.value)


def test_a_bucket_may_have_a_prefix_and_an_endpoint_with_tls_or_on_this_machine() -> None:
    assert SharedPlace("s3://bucket/a/b/").of("1/x") == "bucket/a/b/1/x"
    for endpoint in ("https://store.internal:9000", "http://127.0.0.1:9000"):
        SharedPlace("s3://bucket", endpoint)
