"""What a power cut leaves of a folder: what was flushed, and nothing else.

A file's bytes last from its own flush, a name from its folder's; whatever a process finds at its
start is on the disk. This is the harshest that a file system may be, and keep its word.
"""

import os
import pickle
import shutil
import stat
from pathlib import Path


class DurableImage:
    """Notes of everything made durable below ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # By inode: a file's bytes; and, by the inode of a folder, the inode behind each name and
        # whether that was a folder, for a file may get the inode of a folder that is gone.
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        for folder, _, files in os.walk(root):
            self._note_folder(folder)
            for each in files:
                self._note_file(Path(folder, each))

    def flushed(self, descriptor: int) -> None:
        """A file or a folder was flushed."""
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._note_folder(descriptor)
        else:
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                self._contents[found.st_ino] = file.read()

    def flushed_file(self, path: Path) -> None:
        """A file was flushed, and so was its name."""
        self._note_file(path)
        inode = path.stat().st_ino
        self._names.setdefault(path.parent.stat().st_ino, {})[path.name] = (inode, False)

    def left(self) -> dict[str, bytes | None]:
        """Path below the root, and a file's bytes; ``None`` for a folder."""
        found: dict[str, bytes | None] = {}
        self._collect(self._root.stat().st_ino, "", found)
        return found

    def save(self, path: Path) -> None:
        """Write down what is left, for ``restore``."""
        path.write_bytes(pickle.dumps(self.left()))

    def _collect(self, inode: int, prefix: str, found: dict[str, bytes | None]) -> None:
        for name, (behind, is_folder) in self._names.get(inode, {}).items():
            if is_folder:
                found[f"{prefix}{name}"] = None
                self._collect(behind, f"{prefix}{name}/", found)
            else:
                found[f"{prefix}{name}"] = self._contents.get(behind, b"")

    def _note_folder(self, folder: "str | int") -> None:
        with os.scandir(folder) as entries:
            self._names[os.stat(folder).st_ino] = {
                each.name: (each.inode(), each.is_dir(follow_symlinks=False)) for each in entries
            }

    def _note_file(self, path: Path) -> None:
        self._contents[path.stat().st_ino] = path.read_bytes()


def restore(root: Path, image: Path) -> bool:
    """Give a folder the content that a power cut left, if there was one; whether there was."""
    if not image.exists():
        return False
    left: dict[str, bytes | None] = pickle.loads(image.read_bytes())  # noqa: S301 - our own
    for each in root.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()
    for name, content in left.items():
        path = root / name
        if content is None:
            path.mkdir(mode=0o700)
        else:
            path.touch(mode=0o600)
            path.write_bytes(content)
    image.unlink()
    return True
