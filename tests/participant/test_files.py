"""What a participant's files look like after a kill."""

import errno
import os
from pathlib import Path

import pytest

from matl_common.ids import RoundId
from matl_participant.files import StateFolder


def test_a_killed_writers_half_file_is_removed_from_every_folder_of_a_study(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with state.owned():
        study = state.study("s")
        folders = (state.path, state.models, study.path, *filter(Path.is_dir, study.path.iterdir()))
        for folder in folders:
            (folder / ".half.tmp").write_bytes(b"half")
    with state.owned():
        state.study("s")
        assert list(state.path.rglob("*.tmp")) == []


def test_a_sealed_file_that_cannot_be_deleted_keeps_no_other_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateFolder(tmp_path / "state")
    unlink = Path.unlink
    with state.owned():
        study = state.study("s")
        files = [study.update(RoundId(number)) for number in (1, 2, 3)]
        for file in files:
            file.write_bytes(b"sealed")
        first = next(study.sealed.iterdir())

        def fail(self: Path, *, missing_ok: bool = False) -> None:
            if self == first:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            unlink(self, missing_ok=missing_ok)

        with monkeypatch.context() as failing:
            failing.setattr(Path, "unlink", fail)
            with pytest.raises(OSError, match="Input/output error"):
                study.discard_others(None)
        assert list(study.sealed.iterdir()) == [first]
        study.discard_others(None)
        assert list(study.sealed.iterdir()) == []
