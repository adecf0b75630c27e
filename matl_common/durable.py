"""Files that are either wholly there or not there at all.

When a function here returns, the bytes and the name are on the disk: a power cut
or ``kill -9`` leaves the old file, the new file, or a stray ``.tmp``, and never a
partial file under its final name. Nothing here interprets the bytes.
"""

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from typing_extensions import Buffer

from matl_common.errors import ConfigurationError, MatlError
from matl_common.ids import Digest

PRIVATE_FILE_MODE = 0o600
_TEMPORARY_SUFFIX = ".tmp"


def write_atomically(
    path: Path, blocks: Iterable[Buffer], *, mode: int = PRIVATE_FILE_MODE
) -> Digest:
    """Replace ``path`` with the concatenated blocks, durably.

    Returns:
        SHA-256 of everything written.
    """
    with _temporary_beside(path.parent, mode=mode) as (file, temporary):
        digest = _write_and_sync(file, blocks)
        temporary.rename(path)
    fsync_directory(path.parent)
    return digest


def write_named_by_digest(
    folder: Path, blocks: Iterable[Buffer], *, suffix: str, mode: int = PRIVATE_FILE_MODE
) -> Digest:
    """Store the blocks durably as ``<folder>/<sha256><suffix>``.

    Storing the same bytes twice is harmless.
    """
    with _temporary_beside(folder, mode=mode) as (file, temporary):
        digest = _write_and_sync(file, blocks)
        temporary.rename(folder / f"{digest}{suffix}")
    fsync_directory(folder)
    return digest


def fsync_directory(folder: Path) -> None:
    """Make creations, renames and removals inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files a killed writer left in ``folder``; return how many.

    Only for the owner of the folder at start-up: a live writer's file looks the same.
    """
    leftovers = sorted(folder.glob(f".*{_TEMPORARY_SUFFIX}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


@contextmanager
def _temporary_beside(folder: Path, *, mode: int) -> Iterator[tuple[BinaryIO, Path]]:
    # The same folder, because a rename is atomic only within one file system.
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=_TEMPORARY_SUFFIX)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            yield file, temporary
    except BaseException:
        # What went wrong first is what counts; a disk that fails may not let go of the file either.
        with suppress(OSError):
            temporary.unlink()
        raise


def _write_and_sync(file: BinaryIO, blocks: Iterable[Buffer]) -> Digest:
    sha256 = hashlib.sha256()
    for block in blocks:
        sha256.update(block)
        file.write(block)
    file.flush()
    os.fsync(file.fileno())
    return Digest(sha256.hexdigest())


def lacks_room(error: BaseException | None) -> bool:
    """Whether an error came about because a disk, or its user's share of it, is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


class FolderInUseError(ConfigurationError):
    """Another process holds the folder."""


class FolderFullError(MatlError):
    """There is no room in a folder now; a later start may find some."""


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block for the folder, which exists.

    Raises:
        OSError: the folder cannot be written.
    """
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def owned_folder(folder: Path) -> Iterator[None]:
    """Hold a daemon's state folder against other processes; made where it is missing.

    Raises:
        FolderInUseError: another process holds it.
        ConfigurationError: it cannot be written.
        FolderFullError: there is no room.
    """
    make_state_folder(folder)
    with usable(folder):
        lock = (folder / "lock").open("w")
    with lock:
        try:
            # Ends with the process, however that ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderInUseError(
                f"{folder} is in use by another daemon; stop it, or give this one its own state_dir"
            ) from error
        yield


def make_state_folder(folder: Path) -> None:
    """Make a daemon's state folder, private, where it is missing.

    Raises:
        ConfigurationError: it cannot be made.
        FolderFullError: there is no room.
    """
    with usable(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Make ready a daemon's state folder; what hinders that is the operator's to mend.

    Raises:
        ConfigurationError: it cannot be used as it is.
        FolderFullError: there is no room.
    """
    try:
        yield
    except OSError as error:
        if lacks_room(error):
            raise FolderFullError(f"no room in {folder}: {error.strerror}; make some") from error
        raise ConfigurationError(
            f"cannot use {folder} as state_dir: {error.strerror}; see what is there, and who owns "
            "it"
        ) from error
