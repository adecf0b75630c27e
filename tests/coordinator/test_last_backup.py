"""When a backup was last completed, as its coordinator finds it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from matl_coordinator.last_backup import last_completed, note_completed

AT = datetime(2026, 11, 28, 23, 59, tzinfo=UTC)


def test_what_was_noted_last_is_found(tmp_path: Path) -> None:
    assert last_completed(tmp_path) is None
    note_completed(tmp_path, AT.replace(year=2025))
    note_completed(tmp_path, AT)
    assert last_completed(tmp_path) == AT


@pytest.mark.parametrize("content", [b"", b"yesterday", b"\xff", b"2026-11-28T23:59:00"])
def test_what_is_no_moment_counts_as_none(tmp_path: Path, content: bytes) -> None:
    note_completed(tmp_path, AT)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert last_completed(tmp_path) is None
