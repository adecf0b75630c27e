"""Putting vectors into a store that workers share, and taking them out again.

What is put there is a copy: the coordinator's own disk keeps every update, and whatever the
store loses is put there again. Objects are named by what is in them, so that no coordinator
that was replaced leaves anything that could be mistaken, and lie below their study's name, so
that several studies can have one store. Nothing here decides what is shared.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Final, Protocol

from matl_common.ids import RoundId, digest_of
from matl_common.tensors import hash_chunks
from matl_coordinator.aggregation.folder import FolderFiles
from matl_coordinator.aggregation.rows import Row
from matl_coordinator.aggregation.stored import SharedPlace, StoredObject, filesystem, store_errors
from matl_coordinator.ports import SharedStoreError

_NAME_CHARACTERS: Final = 16
_SCRATCH: Final = "scratch-"
_ROUND: Final = "round-"


class SharedStore:
    """One shared store, to write to. Blocking; safe to call from several threads."""

    def __init__(self, place: SharedPlace, *, federation: str, study: str) -> None:
        """Remember the place; it is not asked anything yet.

        Nothing is written or deleted there but below ``federation/study``, two names of one
        level each.

        Raises:
            ConfigurationError: what talks to such a store is not installed.
        """
        self._place = place
        self._study = f"{federation}/{study}"
        folder = place.folder
        self._files: _Files = BucketFiles(place) if folder is None else FolderFiles(folder)
        # Its own: a coordinator that was replaced while it computed may put rows there still.
        self._scratch = f"{_SCRATCH}{token_hex(8)}"

    def shared(self, row: Row, round_id: RoundId, *, chunk_hashes: bytes) -> Row:
        """The row with its copy in the store, put there if it is not.

        Args:
            row: a complete update.
            round_id: whose update it is.
            chunk_hashes: as its hospital signed them.

        Raises:
            SharedStoreError: the store does not answer, or has no room.
        """
        name = f"{row.name}-{digest_of(chunk_hashes)[:_NAME_CHARACTERS]}.update"
        return self._put(row, f"{self._of(round_id)}/{name}", chunk_hashes)

    def lent(self, row: Row, round_id: RoundId) -> Row:
        """A row of the coordinator's own with a copy in the store, until ``clear_scratch``.

        Raises:
            SharedStoreError: the store does not answer, or has no room.
        """
        hashes = b"".join(hash_chunks(row.path))
        return self._put(row, f"{self._of(round_id)}/{self._scratch}/{row.name}.f32", hashes)

    def clear_scratch(self, round_id: RoundId) -> None:
        """Delete the rows of its own that were lent in a round.

        Raises:
            SharedStoreError: the store does not answer.
        """
        self._remove(f"{self._of(round_id)}/{self._scratch}")

    def discard_before(self, round_id: RoundId) -> None:
        """Delete everything of this study's rounds below ``round_id``.

        Raises:
            SharedStoreError: the store does not answer; what is left goes the next time.
        """
        with store_errors("cannot list the rounds", self._place):
            found = self._files.names(self._study)
        for name in sorted(found):
            number = name.removeprefix(_ROUND)
            if number != name and number.isdecimal() and int(number) < round_id:
                self._remove(f"{self._study}/{name}")

    def _of(self, round_id: RoundId) -> str:
        return f"{self._study}/{_ROUND}{round_id}"

    def _put(self, row: Row, key: str, chunk_hashes: bytes) -> Row:
        size = row.path.stat().st_size
        folder = self._place.folder
        if folder is not None and not folder.is_dir():
            # Made here, it would be on this machine's disk where a mount is missing.
            raise SharedStoreError(f"there is no folder {folder} for shared updates; mount it")
        with store_errors(f"cannot put the update of {row.name}", self._place):
            if self._files.size(key) != size:
                self._files.put(row.path, key)
        stored = StoredObject(self._place, key, size, chunk_hashes)
        return Row(row.name, row.path, stored)

    def _remove(self, key: str) -> None:
        with store_errors(f"cannot delete {key}", self._place):
            self._files.remove(key)


class _Files(Protocol):
    """What a store is asked, by keys below its place."""

    def size(self, key: str) -> int | None: ...

    def put(self, source: Path, key: str) -> None: ...

    def names(self, key: str) -> list[str]: ...

    def remove(self, key: str) -> None: ...


class BucketFiles:
    """Objects below a prefix. An object is there whole or not at all, by the service itself."""

    def __init__(self, place: SharedPlace) -> None:
        self._place = place
        self._system = filesystem(place)

    def size(self, key: str) -> int | None:
        # What a listing said earlier is not what is there now.
        self._system.invalidate_cache()
        try:
            size: int = self._system.info(self._place.of(key))["size"]
        except FileNotFoundError:
            return None
        return size

    def put(self, source: Path, key: str) -> None:
        self._system.put_file(str(source), self._place.of(key))

    def names(self, key: str) -> list[str]:
        """What lies one level below a key."""
        found: list[str] = []
        with suppress(FileNotFoundError):
            found = self._system.ls(self._place.of(key), detail=False)
        return [each.rstrip("/").rpartition("/")[2] for each in found]

    def remove(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._system.rm(self._place.of(key), recursive=True)
