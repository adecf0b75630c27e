"""One update being received into a file.

Bytes past ``received_chunks`` may be anything, and are written over or cut off:
only chunks that matched their hash count. Nothing here knows about quotas or rounds.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from threading import Lock

from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import HASH_BYTES, leaf_hash
from matl_coordinator.ports import ChunkRefusedError, SpoolError, SpoolFullError
from matl_coordinator.store.files import LocalFiles


class DiskSink:
    """A ``ports.UpdateSink``. Safe to call from several threads."""

    def __init__(
        self,
        *,
        descriptor: int,
        part: Path,
        complete: Path,
        byte_count: int,
        chunk_hashes: bytes,
        received: int,
        is_named: bool,
        files: LocalFiles,
        on_close: "Callable[[DiskSink], None]",
    ) -> None:
        self._part = part
        self._complete = complete
        self._byte_count = byte_count
        self._chunk_hashes = chunk_hashes
        self._files = files
        self._on_close = on_close
        self._lock = Lock()
        # All guarded by _lock. Of the chunks received, the first _durable are synced.
        self._received = received
        self._durable = received
        self._descriptor: int | None = descriptor
        self._is_named = is_named

    @classmethod
    def resume(
        cls,
        part: Path,
        complete: Path,
        *,
        byte_count: int,
        chunk_hashes: bytes,
        files: LocalFiles,
        on_close: "Callable[[DiskSink], None]",
    ) -> "DiskSink":
        """Open the file, whatever an earlier process left of it.

        Raises:
            OSError: the disk failed.
        """
        is_named = os.path.lexists(complete)
        descriptor = files.open(complete if is_named else part)
        try:
            received = _matching_chunks(descriptor, byte_count, chunk_hashes)
            kept = min(received * CHUNK_BYTES, byte_count)
            if is_named and kept < byte_count:
                # Another update's, or damaged: complete is what it may not be called.
                files.rename(complete, part)
                is_named = False
            if os.fstat(descriptor).st_size != kept:
                files.truncate(descriptor, size=kept)
            # A killed process may have written these chunks without syncing them.
            files.sync(descriptor)
            files.sync_folder(part.parent)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(
            descriptor=descriptor,
            part=part,
            complete=complete,
            byte_count=byte_count,
            chunk_hashes=chunk_hashes,
            received=received,
            is_named=is_named,
            files=files,
            on_close=on_close,
        )

    @property
    def received_chunks(self) -> int:
        return self._received

    @property
    def outstanding_bytes(self) -> int:
        """What is still to be written."""
        return self._byte_count - self._bytes_of(self._received)

    def append(self, index: int, data: bytes | memoryview) -> None:
        with self._lock:
            descriptor = self._require_open()
            if index != self._received or index >= self._chunks:
                raise ChunkRefusedError(f"chunk {index} came where {self._received} is next")
            offset = index * CHUNK_BYTES
            expected = min(CHUNK_BYTES, self._byte_count - offset)
            if len(data) != expected:
                raise ChunkRefusedError(
                    f"chunk {index} has {len(data)} bytes instead of {expected}"
                )
            if leaf_hash(data) != _hash_at(self._chunk_hashes, index):
                raise ChunkRefusedError(f"chunk {index} does not match its declared hash")
            try:
                self._files.write(descriptor, data, offset=offset)
            except OSError as error:
                # What was written of it is written over by the next attempt.
                raise disk_error(f"cannot write chunk {index}", error) from error
            self._received += 1

    def sync(self) -> int:
        with self._lock:
            descriptor = self._require_open()
            with self._released_on_failure("cannot make the chunks durable"):
                self._sync(descriptor)
            return self._durable

    def finish(self) -> Path:
        with self._lock:
            descriptor = self._require_open()
            if self._received < self._chunks:
                raise SpoolError(f"{self._received} of {self._chunks} chunks have arrived")
            with self._released_on_failure("cannot complete the update"):
                self._sync(descriptor)
                if not self._is_named:
                    self._files.rename(self._part, self._complete)
                    self._is_named = True
                self._files.sync_folder(self._complete.parent)
            return self._complete

    def close(self) -> None:
        self.abandon()
        self._on_close(self)

    def abandon(self) -> None:
        """Close without telling the owner; what comes later is refused."""
        with self._lock:
            self._release()

    @property
    def _chunks(self) -> int:
        return len(self._chunk_hashes) // HASH_BYTES

    def _bytes_of(self, chunks: int) -> int:
        return min(chunks * CHUNK_BYTES, self._byte_count)

    def _require_open(self) -> int:
        if self._descriptor is None:
            raise SpoolError("this update is closed; open it again")
        return self._descriptor

    def _sync(self, descriptor: int) -> None:
        if self._durable == self._received:
            return
        try:
            self._files.sync(descriptor)
        except OSError:
            # The kernel may now hold chunks in memory that it will not write any more,
            # and they would look sound when the file is opened again.
            with suppress(OSError):
                self._files.truncate(descriptor, size=self._bytes_of(self._durable))
            raise
        self._durable = self._received

    @contextmanager
    def _released_on_failure(self, what: str) -> Iterator[None]:
        """After a failure only the disk knows what is durable; ``resume`` asks it."""
        try:
            yield
        except OSError as error:
            self._release()
            raise disk_error(what, error) from error

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def sound_chunk(
    descriptor: int, index: int, *, byte_count: int, chunk_hashes: bytes
) -> bytes | None:
    """A chunk of an update's file, if it is wholly there and is the one declared."""
    offset = index * CHUNK_BYTES
    length = min(CHUNK_BYTES, byte_count - offset)
    data = os.pread(descriptor, length, offset) if length > 0 else b""
    if not data or len(data) < length or leaf_hash(data) != _hash_at(chunk_hashes, index):
        return None
    return data


def _matching_chunks(descriptor: int, byte_count: int, chunk_hashes: bytes) -> int:
    """How many chunks, from the first on, are wholly there."""
    received = 0
    while sound_chunk(descriptor, received, byte_count=byte_count, chunk_hashes=chunk_hashes):
        received += 1
    return received


def _hash_at(chunk_hashes: bytes, index: int) -> bytes:
    return chunk_hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]


def disk_error(what: str, error: OSError) -> SpoolError:
    """A failure of the spool's disk as our own error."""
    kind = SpoolFullError if error.errno in (ENOSPC, EDQUOT) else SpoolError
    return kind(f"{what}: {error.strerror}; check the spool's disk")
