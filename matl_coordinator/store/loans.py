"""A front end's side of the spool: the file that it was lent for one update, and others' files.

It writes to its own file alone. Whoever received the update before may be dead, or may not know yet
that it was replaced: what is there is copied, each chunk after it was compared with its declared
hash. Nothing here knows who lends.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from matl_common.ids import NodeId, RoundId
from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import HASH_BYTES
from matl_coordinator.ports import SpoolError, UpdateStatus
from matl_coordinator.store.files import LocalFiles, open_to_read
from matl_coordinator.store.sink import DiskSink, disk_error, sound_chunk
from matl_coordinator.store.spool import lent_path, parts_of


@dataclass(frozen=True, slots=True)
class Declared:
    """An update that was declared."""

    round_id: RoundId
    node_id: NodeId
    byte_count: int
    chunk_hashes: bytes

    @property
    def status(self) -> UpdateStatus:
        """It is still to be received."""
        return UpdateStatus.RECEIVING

    @property
    def chunks(self) -> int:
        """How many it has."""
        return len(self.chunk_hashes) // HASH_BYTES


class Loans:
    """The files of updates in a spool that a coordinator elsewhere decides about. Blocking."""

    def __init__(self, folder: Path, *, files: LocalFiles | None = None) -> None:
        """Use the folder that the coordinator calls ``spool``."""
        self._folder = folder
        self._files = files or LocalFiles()

    def check_round(self, round_id: RoundId) -> None:
        """Look for the folder that whoever lends makes first.

        Raises:
            SpoolError: it is not here.
        """
        if not (self._folder / str(round_id)).is_dir():
            raise SpoolError(
                f"the spool here, {self._folder}, has no folder of round {round_id}, which the "
                "coordinator has made in its own: is the shared folder mounted?"
            )

    def durable_chunks(self, update: Declared) -> int:
        """How many chunks, from the first on, are there, in whichever files; durable from now on.

        Raises:
            SpoolError: the disk failed.
        """
        with _disk_errors():
            found = 0
            for source in self._sources(update, but=None):
                begun = found
                while _chunk(source, found, update) is not None:
                    found += 1
                if found > begun:
                    self._files.sync(source)
            return found

    def open(self, update: Declared, token: str, *, chunks: int) -> DiskSink:
        """Make the lent file, with so many chunks from others' files, all of them durable.

        Raises:
            SpoolError: there are fewer, the update's round is over, or the disk failed.
        """
        path = lent_path(self._folder, update.round_id, update.node_id, token)
        with _disk_errors():
            descriptor = self._files.open(path)
            try:
                found = self._copy(update, path, descriptor, chunks)
                if found < chunks:
                    raise SpoolError(
                        f"{found} chunks are left where {chunks} were; open the update again"
                    )
                self._files.sync(descriptor)
                self._files.sync_folder(path.parent)
            except BaseException:
                os.close(descriptor)
                # It has only what others' files have.
                with suppress(OSError):
                    self._files.remove(path)
                raise
        return DiskSink(
            descriptor=descriptor,
            part=path,
            complete=path,
            byte_count=update.byte_count,
            chunk_hashes=update.chunk_hashes,
            received=found,
            is_named=True,
            files=self._files,
            on_close=lambda _: None,
        )

    def _copy(self, update: Declared, path: Path, descriptor: int, chunks: int) -> int:
        found = 0
        for source in self._sources(update, but=path):
            while found < chunks and (data := _chunk(source, found, update)) is not None:
                self._files.write(descriptor, data, offset=found * CHUNK_BYTES)
                found += 1
        return found

    def _sources(self, update: Declared, *, but: Path | None) -> Iterator[int]:
        """The files open for reading one after the other, that with the most first."""
        paths = [
            path for path in parts_of(self._folder, update.round_id, update.node_id) if path != but
        ]
        for path in sorted(paths, key=_size, reverse=True):
            with suppress(FileNotFoundError):
                descriptor = open_to_read(path)
                try:
                    yield descriptor
                finally:
                    os.close(descriptor)


def _chunk(descriptor: int, index: int, update: Declared) -> bytes | None:
    return sound_chunk(
        descriptor, index, byte_count=update.byte_count, chunk_hashes=update.chunk_hashes
    )


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.lstat().st_size
    return 0


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error("cannot use the shared spool", error) from error
