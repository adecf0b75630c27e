"""What was found in a file, for as long as nobody has written to it since.

A file of a hundred megabytes takes a tenth of a second to hash, and the same one is hashed
whenever it matters that it still is what it was. Here a file is known by its inode, its size and
the time of its last write, so that a moved one is known again and a changed one is read again.
That shows accidents and other users' doing, not those of somebody who sets a file's times.
"""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")

_Mark = tuple[int, int, int, int]


class Remembered(Generic[T]):
    """Reads files, each once until it changes. Safe to call from several threads."""

    def __init__(self, read: Callable[[Path], T], *, most: int) -> None:
        """Remember ``most`` files, the last ones read."""
        self._read = read
        self._most = most
        self._lock = Lock()
        # Guarded by _lock; in the order of reading.
        self._found: dict[_Mark, T] = {}

    def of(self, path: Path) -> T:
        """What ``read`` says of the file.

        Raises:
            OSError: there is no such file; and what ``read`` raises.
        """
        mark = _mark(path)
        with self._lock:
            if mark in self._found:
                return self._found[mark]
        found = self._read(path)
        # As it was before it was read: what was written meanwhile makes it another one.
        self._keep(mark, found)
        return found

    def take(self, path: Path, found: T) -> None:
        """Remember what ``read`` would say of a file, from whoever just wrote all of it.

        Raises:
            OSError: there is no such file.
        """
        self._keep(_mark(path), found)

    def _keep(self, mark: _Mark, found: T) -> None:
        with self._lock:
            self._found[mark] = found
            while len(self._found) > self._most:
                del self._found[next(iter(self._found))]


def _mark(path: Path) -> _Mark:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
