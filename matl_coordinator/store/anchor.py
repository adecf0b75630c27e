"""What a coordinator last signed or said, as a file apart from the database it is about."""

from __future__ import annotations

from pathlib import Path

from matl_common.durable import write_atomically
from matl_common.tlog.checkpoint import parse_checkpoint
from matl_common.tlog.note import parse_note
from matl_coordinator.ports import StoreError

_LOG_ANCHORS = "log-checkpoint*.txt"


def anchor_files(state_dir: Path) -> list[Path]:
    """Where a coordinator's daemons, or those it had once, keep the checkpoints they signed."""
    return sorted(state_dir.glob(_LOG_ANCHORS))


def log_anchor(state_dir: Path, *, daemon: str = "") -> LogAnchor:
    """Where a coordinator keeps the last checkpoint of its log that it signed.

    ``daemon`` names the one of several daemons on ``state_dir`` that signs.
    """
    return LogAnchor(state_dir, daemon)


class LogAnchor:
    """A ``service.checkpoints.Anchor`` of one daemon, or of several that lead in turn.

    Each writes a file of its own, so that what one of them writes too late, because it was
    stopped for a while, takes nothing back; what counts is the largest checkpoint in any.
    """

    def __init__(self, folder: Path, daemon: str) -> None:
        own = f"log-checkpoint.{daemon}.txt" if daemon else "log-checkpoint.txt"
        self._folder = folder
        self._own = FileAnchor(folder / own)

    def read(self) -> bytes | None:
        """The largest checkpoint that was written.

        Raises:
            InvalidInputError: one of several files holds none.
            StoreError: one cannot be read.
        """
        found = [FileAnchor(path).read() for path in anchor_files(self._folder)]
        notes = [note for note in found if note is not None]
        return max(notes, key=_size_of) if len(notes) > 1 else next(iter(notes), None)

    def write(self, note: bytes) -> None:
        self._own.write(note)


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


def _size_of(note: bytes) -> int:
    return parse_checkpoint(parse_note(note).text).size
