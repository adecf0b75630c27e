"""A folder that others write to as well: files are put there whole, and no link is followed.

Whoever may write to a shared folder can put a link where an update belongs. Below the root
every name is therefore opened in the folder that was opened before it, so that what is
written or deleted lies in the shared folder, whatever is renamed meanwhile.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from stat import S_ISDIR, S_ISREG
from typing import Final

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# As any copy, less the umask: workers read it, perhaps as somebody else.
_MODE: Final = 0o666
_BLOCK: Final = 1 << 20


class FolderFiles:
    """Files below a root that is there; keys are relative, with ``/`` between their names."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, key: str) -> int | None:
        """Bytes of a file; None for what is not there, or is no file, such as a link.

        Raises:
            OSError: the folder does not answer, or a link stands for one.
        """
        *folders, name = key.split("/")
        with suppress(FileNotFoundError), self._opened(folders) as folder:
            status = os.lstat(name, dir_fd=folder)
            return status.st_size if S_ISREG(status.st_mode) else None
        return None

    def put(self, source: Path, key: str) -> None:
        """Copy a file, in place of whatever has its name; it is there whole or not at all.

        Raises:
            OSError: the folder does not answer, has no room, or a link stands for one.
        """
        *folders, name = key.split("/")
        part = f"{name}.{token_hex(8)}.part"
        with self._opened(folders, make=True) as folder, source.open("rb") as reading:
            try:
                with os.fdopen(os.open(part, _NEW_FILE, _MODE, dir_fd=folder), "wb") as writing:
                    shutil.copyfileobj(reading, writing, _BLOCK)
                    writing.flush()
                    # Before the name: after a crash a name of the right size counts as there.
                    # A name that is lost itself is given once more.
                    os.fsync(writing.fileno())
                os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(part, dir_fd=folder)
                raise

    def names(self, key: str) -> list[str]:
        """What lies in a folder, which need not be there.

        Raises:
            OSError: the folder does not answer, or a link stands for one.
        """
        with suppress(FileNotFoundError), self._opened(key.split("/")) as folder:
            return os.listdir(folder)
        return []

    def remove(self, key: str) -> None:
        """Delete what has that name, with all that is in it; a link, and not where it leads.

        Raises:
            OSError: the folder does not answer, or a link stands for one above.
        """
        *folders, name = key.split("/")
        with suppress(FileNotFoundError), self._opened(folders) as folder:
            if S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)

    @contextmanager
    def _opened(self, folders: Sequence[str], *, make: bool = False) -> Iterator[int]:
        # The root is the operator's word, and may be a link.
        descriptor = os.open(self._root, _FOLDER)
        try:
            for name in folders:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=descriptor)
                inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)
