"""What a coordinator last signed or said, as a file apart from the database it is about."""

from __future__ import annotations

from pathlib import Path

from matl_common.durable import write_atomically
from matl_coordinator.ports import StoreError


def log_anchor(state_dir: Path) -> FileAnchor:
    """Where a coordinator keeps the last checkpoint of its log that it signed."""
    return FileAnchor(state_dir / "log-checkpoint.txt")


class FileAnchor:
    """A ``service.checkpoints.Anchor`` in one file."""

    def __init__(self, path: Path, *, holds: str = "the log's last checkpoint") -> None:
        self._path = path
        self._holds = holds

    def read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("read", error) from error

    def write(self, note: bytes) -> None:
        try:
            write_atomically(self._path, [note])
        except OSError as error:
            raise self._failed("write", error) from error

    def _failed(self, verb: str, error: OSError) -> StoreError:
        return StoreError(
            f"cannot {verb} {self._holds} {self._path}: {error.strerror}; "
            "check the disk and the file's owner"
        )
