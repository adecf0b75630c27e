"""Where a log can be read from: its database, or the coordinator; ``bundle`` reads exports.

All of them give the same: leaves as they are stored, nodes of the tree, and signed checkpoints.
None of them is believed; ``matl.log.verification`` checks what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from matl.audit_client import AuditClient, ReadEntry
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.tlog.leaf import Leaf, check_disclosure
from matl_common.tlog.merkle import HASH_BYTES
from matl_common.tlog.note import parse_note
from matl_common.tlog.verification import StoredLeaf
from matl_coordinator.ports import CheckpointRecord
from matl_coordinator.service.checkpoints import with_cosignatures
from matl_coordinator.store.reader import LogReader

# Leaves asked of a coordinator at once: its answers stay well below gRPC's limit of a message.
_REMOTE_PAGE = 250


class LogSource(Protocol):
    """A log to be gone over."""

    def size(self) -> int:
        """Leaves in the tree."""
        ...

    def pages(self, *, start: int = 0, end: int | None = None) -> Iterator[list[StoredLeaf]]:
        """Leaves ``start`` to ``end - 1``, in order."""
        ...

    def node(self, level: int, index: int) -> bytes:
        """One hash of the tree."""
        ...

    def notes(self) -> list[bytes]:
        """Signed checkpoints with their cosignatures, the smallest first."""
        ...


class DatabaseSource:
    """The coordinator's database, read with the right to SELECT alone."""

    def __init__(self, reader: LogReader) -> None:
        self.reader = reader
        self.size = reader.size
        self.pages = reader.pages
        self.node = reader.node

    def notes(self) -> list[bytes]:
        """Signed checkpoints with their cosignatures, the smallest first.

        Raises:
            IntegrityError: a row does not hold what its table is for.
        """
        return [_filed_note(record) for record in self.reader.checkpoints()]


def _filed_note(record: CheckpointRecord) -> bytes:
    where = f"the checkpoint filed under {record.size}"
    try:
        alone = len(parse_note(record.note).signatures)
        for node_id, line in record.cosignatures.items():
            where = f"the cosignature filed under {record.size} and {node_id}"
            added = parse_note(record.note + line).signatures[alone:]
            if len(added) != 1 or added[0].name.rpartition("/")[2] != node_id:
                raise InvalidInputError(f"it is not one line of {node_id}")
        return with_cosignatures(record).encode()
    except InvalidInputError as error:
        raise IntegrityError(f"{where}: {error}; somebody changed the table") from error


class CoordinatorSource:
    """A coordinator that answers, asked over mutual TLS."""

    def __init__(self, client: AuditClient, *, opened: bool = True) -> None:
        """``opened`` to look at what entries say as well, where the coordinator tells it."""
        self.client = client
        self._opened = opened
        self._told: dict[int, ReadEntry] = {}
        self._disclosed = False

    def size(self) -> int:
        """Leaves in the tree."""
        return self.client.read(limit=1).size

    def pages(self, *, start: int = 0, end: int | None = None) -> Iterator[list[StoredLeaf]]:
        """Leaves ``start`` to ``end - 1``, in order.

        Raises:
            IntegrityError: the coordinator sends others than it was asked for.
        """
        end = self.size() if end is None else end
        for at in range(start, end, _REMOTE_PAGE):
            wanted = range(at, min(at + _REMOTE_PAGE, end))
            answer = self.client.read(start=at, limit=len(wanted))
            _check_answer(wanted, answer.entries)
            self._disclosed = answer.disclosed
            self._told = {each.index: each for each in answer.entries}
            yield [_stored(each) for each in answer.entries]

    @property
    def discloses(self) -> bool:
        """Whether what the entries of the last page say is to be looked at."""
        return self._opened and self._disclosed

    def entry(self, index: int) -> bytes:
        """What an entry of the last page says; empty where it cannot be read.

        Raises:
            IntegrityError: the coordinator says that it is damaged.
        """
        found = self._told.get(index)
        if found is not None and found.damaged:
            raise IntegrityError(f"entry {index} is damaged: {found.damaged}")
        return b"" if found is None else found.entry

    def salt(self, index: int) -> bytes:
        """What the leaf of an entry of the last page hides what it says with."""
        return self._told[index].salt

    def disclosed(self, leaf: Leaf) -> bytes | None:
        """As ``entry``, checked against its leaf; ``None`` where it cannot be read.

        Raises:
            IntegrityError: it is damaged, or not what the leaf commits to.
        """
        said = self.entry(leaf.index)
        if not said:
            return None
        check_disclosure(leaf, salt=self._told[leaf.index].salt, plaintext=said)
        return said

    def node(self, level: int, index: int) -> bytes:
        """A coordinator gives proofs, not nodes.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError("a running coordinator gives proofs; read nodes from its database")

    def notes(self) -> list[bytes]:
        """Its newest checkpoint, and the newest that a quorum has cosigned where that is another.

        Raises:
            InvalidInputError: what it answers is none.
        """
        newest, witnessed = self.client.checkpoint().note, self.client.witnessed()
        if witnessed is None:
            return [newest]
        # Asked for afterwards: of the same one it has the cosignatures that came meanwhile.
        if parse_note(witnessed).text == parse_note(newest).text:
            return [witnessed]
        return [witnessed, newest]


def _check_answer(wanted: range, found: Sequence[ReadEntry]) -> None:
    """An answer is of exactly the entries that were asked for, in order."""
    if len(found) != len(wanted):
        raise IntegrityError(
            f"the coordinator sent {len(found)} entries, and was asked for entries {wanted[0]} to "
            f"{wanted[-1]}: it does not show its log"
        )
    for index, each in zip(wanted, found, strict=True):
        if each.index != index:
            raise IntegrityError(
                f"the coordinator sent entry {each.index} where it was asked for entry {index}: it "
                "does not show its log"
            )


def _stored(found: ReadEntry) -> StoredLeaf:
    if len(found.leaf_hash) != HASH_BYTES:
        raise IntegrityError(f"the coordinator sent entry {found.index} without its hash")
    if not found.leaf and not found.payload:
        return StoredLeaf(found.index, found.leaf_hash, None, None)
    return StoredLeaf(found.index, found.leaf_hash, found.leaf, found.payload)
