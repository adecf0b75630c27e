"""A file is wholly there or not there."""

import errno
import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from matl_common.durable import (
    FolderFullError,
    owned_folder,
    remove_leftovers,
    usable,
    write_atomically,
    write_named_by_digest,
)
from matl_common.errors import ConfigurationError


def blocks_that_fail() -> Iterator[bytes]:
    yield b"half"
    raise OSError("the disk is gone")


def test_a_write_replaces_the_file_and_returns_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    digest = write_atomically(path, [b"new ", memoryview(b"content")])
    assert path.read_bytes() == b"new content"
    assert digest == hashlib.sha256(b"new content").hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="the disk is gone"):
        write_atomically(path, blocks_that_fail())
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_write_whose_half_file_cannot_be_deleted_either_says_what_failed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, *, missing_ok: bool = False) -> None:
        raise OSError("nothing is deleted here")

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write_atomically(tmp_path / "file", blocks_that_fail())


def test_a_file_is_private_unless_asked_otherwise(tmp_path: Path) -> None:
    write_atomically(tmp_path / "private", [b""])
    write_atomically(tmp_path / "public", [b""], mode=0o644)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "public")]
    assert modes == [0o600, 0o644]


def test_a_file_is_stored_under_its_digest_any_number_of_times(tmp_path: Path) -> None:
    first = write_named_by_digest(tmp_path, [b"ab", b"c"], suffix=".bin")
    assert first == write_named_by_digest(tmp_path, [b"abc"], suffix=".bin")
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{first}.bin"]


def test_what_a_killed_writer_left_is_removed_and_counted(tmp_path: Path) -> None:
    (tmp_path / ".abc.tmp").write_bytes(b"half")
    (tmp_path / "kept").write_bytes(b"whole")
    assert remove_leftovers(tmp_path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_used_is_told_from_one_without_room(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigurationError, match="see what is there"),
        owned_folder(tmp_path / "file" / "state"),
    ):
        pass
    with pytest.raises(FolderFullError, match="no room in"), usable(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
