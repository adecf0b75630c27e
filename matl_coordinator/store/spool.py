"""Updates on disk while a round lasts: ``<round>/<node>.part``, then ``.update``.

A chunk is checked against its declared hash once, when it is taken; after a crash
what is on disk is checked again and cut at the first chunk that does not match.
Room is reserved for whole updates before a byte is written. Nothing here decides
whether an update is wanted.

A front end that receives an update in another process is lent a file of its own for it,
``<node>.<token>.lent``, so that no two processes ever write to one file: one that was replaced
and does not know it writes where nobody looks (``store.loans``).
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import Self

from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId, RoundId
from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import HASH_BYTES
from matl_coordinator.ports import SpoolError, SpoolFullError
from matl_coordinator.store.files import LocalFiles
from matl_coordinator.store.sink import DiskSink

PART_SUFFIX = ".part"
COMPLETE_SUFFIX = ".update"
LENT_SUFFIX = ".lent"
SCRATCH_PREFIX = "scratch-"
_TOKEN_BYTES = 8
_COPIES_KEPT = 2
"""Lent files of an update beside the new one: one may be written still, one have more in it."""
DEFAULT_QUOTA_BYTES = 20 << 30

_Key = tuple[RoundId, NodeId]


class DiskSpool:
    """A ``ports.LendingSpool`` in one folder, where others write only into what they are lent.

    Safe to call from several threads.
    """

    def __init__(
        self, folder: Path, *, quota_bytes: int, reserved: dict[_Key, int], files: LocalFiles
    ) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._files = files
        self._lock = Lock()
        # Its own: a coordinator that was replaced while it computed may write there still.
        self._scratch = f"{SCRATCH_PREFIX}{token_hex(_TOKEN_BYTES)}"
        # Both guarded by _lock. Bytes that every file on disk has, or may grow to.
        self._reserved = reserved
        self._sinks: dict[_Key, DiskSink] = {}
        # The file that an update was lent out as last, while room is reserved for it.
        self._lent: dict[_Key, Path] = {}

    @classmethod
    def open_folder(
        cls,
        folder: Path,
        *,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
        files: LocalFiles | None = None,
    ) -> Self:
        """Use ``folder``, created where it is missing inside an existing one.

        What an earlier process left in it counts against the quota.

        Raises:
            ConfigurationError: the folder cannot be created or read.
        """
        files = files or LocalFiles()
        try:
            files.make_folder(folder)
            files.sync_folder(folder.parent)
            reserved: dict[_Key, int] = {}
            for key, size in _found_in(folder):
                reserved[key] = max(size, reserved.get(key, 0))
        except OSError as error:
            raise ConfigurationError(
                f"cannot use the spool folder {folder}: {error.strerror}"
            ) from error
        return cls(folder, quota_bytes=quota_bytes, reserved=reserved, files=files)

    def open(
        self, round_id: RoundId, node_id: NodeId, *, byte_count: int, chunk_hashes: bytes
    ) -> DiskSink:
        _check_declaration(byte_count, chunk_hashes)
        key = (round_id, node_id)
        # Resuming reads the whole file under the lock: a discard must not come between.
        with self._lock, _disk_errors(f"cannot open the update of {node_id}"):
            self._check_closed(key)
            before = self._reserved.get(key)
            self._reserve(key, byte_count, there=self._bytes_on_disk(key))
            try:
                sink = self._open_sink(key, byte_count, chunk_hashes)
            except BaseException:
                self._give_back(key, before)
                raise
            self._sinks[key] = sink
            return sink

    def lend(
        self, round_id: RoundId, node_id: NodeId, *, byte_count: int, chunk_hashes: bytes
    ) -> str:
        """Reserve room for an update that another process receives; the file is for it to make.

        Returns:
            The token in the file's name.

        Raises:
            SpoolError: the update is being received here, the declaration fits no update, there
                is no room, or the disk failed.
        """
        _check_declaration(byte_count, chunk_hashes)
        key, token = (round_id, node_id), token_hex(_TOKEN_BYTES)
        with self._lock, _disk_errors(f"cannot lend the update of {node_id}"):
            self._check_closed(key)
            before = self._reserved.get(key)
            self._remove_copies(key)
            # What is there already is copied.
            self._reserve(key, byte_count, there=0)
            try:
                self._make_round_folder(round_id)
            except BaseException:
                self._give_back(key, before)
                raise
            self._lent[key] = lent_path(self._folder, round_id, node_id, token)
        return token

    def keep_loan(self, round_id: RoundId, node_id: NodeId, token: str) -> None:
        """Delete an update's other files: what they held is durable in the lent one.

        Raises:
            SpoolError: the update is being received here, or the disk failed.
        """
        with self._lock, _disk_errors(f"cannot clear up after the update of {node_id}"):
            self._check_closed((round_id, node_id))
            self._remove_parts(round_id, node_id, but=token)

    def take_back(self, round_id: RoundId, node_id: NodeId, token: str) -> None:
        """Make a lent file, which its front end has closed, the one that ``open`` goes on with.

        Raises:
            SpoolError: the update is being received here, there is no such file, or the disk
                failed.
        """
        key = (round_id, node_id)
        with self._lock, _disk_errors(f"cannot take back the update of {node_id}"):
            self._check_closed(key)
            lent = lent_path(self._folder, round_id, node_id, token)
            self._files.rename(lent, self._path(round_id, node_id, PART_SUFFIX))
            self._lent.pop(key, None)
            for path in parts_of(self._folder, round_id, node_id):
                if path.suffix == LENT_SUFFIX:
                    self._files.remove(path)
            self._files.sync_folder(self._round_folder(round_id))

    def path(self, round_id: RoundId, node_id: NodeId) -> Path:
        """The complete update's file.

        Raises:
            SpoolError: it is not complete.
        """
        path = self._path(round_id, node_id, COMPLETE_SUFFIX)
        if path.is_symlink() or not path.is_file():
            raise SpoolError(f"there is no complete update of {node_id} in round {round_id}")
        return path

    def scratch(self, round_id: RoundId) -> Path:
        """An existing folder for files that can be made again, emptied by ``clear_scratch``.

        What is in it does not count against the quota.

        Raises:
            SpoolError: the disk failed.
        """
        folder = self._round_folder(round_id) / self._scratch
        with self._lock, _disk_errors("cannot make a scratch folder"):
            self._files.make_folder(folder.parent)
            self._files.make_folder(folder)
        return folder

    def clear_scratch(self, round_id: RoundId) -> None:
        """Delete the round's scratch folder, if there is one; not durable, which costs nothing.

        Raises:
            SpoolError: the disk failed.
        """
        with self._lock, _disk_errors("cannot clear a scratch folder"), suppress(FileNotFoundError):
            self._files.remove_tree(self._round_folder(round_id) / self._scratch)

    def drop_leftovers(self) -> None:
        """Delete scratch folders of earlier processes; for the one that takes updates, at start.

        Raises:
            SpoolError: the disk failed.
        """
        with self._lock, _disk_errors("cannot clear scratch folders"):
            for folder in _round_folders(self._folder):
                for scratch in folder.glob(f"{SCRATCH_PREFIX}*"):
                    self._files.remove_tree(scratch)

    def discard_before(self, round_id: RoundId) -> None:
        """Delete everything of rounds below ``round_id``, ending their open sinks.

        Raises:
            SpoolError: the disk failed; what is left still counts against the quota.
        """
        with self._lock, _disk_errors("cannot discard earlier rounds"):
            for key in [key for key in self._sinks if key[0] < round_id]:
                self._sinks.pop(key).abandon()
            for folder in _round_folders(self._folder):
                if int(folder.name) < round_id:
                    self._files.remove_tree(folder)
            self._files.sync_folder(self._folder)
            for key in [key for key in self._reserved if key[0] < round_id]:
                del self._reserved[key]
                self._lent.pop(key, None)

    def reserved_bytes(self) -> int:
        """What updates on disk take, or may grow to."""
        with self._lock:
            return sum(self._reserved.values())

    def _check_closed(self, key: _Key) -> None:
        if key in self._sinks:
            raise SpoolError(f"the update of {key[1]} is already being received")

    def _round_folder(self, round_id: RoundId) -> Path:
        return round_folder(self._folder, round_id)

    def _path(self, round_id: RoundId, node_id: NodeId, suffix: str) -> Path:
        return self._round_folder(round_id) / f"{node_id}{suffix}"

    def _reserve(self, key: _Key, byte_count: int, *, there: int) -> None:
        """Keep room for an update of which so many bytes are in the file that it is received in."""
        taken = sum(self._reserved.values()) - self._reserved.get(key, 0)
        if taken + byte_count > self._quota_bytes:
            raise SpoolFullError(
                f"an update of {byte_count} bytes does not fit: {taken} of "
                f"{self._quota_bytes} bytes of the spool are taken"
            )
        # Others' reservations that are not written yet will need this disk, too.
        outstanding = sum(sink.outstanding_bytes for sink in self._sinks.values()) + sum(
            max(0, self._reserved.get(each, 0) - _size(path))
            for each, path in self._lent.items()
            if each != key
        )
        if outstanding + byte_count - there > self._files.free_bytes(self._folder):
            raise SpoolFullError(
                f"the spool's disk has no room for an update of {byte_count} bytes"
            )
        self._reserved[key] = byte_count

    def _give_back(self, key: _Key, before: int | None) -> None:
        left = max(before or 0, self._bytes_on_disk(key))
        if left:
            self._reserved[key] = left
        else:
            del self._reserved[key]

    def _remove_copies(self, key: _Key) -> None:
        """Delete the smaller ones of an update's lent files: of front ends that were replaced."""
        lent = [path for path in parts_of(self._folder, *key) if path.suffix == LENT_SUFFIX]
        for path in sorted(lent, key=_size, reverse=True)[_COPIES_KEPT:]:
            self._files.remove(path)

    def _remove_parts(self, round_id: RoundId, node_id: NodeId, *, but: str) -> None:
        kept = lent_path(self._folder, round_id, node_id, but)
        others = [each for each in parts_of(self._folder, round_id, node_id) if each != kept]
        for path in others:
            self._files.remove(path)
        if others:
            self._files.sync_folder(self._round_folder(round_id))

    def _bytes_on_disk(self, key: _Key) -> int:
        for suffix in (PART_SUFFIX, COMPLETE_SUFFIX):
            with suppress(FileNotFoundError):
                return self._path(*key, suffix).lstat().st_size
        return 0

    def _make_round_folder(self, round_id: RoundId) -> None:
        self._files.make_folder(self._round_folder(round_id))
        # Each time: an earlier attempt may have failed between the two.
        self._files.sync_folder(self._folder)

    def _open_sink(self, key: _Key, byte_count: int, chunk_hashes: bytes) -> DiskSink:
        self._make_round_folder(key[0])
        return DiskSink.resume(
            self._path(*key, PART_SUFFIX),
            self._path(*key, COMPLETE_SUFFIX),
            byte_count=byte_count,
            chunk_hashes=chunk_hashes,
            files=self._files,
            on_close=lambda sink: self._forget(key, sink),
        )

    def _forget(self, key: _Key, sink: DiskSink) -> None:
        with self._lock:
            # A discarded sink may have a successor by now.
            if self._sinks.get(key) is sink:
                del self._sinks[key]


def round_folder(folder: Path, round_id: RoundId) -> Path:
    """Where the files of a round's updates are, in the spool's folder.

    Raises:
        SpoolError: it is a link to another place.
    """
    found = folder / str(round_id)
    if found.is_symlink():
        raise SpoolError(f"{found} is a symbolic link; look for who can write to the spool")
    return found


def lent_path(folder: Path, round_id: RoundId, node_id: NodeId, token: str) -> Path:
    """The file of a loan, in the spool's folder."""
    return round_folder(folder, round_id) / f"{node_id}.{token}{LENT_SUFFIX}"


def parts_of(folder: Path, round_id: RoundId, node_id: NodeId) -> list[Path]:
    """An update's files that are not complete, whoever writes or wrote them."""
    found = round_folder(folder, round_id).glob(f"{node_id}.*")
    return sorted(path for path in found if path.suffix in (PART_SUFFIX, LENT_SUFFIX))


def _check_declaration(byte_count: int, chunk_hashes: bytes) -> None:
    chunks = -(-byte_count // CHUNK_BYTES)
    if byte_count < 1 or len(chunk_hashes) != chunks * HASH_BYTES:
        raise SpoolError(
            f"{len(chunk_hashes)} bytes of chunk hashes do not belong to an update of "
            f"{byte_count} bytes"
        )


def _round_folders(folder: Path) -> list[Path]:
    return [
        path for path in sorted(folder.iterdir()) if path.name.isdecimal() and not path.is_symlink()
    ]


def _found_in(folder: Path) -> Iterator[tuple[_Key, int]]:
    for round_folder in _round_folders(folder):
        for path in sorted(round_folder.iterdir()):
            if path.suffix in (PART_SUFFIX, LENT_SUFFIX, COMPLETE_SUFFIX):
                name, _, _ = path.name.partition(".")
                yield (RoundId(int(round_folder.name)), NodeId(name)), path.lstat().st_size


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.lstat().st_size
    return 0


@contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpoolError(f"{what}: {error.strerror}; check the spool's disk") from error
