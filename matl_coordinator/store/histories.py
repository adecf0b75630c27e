"""What hospitals sent over all rounds, small: one file a round, ``<round>.histories``.

A file under its final name is complete and durable. Nothing here knows what is in it.
"""

import os
from pathlib import Path
from typing import Self

from matl_common.errors import ConfigurationError, MatlError
from matl_common.ids import RoundId
from matl_coordinator.store.files import LocalFiles

SUFFIX = ".histories"
PART_SUFFIX = ".part"


class HistoryFileError(MatlError):
    """A history could not be read or written; what was there before still is."""


class FileHistories:
    """A ``ports.Histories`` in one folder that nobody else uses."""

    def __init__(self, folder: Path, *, files: LocalFiles) -> None:
        self._folder = folder
        self._files = files

    @classmethod
    def open_folder(cls, folder: Path, *, files: LocalFiles | None = None) -> Self:
        """Use ``folder``, created where it is missing inside an existing one.

        Raises:
            ConfigurationError: it cannot be created.
        """
        files = files or LocalFiles()
        try:
            files.make_folder(folder)
            files.sync_folder(folder.parent)
        except OSError as error:
            raise ConfigurationError(
                f"cannot use the folder of histories {folder}: {error.strerror}"
            ) from error
        return cls(folder, files=files)

    def before(self, round_id: RoundId) -> bytes | None:
        """The newest history of a round below ``round_id``.

        Raises:
            HistoryFileError: the disk failed.
        """
        earlier = [number for number in self._rounds() if number < round_id]
        if not earlier:
            return None
        try:
            return self._path(max(earlier)).read_bytes()
        except OSError as error:
            raise self._failed("read", max(earlier), error) from error

    def put(self, round_id: RoundId, data: bytes) -> None:
        """Keep a round's history, replacing one of the same round.

        When this returns it is durable, and those that ``before(round_id)`` passes over are
        gone.

        Raises:
            HistoryFileError: the disk failed.
        """
        part = self._path(round_id).with_suffix(PART_SUFFIX)
        try:
            descriptor = self._files.open(part)
            try:
                self._files.truncate(descriptor, size=0)
                self._files.write(descriptor, data, offset=0)
                self._files.sync(descriptor)
            finally:
                os.close(descriptor)
            self._files.rename(part, self._path(round_id))
            self._files.sync_folder(self._folder)
            for number in sorted(number for number in self._rounds() if number < round_id)[:-1]:
                self._path(number).unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("write", round_id, error) from error

    def _rounds(self) -> list[int]:
        return [
            int(path.stem)
            for path in self._folder.iterdir()
            if path.suffix == SUFFIX and path.stem.isdecimal()
        ]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}{SUFFIX}"

    def _failed(self, verb: str, number: int, error: OSError) -> HistoryFileError:
        return HistoryFileError(
            f"cannot {verb} the history of round {number}: {error.strerror}; check the disk"
        )
