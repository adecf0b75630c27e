"""What a power cut leaves of a folder: what was flushed, and nothing else.

Stands between the code under test and the kernel's ``fsync``, and notes what each call
made durable: a file's bytes, or the names in a folder. ``after_power_cut`` builds the
folder from these notes alone, which is the harshest a file system may be.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class UnsyncedWritesAreLost:
    """Notes of everything made durable below ``root``."""

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    """By inode."""
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    """By the inode of a folder: the inode behind each name."""

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Note every flush from now on; what ``root`` holds already is durable."""
        kernel = os.fsync

        def fsync(descriptor: int) -> None:
            kernel(descriptor)
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                with os.scandir(descriptor) as entries:
                    self.names[found.st_ino] = {each.name: each.inode() for each in entries}
            else:
                self.contents[found.st_ino] = os.pread(descriptor, found.st_size, 0)

        monkeypatch.setattr(os, "fsync", fsync)

    def after_power_cut(self, into: Path) -> Path:
        """Build what is left of ``root`` in a new folder."""
        into.mkdir()
        self._build(self.root.stat().st_ino, into)
        return into

    def _build(self, inode: int, folder: Path) -> None:
        for name, behind in self.names.get(inode, {}).items():
            if behind in self.names or self._is_folder(behind):
                (folder / name).mkdir()
                self._build(behind, folder / name)
            else:
                (folder / name).write_bytes(self.contents.get(behind, b""))

    def _is_folder(self, inode: int) -> bool:
        return any(path.stat().st_ino == inode for path in self.root.rglob("*/"))
