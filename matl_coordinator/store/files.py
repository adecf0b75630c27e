"""The file operations whose failure or success decides what is durable.

One object, so that a caller can be handed one that fails. Nothing here knows what
a file holds.
"""

import os
import shutil
import stat
from collections.abc import Callable
from errno import EINVAL, ESTALE
from pathlib import Path

from matl_common.durable import PRIVATE_FILE_MODE, fsync_directory

PRIVATE_FOLDER_MODE = 0o700


_NO_OTHER_PLACE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A file of this name or nothing: others may write to a folder, and put a link or a pipe there."""


class LocalFiles:
    """Operations on a local file system. All of them raise ``OSError``."""

    def open(self, path: Path) -> int:
        """Open for reading and writing, created empty where it is missing; never by a link."""
        return _open_regular(path, os.O_RDWR | os.O_CREAT)

    def write(self, descriptor: int, data: bytes | memoryview, *, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def truncate(self, descriptor: int, *, size: int) -> None:
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Make a file's content and length durable."""
        os.fsync(descriptor)

    def make_folder(self, path: Path) -> None:
        """Create a folder, durable once its parent is synced; it may be there already."""
        path.mkdir(mode=PRIVATE_FOLDER_MODE, exist_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there; durable once its parent is synced."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it, durable once its parent is synced."""
        shutil.rmtree(path)

    def sync_folder(self, path: Path) -> None:
        """Make creations, renames and removals inside ``path`` durable."""
        fsync_directory(path)

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process may still write to the disk that holds ``path``."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def open_to_read(path: Path) -> int:
    """Open a file that is one, and no link to one.

    Raises:
        OSError: it is missing, or is something else.
    """
    return _open_regular(path, os.O_RDONLY)


def _open_regular(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | _NO_OTHER_PLACE, PRIVATE_FILE_MODE)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(EINVAL, "it is no regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class FencedFiles(LocalFiles):
    """Changes nothing any more once somebody else may.

    Asked before every change, so that a process that was stopped for a while and goes on does not
    go on changing files. What a single change under way comes to, the stores have to stand: their
    files are named by what is in them, or hold what anybody would have written there.
    """

    def __init__(self, is_ours: Callable[[], bool]) -> None:
        self._is_ours = is_ours

    def open(self, path: Path) -> int:
        self._check()
        return super().open(path)

    def write(self, descriptor: int, data: bytes | memoryview, *, offset: int) -> None:
        self._check()
        super().write(descriptor, data, offset=offset)

    def truncate(self, descriptor: int, *, size: int) -> None:
        self._check()
        super().truncate(descriptor, size=size)

    def make_folder(self, path: Path) -> None:
        self._check()
        super().make_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self._check()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._check()
        super().remove(path)

    def remove_tree(self, path: Path) -> None:
        self._check()
        super().remove_tree(path)

    def _check(self) -> None:
        if not self._is_ours():
            raise OSError(ESTALE, "this coordinator leads no more")
