from __future__ import annotations

import os
from pathlib import Path

import pytest

from matl_common.remembered import Remembered


class Reader:
    """Reads files, and notes which."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, path: Path) -> bytes:
        self.read.append(path.name)
        return path.read_bytes()


def test_a_file_is_read_once_also_after_it_was_moved(tmp_path: Path) -> None:
    reader, file = Reader(), tmp_path / "a"
    remembered = Remembered(reader, most=4)
    file.write_bytes(b"one")
    assert remembered.of(file) == b"one"
    assert remembered.of(file.rename(tmp_path / "b")) == b"one"
    assert reader.read == ["a"]


def test_a_file_that_was_written_to_is_read_again(tmp_path: Path) -> None:
    reader, file = Reader(), tmp_path / "a"
    remembered = Remembered(reader, most=4)
    file.write_bytes(b"one")
    remembered.of(file)
    # As long as before, in place, and a moment later.
    file.write_bytes(b"two")
    later = file.stat().st_mtime_ns + 1
    os.utime(file, ns=(later, later))
    assert remembered.of(file) == b"two"


def test_another_file_of_the_same_name_is_read(tmp_path: Path) -> None:
    reader, file = Reader(), tmp_path / "a"
    remembered = Remembered(reader, most=4)
    file.write_bytes(b"one")
    remembered.of(file)
    other = tmp_path / "other"
    other.write_bytes(b"two")
    times = file.stat().st_mtime_ns
    os.utime(other, ns=(times, times))
    assert remembered.of(other.rename(file)) == b"two"


def test_what_is_written_while_it_is_read_does_not_pass_for_what_was_read(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")

    def read(path: Path) -> bytes:
        found = path.read_bytes()
        path.write_bytes(b"longer")
        return found

    remembered = Remembered(read, most=4)
    assert remembered.of(file) == b"one"
    assert remembered.of(file) == b"longer"


def test_the_oldest_is_forgotten(tmp_path: Path) -> None:
    reader = Reader()
    remembered = Remembered(reader, most=2)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
        remembered.of(tmp_path / name)
    remembered.of(tmp_path / "c")
    remembered.of(tmp_path / "a")
    assert reader.read == ["a", "b", "c", "a"]


def test_a_missing_file_is_an_error_also_where_it_was_known(tmp_path: Path) -> None:
    file = tmp_path / "a"
    remembered = Remembered(Reader(), most=2)
    file.write_bytes(b"one")
    remembered.of(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        remembered.of(file)


def test_who_wrote_a_file_may_say_what_is_in_it_until_it_changes(tmp_path: Path) -> None:
    reader, file = Reader(), tmp_path / "a"
    remembered = Remembered(reader, most=2)
    file.write_bytes(b"one")
    remembered.take(file, b"one")
    assert remembered.of(file) == b"one"
    assert reader.read == []
    file.write_bytes(b"three")
    assert remembered.of(file) == b"three"
