"""A disk that fails one of its operations, having done it or not."""

import errno
import os
from pathlib import Path

from matl_coordinator.store.files import LocalFiles


class FaultyFiles(LocalFiles):
    """Fails the operation of number ``fail_at``, counted from 0; all others work.

    With ``is_done`` the operation takes effect before it is reported as failed. Without,
    a failed ``sync`` loses what was written since the last one, as a disk may that
    reports an error; a failed ``write`` leaves the first half.
    """

    def __init__(self, *, fail_at: int | None = None, is_done: bool = False) -> None:
        self.operations = 0
        self._fail_at = fail_at
        self._is_done = is_done
        self._synced: dict[int, bytes] = {}

    def open(self, path: Path) -> int:
        descriptor = super().open(path)
        # What the file held before counts as durable.
        self._synced[descriptor] = _content(descriptor)
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview, *, offset: int) -> None:
        fails = self._is_failing()
        if fails and not self._is_done:
            super().write(descriptor, data[: len(data) // 2], offset=offset)
        else:
            super().write(descriptor, data, offset=offset)
        _raise_if(fails)

    def truncate(self, descriptor: int, *, size: int) -> None:
        fails = self._is_failing()
        if not fails or self._is_done:
            super().truncate(descriptor, size=size)
        _raise_if(fails)

    def sync(self, descriptor: int) -> None:
        fails = self._is_failing()
        if fails and not self._is_done:
            lost = _content(descriptor)
            kept = self._synced.get(descriptor, lost)
            # The length may be there without the bytes.
            super().write(descriptor, kept.ljust(len(lost), b"\0"), offset=0)
        else:
            super().sync(descriptor)
            self._synced[descriptor] = _content(descriptor)
        _raise_if(fails)

    def make_folder(self, path: Path) -> None:
        fails = self._is_failing()
        if not fails or self._is_done:
            super().make_folder(path)
        _raise_if(fails)

    def rename(self, source: Path, target: Path) -> None:
        fails = self._is_failing()
        if not fails or self._is_done:
            super().rename(source, target)
        _raise_if(fails)

    def remove_tree(self, path: Path) -> None:
        fails = self._is_failing()
        if not fails or self._is_done:
            super().remove_tree(path)
        _raise_if(fails)

    def sync_folder(self, path: Path) -> None:
        fails = self._is_failing()
        super().sync_folder(path)
        _raise_if(fails)

    def _is_failing(self) -> bool:
        self.operations += 1
        return self.operations - 1 == self._fail_at


class SmallDisk(LocalFiles):
    """A disk with so many bytes left, whatever is written."""

    def __init__(self, free: int) -> None:
        self.free = free

    def free_bytes(self, path: Path) -> int:
        del path
        return self.free


class FullDisk(LocalFiles):
    """A disk that takes nothing any more."""

    def write(self, descriptor: int, data: bytes | memoryview, *, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _raise_if(fails: object) -> None:
    if fails:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
