"""What a participant's files look like after a kill."""

from pathlib import Path

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
