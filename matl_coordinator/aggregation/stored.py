"""Vectors in a store that several machines share, read range by range and never believed.

The store is a folder, local or NFS, or a bucket of an S3-compatible service, reached through
fsspec. Whoever may write to it can change an update after it was admitted, so every chunk is
compared with the hash its hospital signed whenever it is read. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import HASH_BYTES, leaf_hash
from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.ranges import VERIFIED_ELEMENTS, Stretch
from matl_coordinator.core.robust.selection import Float32Array
from matl_coordinator.ports import SharedStoreError

# Chunks asked for at once: enough to hide a round trip, few enough to hold.
_AT_ONCE: Final = 16
_REASON_CHARACTERS: Final = 200
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class SharedPlace:
    """Where the store is; says nothing secret, and goes to workers as it is."""

    url: str
    """``file:///folder`` or ``s3://bucket/prefix``."""
    endpoint: str = ""
    """Of a service other than Amazon's."""

    def __post_init__(self) -> None:
        """Refuse what cannot be reached, or would cross a network in the clear."""
        for what, text in (("URL", self.url), ("endpoint", self.endpoint)):
            parts = urlsplit(text)
            if "@" in parts.netloc or parts.query or parts.fragment:
                raise ConfigurationError(
                    f"the shared store's {what} holds more than a place; credentials stand in the "
                    "environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
        # What does not parse may hold a secret all the same, so no message repeats the text.
        parts = urlsplit(self.url)
        match parts.scheme:
            case "file" if not parts.netloc and parts.path.strip("/"):
                pass
            case "s3" if parts.netloc:
                pass
            case _:
                raise ConfigurationError(
                    "the URL is no shared store's: file:///folder, or s3://bucket/prefix"
                )
        if self.endpoint:
            endpoint = urlsplit(self.endpoint)
            if endpoint.scheme != "https" and endpoint.hostname not in _LOOPBACK:
                raise ConfigurationError(
                    "the shared store's endpoint is not https://: updates would cross the network "
                    "in the clear"
                )

    @property
    def root(self) -> str:
        """The URL without its scheme, as fsspec names files."""
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path}".rstrip("/")

    @property
    def folder(self) -> Path | None:
        """Where it is in this machine's files, if it is."""
        parts = urlsplit(self.url)
        return Path(parts.path) if parts.scheme == "file" else None

    def of(self, key: str) -> str:
        """The name of an object for fsspec."""
        return f"{self.root}/{key}"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One vector in the store, or a range of its chunks; flat little-endian float32."""

    place: SharedPlace
    key: str
    byte_count: int
    """Of the whole vector."""
    chunk_hashes: bytes
    """RFC 6962 leaf hashes, 32 bytes each, of the chunks from ``first_chunk`` on."""
    first_chunk: int = 0

    def part(self, stretch: Stretch) -> StoredObject:
        """The same object with no more hashes than this stretch needs."""
        first = stretch.start // VERIFIED_ELEMENTS
        last = -(-stretch.stop // VERIFIED_ELEMENTS)
        here = (first - self.first_chunk) * HASH_BYTES
        there = (last - self.first_chunk) * HASH_BYTES
        return replace(self, chunk_hashes=self.chunk_hashes[here:there], first_chunk=first)

    def hash_of(self, chunk: int) -> bytes:
        place = (chunk - self.first_chunk) * HASH_BYTES
        return self.chunk_hashes[place : place + HASH_BYTES]


class StoredRows:
    """Rows in a shared store, open for reading. Safe to call from several threads."""

    longest = VERIFIED_ELEMENTS
    """Shorter stretches would have chunks fetched and hashed more than once."""

    def __init__(self, names: Sequence[str], objects: Sequence[StoredObject]) -> None:
        if len({each.place for each in objects}) != 1:
            raise AggregationError("the rows of one pass lie in different stores")
        self._names = names
        self._objects = objects
        self._place = objects[0].place
        self._system = filesystem(self._place)

    def fill(self, buffer: Float32Array, start: int) -> None:
        """Write each row's values from coordinate ``start`` on into its row of ``buffer``."""
        for index, chunk, data in self._chunks(start, buffer.shape[1]):
            _place(data, chunk, buffer[index], start)

    def each(self, row: Float32Array, start: int) -> Iterator[Float32Array]:
        """Each row's values from ``start`` on, one after the other in the same place."""
        missing = len(row)
        for _, chunk, data in self._chunks(start, len(row)):
            missing -= _place(data, chunk, row, start)
            if not missing:
                yield row
                missing = len(row)

    def _chunks(self, start: int, length: int) -> Iterator[tuple[int, int, bytes]]:
        """Row, number and checked bytes of every chunk that the stretch touches, by rows."""
        first = start // VERIFIED_ELEMENTS
        last = -(-(start + length) // VERIFIED_ELEMENTS)
        wanted = [(row, chunk) for row in range(len(self._objects)) for chunk in range(first, last)]
        for begin in range(0, len(wanted), _AT_ONCE):
            batch = wanted[begin : begin + _AT_ONCE]
            for (row, chunk), data in zip(batch, self._fetched(batch), strict=True):
                self._check(row, chunk, data)
                yield row, chunk, data

    def _fetched(self, batch: Sequence[tuple[int, int]]) -> list[bytes]:
        names = ", ".join(sorted({self._names[row] for row, _ in batch}))
        objects = [(self._objects[row], chunk * CHUNK_BYTES) for row, chunk in batch]
        with store_errors(f"cannot read the updates of {names}", self._place):
            found: list[bytes] = self._system.cat_ranges(
                [self._place.of(each.key) for each, _ in objects],
                [offset for _, offset in objects],
                [min(offset + CHUNK_BYTES, each.byte_count) for each, offset in objects],
                on_error="raise",
            )
        return found

    def _check(self, row: int, chunk: int, data: bytes) -> None:
        if leaf_hash(data) != self._objects[row].hash_of(chunk):
            raise IntegrityError(
                f"chunk {chunk} of the update of {self._names[row]} in the shared store "
                f"{self._place.url} is not the one that was admitted; look for who can write "
                f"there, and delete {self._objects[row].key}: it is put there again"
            )


def _place(data: bytes, chunk: int, row: Float32Array, start: int) -> int:
    """Copy what a chunk has of the row's stretch; returns how many coordinates."""
    values = np.frombuffer(data, dtype="<f4")
    begin = chunk * VERIFIED_ELEMENTS
    first, last = max(start, begin), min(start + len(row), begin + len(values))
    row[first - start : last - start] = values[first - begin : last - begin]
    return last - first


@cache
def filesystem(place: SharedPlace) -> Any:
    """The fsspec file system of a store, one for a process. Credentials are the environment's.

    Raises:
        ConfigurationError: the extra that talks to it is not installed.
    """
    import fsspec

    if urlsplit(place.url).scheme == "file":
        return fsspec.filesystem("file")
    if find_spec("obstore") is None:
        raise ConfigurationError(f"{place.url} needs the extra s3: pip install matl[s3]")
    from obstore.fsspec import FsspecStore

    # Loopback alone gets here without TLS.
    is_plain = place.endpoint.startswith("http://")
    return FsspecStore(
        "s3",
        config={"endpoint": place.endpoint} if place.endpoint else {},
        client_options={"timeout": "60s", "connect_timeout": "5s", "allow_http": is_plain},
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
    )


@contextmanager
def store_errors(what: str, place: SharedPlace) -> Iterator[None]:
    """Turn whatever a file system raises into one error that says what to look at.

    Raises:
        SharedStoreError: the store did not do what was asked.
    """
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:_REASON_CHARACTERS]
        raise SharedStoreError(
            f"{what} in the shared store {place.url} ({reason}); it is tried again until the "
            "store answers"
        ) from error
