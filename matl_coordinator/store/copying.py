"""Files copied durably and hashed on the way, and counted. Nothing here knows what they are."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from matl_common.durable import PRIVATE_FILE_MODE, fsync_directory
from matl_common.ids import Digest
from matl_coordinator.store.files import PRIVATE_FOLDER_MODE

_BLOCK = 1 << 20


def copy_file(source: Path, target: Path) -> Digest:
    """Copy to a file that is not there yet; its content is durable, its name once its folder is.

    Returns:
        SHA-256 of what was copied.

    Raises:
        OSError: one of the two cannot be opened, read or written.
    """
    sha256 = hashlib.sha256()
    with source.open("rb") as reading:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(target, flags, PRIVATE_FILE_MODE), "wb") as writing:
            while block := reading.read(_BLOCK):
                sha256.update(block)
                writing.write(block)
            writing.flush()
            os.fsync(writing.fileno())
    return Digest(sha256.hexdigest())


def make_folders(folder: Path, *, below: Path) -> None:
    """Make a folder and those above it that are missing, durably, inside an existing one."""
    if folder != below and not folder.is_dir():
        make_folders(folder.parent, below=below)
        folder.mkdir(mode=PRIVATE_FOLDER_MODE)
        fsync_directory(folder.parent)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder that need not be there; what vanishes meanwhile is none."""
    found = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found += status.st_size if S_ISREG(status.st_mode) else 0
    return found
