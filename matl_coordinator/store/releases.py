"""Published models: one folder a round, complete or not there.

    released/0003/<digest>.safetensors    the model; the same file as in the model folder, and
                                          gone once ``limits.keep_models`` does not keep it
    released/0003/entry.json              what the log says of it
    released/0003/entry.tlog-proof        that the log says it, before a quorum of hospitals
    released/0003/policy                  the keys to check that by

Nothing here knows what a proof is worth.
"""

import os
import shutil
from pathlib import Path
from typing import Self

from matl_common.durable import fsync_directory, write_atomically
from matl_common.errors import ConfigurationError
from matl_common.ids import RoundId
from matl_common.tensors import MODEL_SUFFIX
from matl_coordinator.ports import StoreError
from matl_coordinator.service.publication import Release

INDEX = "index"
_PART = ".part"
_DIGITS = 4


class ReleaseFolder:
    """A ``service.publication.Releases`` in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def open_folder(cls, folder: Path) -> Self:
        """Use ``folder``, created where it is missing inside an existing one.

        Raises:
            ConfigurationError: it cannot be created.
        """
        try:
            folder.mkdir(exist_ok=True)
            fsync_directory(folder.parent)
        except OSError as error:
            raise ConfigurationError(
                f"cannot create the folder of released models {folder}: {error.strerror}"
            ) from error
        return cls(folder)

    def newest_index(self) -> int:
        try:
            found = sorted(path for path in self._folder.iterdir() if path.name.isdecimal())
            return int((found[-1] / INDEX).read_text()) if found else -1
        except (OSError, ValueError) as error:
            raise StoreError(
                f"the folder of released models {self._folder} cannot be read: {error}"
            ) from error

    def newest_round(self) -> int:
        """The newest round whose model is published; 0 before the first.

        Raises:
            OSError: the folder cannot be read.
        """
        rounds = (int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())
        return max(rounds, default=0)

    def put_away(self, round_id: RoundId) -> None:
        """Remove a round's model and leave its proof; it may be gone already.

        Raises:
            OSError: the disk failed.
        """
        folder = self._place(round_id)
        for model in folder.glob(f"*{MODEL_SUFFIX}"):
            model.unlink(missing_ok=True)
            fsync_directory(folder)

    def _place(self, round_id: RoundId) -> Path:
        return self._folder / f"{round_id:0{_DIGITS}d}"

    def put(self, release: Release) -> None:
        final = self._place(release.round_id)
        if final.exists():
            return
        part = final.with_suffix(_PART)
        try:
            # What an earlier try left; under its final name it would be complete.
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            os.link(release.model, part / release.model.name)
            write_atomically(part / "entry.json", [release.entry])
            write_atomically(part / "entry.tlog-proof", [release.proof])
            write_atomically(part / "policy", [release.policy])
            write_atomically(part / INDEX, [f"{release.index}\n".encode()])
            fsync_directory(part)
            part.rename(final)
            fsync_directory(self._folder)
        except OSError as error:
            raise StoreError(
                f"cannot publish the model of round {release.round_id} in {self._folder}: "
                f"{error.strerror}; check the disk"
            ) from error
