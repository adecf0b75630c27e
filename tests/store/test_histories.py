"""The histories of updates on disk: replaced, kept and lost as promised."""

from itertools import count
from pathlib import Path

import pytest

from matl_common.errors import ConfigurationError
from matl_common.ids import RoundId
from matl_coordinator.store.histories import FileHistories, HistoryFileError
from tests.store.faults import FaultyFiles, FullDisk

both_ways = pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done"])


def put(histories: FileHistories, number: int, data: bytes) -> None:
    histories.put(RoundId(number), data)


def before(histories: FileHistories, number: int) -> bytes | None:
    return histories.before(RoundId(number))


def test_the_newest_history_before_a_round_is_found_whatever_rounds_were_left_out(
    tmp_path: Path,
) -> None:
    histories = FileHistories.open_folder(tmp_path / "histories")
    assert before(histories, 1) is None
    put(histories, 2, b"two")
    put(histories, 10, b"ten")
    assert before(histories, 2) is None
    assert before(histories, 3) == b"two"
    assert before(histories, 10) == b"two"
    assert before(histories, 11) == b"ten"


def test_a_round_put_again_is_replaced_and_what_it_rests_on_stays(tmp_path: Path) -> None:
    histories = FileHistories.open_folder(tmp_path / "histories")
    for number in (1, 2, 3):
        put(histories, number, bytes([number]))
    put(histories, 3, b"again, and longer")
    put(histories, 3, b"again")
    assert before(histories, 3) == bytes([2])
    assert before(histories, 4) == b"again"
    names = sorted(each.name for each in (tmp_path / "histories").iterdir())
    assert names == ["2.histories", "3.histories"]


@both_ways
def test_a_history_survives_the_failure_of_any_operation(tmp_path: Path, *, is_done: bool) -> None:
    for number in count():
        folder = tmp_path / f"{number}"
        files = FaultyFiles(fail_at=number, is_done=is_done)
        try:
            histories = FileHistories.open_folder(folder, files=files)
            put(histories, 1, b"one")
            put(histories, 2, b"two" * 100)
        except (HistoryFileError, ConfigurationError):
            pass
        else:
            break
        # A new process finds whole histories or none, and goes on.
        histories = FileHistories.open_folder(folder)
        assert before(histories, 2) in (None, b"one")
        assert before(histories, 3) in (None, b"one", b"two" * 100)
        put(histories, 1, b"one")
        put(histories, 2, b"two" * 100)
        assert (before(histories, 2), before(histories, 3)) == (b"one", b"two" * 100)
    # Folders, then truncation, write, sync, rename and folder, twice: the loop met them all.
    assert number >= 12


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    put(FileHistories.open_folder(tmp_path / "histories"), 1, b"one")
    histories = FileHistories.open_folder(tmp_path / "histories", files=FullDisk())
    with pytest.raises(HistoryFileError, match="check the disk"):
        put(histories, 2, b"two")
    assert before(histories, 3) == b"one"
