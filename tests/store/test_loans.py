"""Files of the spool that are lent: each is written by its front end alone, and taken back once."""

import os
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path

import pytest

from matl_common.ids import NodeId, RoundId
from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import leaf_hash
from matl_coordinator.ports import SpoolError, SpoolFullError
from matl_coordinator.store.files import LocalFiles
from matl_coordinator.store.loans import Declared, Loans
from matl_coordinator.store.spool import DiskSpool, lent_path

ROUND, NODE = RoundId(3), NodeId("hospital_a")
CHUNKS = (b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"c" * 10)
HASHES = b"".join(map(leaf_hash, CHUNKS))
BYTES = sum(map(len, CHUNKS))
UPDATE = Declared(ROUND, NODE, BYTES, HASHES)


@pytest.fixture
def spool(tmp_path: Path) -> DiskSpool:
    return DiskSpool.open_folder(tmp_path / "spool")


@pytest.fixture
def loans(tmp_path: Path) -> Loans:
    return Loans(tmp_path / "spool")


def lend(spool: DiskSpool) -> str:
    return spool.lend(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)


def receive(loans: Loans, token: str, *, begin: int = 0, end: int = len(CHUNKS)) -> None:
    sink = loans.open(UPDATE, token, chunks=begin)
    for index in range(begin, end):
        sink.append(index, CHUNKS[index])
    sink.sync()
    sink.close()


def test_a_loan_goes_on_with_what_another_had_and_comes_back_whole(
    spool: DiskSpool, loans: Loans, tmp_path: Path
) -> None:
    receive(loans, lend(spool), end=2)
    assert loans.durable_chunks(UPDATE) == 2
    token = lend(spool)
    receive(loans, token, begin=2)
    spool.take_back(ROUND, NODE, token)
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    assert sink.finish().read_bytes() == b"".join(CHUNKS)
    sink.close()
    assert [each.name for each in (tmp_path / "spool" / "3").iterdir()] == ["hospital_a.update"]


def test_a_front_end_that_was_replaced_writes_where_nobody_looks(
    spool: DiskSpool, loans: Loans
) -> None:
    older = loans.open(UPDATE, lend(spool), chunks=0)
    older.append(0, CHUNKS[0])
    older.sync()
    token = lend(spool)
    newer = loans.open(UPDATE, token, chunks=1)
    spool.keep_loan(ROUND, NODE, token)
    older.append(1, CHUNKS[1])
    newer.append(1, CHUNKS[1])
    newer.append(2, CHUNKS[2])
    # As after an error of its disk, which cuts off what is not durable.
    older.abandon()
    newer.sync()
    newer.close()
    spool.take_back(ROUND, NODE, token)
    assert spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES).received_chunks == 3


def test_a_damaged_chunk_is_neither_counted_nor_copied(
    spool: DiskSpool, loans: Loans, tmp_path: Path
) -> None:
    token = lend(spool)
    receive(loans, token)
    path = lent_path(tmp_path / "spool", ROUND, NODE, token)
    with path.open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(b"x")
    assert loans.durable_chunks(UPDATE) == 1
    with pytest.raises(SpoolError, match="1 chunks are left where 2 were"):
        loans.open(UPDATE, lend(spool), chunks=2)


def test_what_one_file_lacks_is_taken_from_another(
    spool: DiskSpool, loans: Loans, tmp_path: Path
) -> None:
    # Two that did not know of each other, the longer one damaged.
    first, second = lend(spool), lend(spool)
    receive(loans, first, end=2)
    path = lent_path(tmp_path / "spool", ROUND, NODE, second)
    path.write_bytes(CHUNKS[0] + bytes(CHUNK_BYTES) + CHUNKS[2])
    assert loans.durable_chunks(UPDATE) == 2
    sink = loans.open(UPDATE, lend(spool), chunks=2)
    assert sink.received_chunks == 2
    sink.close()


def test_files_of_a_hospital_whose_name_begins_alike_are_left_alone(
    spool: DiskSpool, loans: Loans, tmp_path: Path
) -> None:
    longer = Declared(ROUND, NodeId("hospital_ab"), BYTES, HASHES)
    token = spool.lend(ROUND, longer.node_id, byte_count=BYTES, chunk_hashes=HASHES)
    loans.open(longer, token, chunks=0).close()
    spool.keep_loan(ROUND, NODE, lend(spool))
    assert lent_path(tmp_path / "spool", ROUND, longer.node_id, token).exists()


def test_a_loan_that_did_not_come_back_keeps_its_room_over_a_restart(
    spool: DiskSpool, loans: Loans, tmp_path: Path
) -> None:
    receive(loans, lend(spool), end=2)
    assert spool.reserved_bytes() == BYTES
    again = DiskSpool.open_folder(tmp_path / "spool", quota_bytes=BYTES)
    assert again.reserved_bytes() == 2 * CHUNK_BYTES
    with pytest.raises(SpoolFullError):
        again.lend(ROUND, NodeId("hospital_b"), byte_count=BYTES, chunk_hashes=HASHES)
    again.discard_before(RoundId(4))
    assert again.reserved_bytes() == 0


def test_an_update_is_not_lent_or_taken_back_while_the_coordinator_receives_it(
    spool: DiskSpool, loans: Loans
) -> None:
    token = lend(spool)
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    with pytest.raises(SpoolError, match="already being received"):
        lend(spool)
    for taken in (spool.take_back, spool.keep_loan):
        with pytest.raises(SpoolError, match="already being received"):
            taken(ROUND, NODE, token)
    sink.close()


class _FullDisk(LocalFiles):
    """Has room for one chunk more."""

    def write(self, descriptor: int, data: bytes | memoryview, *, offset: int) -> None:
        if offset:
            raise OSError(ENOSPC, "No space left on device")
        super().write(descriptor, data, offset=offset)


def test_a_copy_that_does_not_fit_on_the_disk_is_not_left_there(
    spool: DiskSpool, loans: Loans, tmp_path: Path
) -> None:
    token = lend(spool)
    receive(loans, token, end=2)
    full = Loans(tmp_path / "spool", files=_FullDisk())
    with pytest.raises(SpoolFullError):
        full.open(UPDATE, lend(spool), chunks=2)
    with pytest.raises(SpoolError, match="2 chunks are left where 3 were"):
        loans.open(UPDATE, lend(spool), chunks=3)
    assert list((tmp_path / "spool" / "3").iterdir()) == [
        lent_path(tmp_path / "spool", ROUND, NODE, token)
    ]


def test_of_the_copies_of_an_update_two_stay_when_it_is_lent_once_more(
    spool: DiskSpool, loans: Loans, tmp_path: Path
) -> None:
    for chunks in (1, 2, 0, 2):
        path = lent_path(tmp_path / "spool", ROUND, NODE, lend(spool))
        path.write_bytes(b"".join(CHUNKS[:chunks]))
    lend(spool)
    found = (tmp_path / "spool" / "3").iterdir()
    assert [each.stat().st_size for each in found] == [2 * CHUNK_BYTES] * 2


class _Disk(LocalFiles):
    """Has so much room, whatever is on it."""

    free = 0

    def free_bytes(self, path: Path) -> int:
        return self.free


def test_a_loan_needs_room_for_all_of_an_update_that_is_there_in_part(tmp_path: Path) -> None:
    disk = _Disk()
    spool = DiskSpool.open_folder(tmp_path / "spool", files=disk)
    disk.free = BYTES
    sink = spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    sink.append(0, CHUNKS[0])
    sink.close()
    disk.free = BYTES - CHUNK_BYTES
    with pytest.raises(SpoolFullError):
        lend(spool)
    # The coordinator itself goes on in the file that is there.
    spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES).close()
    disk.free = BYTES
    lend(spool)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file of the coordinator's account that is none of the spool's."""
    path = tmp_path / "signing.key"
    path.write_bytes(CHUNKS[0])
    return path


def test_a_link_that_is_given_back_for_a_lent_file_changes_nothing_where_it_points(
    spool: DiskSpool, tmp_path: Path, key: Path
) -> None:
    token = lend(spool)
    lent_path(tmp_path / "spool", ROUND, NODE, token).symlink_to(key)
    spool.take_back(ROUND, NODE, token)
    with pytest.raises(SpoolError):
        spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    assert key.read_bytes() == CHUNKS[0]


@pytest.mark.parametrize("target", ["signing.key", "nothing"])
def test_a_link_in_place_of_a_complete_update_is_neither_opened_nor_read(
    spool: DiskSpool, tmp_path: Path, key: Path, target: str
) -> None:
    lend(spool)
    (tmp_path / "spool" / "3" / f"{NODE}.update").symlink_to(tmp_path / target)
    with pytest.raises(SpoolError):
        spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)
    with pytest.raises(SpoolError):
        spool.path(ROUND, NODE)
    assert key.read_bytes() == CHUNKS[0]
    assert not (tmp_path / "nothing").exists()


def test_a_pipe_or_a_link_in_the_spool_is_no_source_and_keeps_nobody_waiting(
    spool: DiskSpool, loans: Loans, tmp_path: Path, key: Path
) -> None:
    os.mkfifo(lent_path(tmp_path / "spool", ROUND, NODE, lend(spool)))
    with pytest.raises(SpoolError, match="no regular file"):
        loans.durable_chunks(UPDATE)
    lent_path(tmp_path / "spool", ROUND, NODE, "0").symlink_to(key)
    with pytest.raises(SpoolError):
        loans.open(UPDATE, "0", chunks=0)


def test_a_round_whose_folder_is_a_link_is_refused_and_left_alone(
    spool: DiskSpool, loans: Loans, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "keys"
    elsewhere.mkdir()
    (elsewhere / f"{NODE}.part").write_bytes(b"kept")
    (tmp_path / "spool" / "3").symlink_to(elsewhere)
    attempts: list[Callable[[], object]] = [
        lambda: lend(spool),
        lambda: spool.open(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES),
        lambda: spool.keep_loan(ROUND, NODE, "0"),
        lambda: spool.take_back(ROUND, NODE, "0"),
        lambda: spool.path(ROUND, NODE),
        lambda: spool.scratch(ROUND),
        lambda: loans.open(UPDATE, "0", chunks=0),
    ]
    for attempt in attempts:
        with pytest.raises(SpoolError, match="symbolic link"):
            attempt()
    spool.discard_before(RoundId(4))
    assert DiskSpool.open_folder(tmp_path / "spool").reserved_bytes() == 0
    assert [each.read_bytes() for each in elsewhere.iterdir()] == [b"kept"]


def test_nothing_is_made_for_a_round_that_is_over(
    spool: DiskSpool, loans: Loans, tmp_path: Path
) -> None:
    token = lend(spool)
    spool.discard_before(RoundId(4))
    with pytest.raises(SpoolError):
        loans.open(UPDATE, token, chunks=0)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_spool_that_is_not_the_coordinators_is_told_of_by_name(tmp_path: Path) -> None:
    loans = Loans(tmp_path)
    with pytest.raises(SpoolError, match="is the shared folder mounted"):
        loans.check_round(RoundId(7))
    (tmp_path / "7").mkdir()
    loans.check_round(RoundId(7))
