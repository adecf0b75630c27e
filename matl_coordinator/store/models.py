"""Model files named by their digest.

A file under its final name is complete, durable and never changed. Nothing here
knows what a tensor is, or which model is in use.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from errno import EXDEV
from pathlib import Path
from typing import Self

from matl_common.durable import remove_leftovers
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError, MatlError
from matl_common.ids import Digest, digest_of_file, parse_digest
from matl_common.tensors import MODEL_SUFFIX
from matl_coordinator.store.files import LocalFiles

INCOMING = "incoming"


class ModelFileError(MatlError):
    """A model file could not be taken in; the store is as it was, or already holds it."""


class FileModelStore:
    """A ``ports.ModelStore`` in one folder."""

    def __init__(self, folder: Path, *, files: LocalFiles) -> None:
        self._folder = folder
        self._files = files

    @classmethod
    def open(cls, folder: Path, *, files: LocalFiles | None = None) -> Self:
        """Use ``folder``, created where it is missing inside an existing one.

        For the one process that adopts models: what an earlier one left in
        ``incoming`` is removed, since nobody will finish it.

        Raises:
            ConfigurationError: it cannot be created.
        """
        files = files or LocalFiles()
        incoming = folder / INCOMING
        try:
            files.make_folder(folder)
            files.sync_folder(folder.parent)
            if incoming.exists():
                files.remove_tree(incoming)
            files.make_folder(incoming)
        except OSError as error:
            raise ConfigurationError(
                f"cannot create the model folder {folder}: {error.strerror}"
            ) from error
        return cls(folder, files=files)

    @property
    def incoming(self) -> Path:
        return self._folder / INCOMING

    def path(self, digest: Digest) -> Path:
        return self._folder / f"{digest}{MODEL_SUFFIX}"

    def has(self, digest: Digest) -> bool:
        return self.path(digest).is_file()

    def adopt(self, source: Path) -> Digest:
        """Move a complete file in, durably; doing it twice is harmless.

        A file named by a digest must have it. Such a file that is gone has been moved
        in before, if the store holds its digest.

        Raises:
            IntegrityError: the file's name is another digest than its content's.
            ModelFileError: the file is missing, on another file system, or the disk failed.
        """
        claimed = _digest_in_name(source)
        try:
            if claimed is not None and not source.exists() and self.has(claimed):
                # An earlier call may have been cut off before this.
                self._files.sync_folder(self._folder)
                return claimed
            digest = self._sync_and_digest(source)
            if claimed not in (None, digest):
                raise IntegrityError(
                    f"{source.name} has the SHA-256 {digest}; it is damaged, make it again"
                )
            self._files.rename(source, self.path(digest))
            self._files.sync_folder(self._folder)
        except OSError as error:
            advice = "put both on one file system" if error.errno == EXDEV else "check the disk"
            raise ModelFileError(
                f"cannot move {source.name} into the model folder: {error.strerror}; {advice}"
            ) from error
        # One model is made at a time: any other half of one is from an attempt whose disk failed.
        with suppress(OSError):
            remove_leftovers(self.incoming)
        return digest

    def digests(self) -> Iterable[Digest]:
        """Digests of all models, in order; other files in the folder are passed over."""
        found = (_digest_in_name(path) for path in self._folder.iterdir())
        return sorted(digest for digest in found if digest is not None)

    def remove(self, digest: Digest) -> None:
        """Delete a model, durably; it may be gone already.

        Raises:
            OSError: the disk failed.
        """
        self.path(digest).unlink(missing_ok=True)
        self._files.sync_folder(self._folder)

    def _sync_and_digest(self, source: Path) -> Digest:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._files.sync(descriptor)
        finally:
            os.close(descriptor)
        return digest_of_file(source)


def _digest_in_name(path: Path) -> Digest | None:
    if path.suffix != MODEL_SUFFIX:
        return None
    try:
        return parse_digest(path.stem)
    except InvalidInputError:
        return None
