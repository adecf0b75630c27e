"""Where a log can be read from: its database, an exported bundle, or the coordinator.

All of them give the same: leaves as they are stored, nodes of the tree, and signed checkpoints.
None of them is believed; ``matl.log_verification`` checks what it is given.

A bundle is a folder of C2SP tlog-tiles, which others' tools read, with two folders more::

    checkpoint                newest signed checkpoint with its cosignatures
    tile/<L>/<N>[.p/<W>]      hashes of the tree
    tile/entries/<N>[.p/<W>]  leaves
    matl/payloads/<N>         encrypted entries, each after its length in four bytes
    matl/checkpoints/<size>   every signed checkpoint
    matl/policy               the log's key, its witnesses' keys, and their quorum (tlog-policy)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from matl.audit_client import AuditClient
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.tlog.checkpoint import parse_checkpoint, parse_size
from matl_common.tlog.merkle import leaf_hash
from matl_common.tlog.note import parse_note
from matl_common.tlog.policy import Policy, encode_policy
from matl_common.tlog.tiles import (
    CHECKPOINT_PATH,
    TILE_WIDTH,
    EntryBundle,
    HashTile,
    encode_bundle,
    encode_tile,
    entry_bundles,
    hash_tiles,
    parse_bundle,
    parse_tile,
    tree_in_tiles,
)
from matl_common.tlog.verification import StoredLeaf
from matl_coordinator.service.checkpoints import with_cosignatures
from matl_coordinator.store.reader import LogReader

PAYLOADS = "matl/payloads"
CHECKPOINTS = "matl/checkpoints"
POLICY = "matl/policy"

_LENGTH_BYTES = 4
_PUBLIC = 0o644
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
        """Signed checkpoints with their cosignatures, the smallest first."""
        return [with_cosignatures(record).encode() for record in self.reader.checkpoints()]


class CoordinatorSource:
    """A coordinator that answers, asked over mutual TLS."""

    def __init__(self, client: AuditClient) -> None:
        self._client = client
        self._told: dict[int, bytes] = {}

    def size(self) -> int:
        """Leaves in the tree."""
        return self._client.read(limit=1).size

    def pages(self, *, start: int = 0, end: int | None = None) -> Iterator[list[StoredLeaf]]:
        """Leaves ``start`` to ``end - 1``, in order."""
        end = self.size() if end is None else end
        at = start
        while at < end:
            found = self._client.read(start=at, limit=min(_REMOTE_PAGE, end - at)).entries
            if not found:
                return
            self._told = {each.index: each.entry for each in found}
            yield [
                StoredLeaf(each.index, leaf_hash(each.leaf), each.leaf, each.payload)
                for each in found
            ]
            at = found[-1].index + 1

    def entry(self, index: int) -> bytes:
        """What an entry of the last page says; empty where it cannot be read."""
        return self._told.get(index, b"")

    def node(self, level: int, index: int) -> bytes:
        """A coordinator gives proofs, not nodes.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError("a running coordinator gives proofs; read nodes from its database")

    def notes(self) -> list[bytes]:
        """Its newest checkpoint."""
        return [self._client.checkpoint().note]


class BundleSource:
    """An exported bundle."""

    def __init__(self, folder: Path) -> None:
        """Read a bundle that ``export_bundle`` wrote.

        Raises:
            ConfigurationError: the folder holds none.
        """
        self._folder = folder
        try:
            note = parse_note((folder / CHECKPOINT_PATH).read_bytes())
        except (OSError, InvalidInputError) as error:
            raise ConfigurationError(f"{folder} holds no exported log; name one") from error
        self._size = parse_checkpoint(note.text).size
        self.node = tree_in_tiles(self._size, self._tile)

    def size(self) -> int:
        """Leaves in the tree."""
        return self._size

    def pages(self, *, start: int = 0, end: int | None = None) -> Iterator[list[StoredLeaf]]:
        """Leaves ``start`` to ``end - 1``, in order."""
        end = self._size if end is None else min(end, self._size)
        for bundle in entry_bundles(end):
            first = bundle.index * TILE_WIDTH
            if first + bundle.width <= start:
                continue
            page = self._bundle(bundle, first)
            yield [leaf for leaf in page if start <= leaf.index < end]

    def notes(self) -> list[bytes]:
        """Signed checkpoints with their cosignatures, the smallest first."""
        found = [*(self._folder / CHECKPOINTS).iterdir()]
        paths = sorted(found, key=lambda path: parse_size(path.name, what=f"name of {path}"))
        return [path.read_bytes() for path in paths]

    def _tile(self, tile: HashTile) -> bytes:
        try:
            return (self._folder / tile.path).read_bytes()
        except OSError as error:
            raise IntegrityError(f"the bundle lacks {tile.path}; export it again") from error

    def _bundle(self, bundle: EntryBundle, first: int) -> list[StoredLeaf]:
        whole = EntryBundle(bundle.index, min(TILE_WIDTH, self._size - first))
        tile = HashTile(0, whole.index, whole.width)
        hashes = parse_tile(self._tile(tile), width=whole.width)
        if not (self._folder / whole.path).exists():
            # Its month was dropped.
            return [StoredLeaf(first + at, value, None, None) for at, value in enumerate(hashes)]
        leaves = parse_bundle((self._folder / whole.path).read_bytes(), width=whole.width)
        payloads = _parse_payloads((self._folder / PAYLOADS / str(whole.index)).read_bytes())
        if len(payloads) != whole.width:
            raise IntegrityError(f"{PAYLOADS}/{whole.index} does not fit its leaves")
        rows = zip(hashes, leaves, payloads, strict=True)
        return [StoredLeaf(first + at, *row) for at, row in enumerate(rows)]


def export_bundle(
    source: LogSource,
    folder: Path,
    *,
    policy: Policy,
    on_progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write a log as a bundle; what a folder already holds of it is not written again.

    Leaves after the newest checkpoint are left out: nothing vouches for them yet. Bundles with a
    leaf of a dropped month are left out, too, and their hashes stay.

    Returns:
        Leaves in the bundle.

    Raises:
        ConfigurationError: the log has signed no checkpoint, or the folder cannot be written.
    """
    notes = source.notes()
    if not notes:
        raise ConfigurationError(
            "the log has signed no checkpoint yet; ask its coordinator for one: matl audit verify"
        )
    size = parse_checkpoint(parse_note(notes[-1]).text).size
    try:
        _write_leaves(source, folder, size, on_progress)
        for tile in hash_tiles(size):
            _write_once(folder / tile.path, partial(encode_tile, tile, source.node))
        for note in notes:
            name = str(parse_checkpoint(parse_note(note).text).size)
            _write(folder / CHECKPOINTS / name, note)
        _write(folder / POLICY, encode_policy(policy))
        # Last: a bundle with a checkpoint is whole.
        _write(folder / CHECKPOINT_PATH, notes[-1])
    except OSError as error:
        raise ConfigurationError(f"cannot write the bundle {folder}: {error.strerror}") from error
    return size


def _write_leaves(
    source: LogSource, folder: Path, size: int, on_progress: Callable[[int], None]
) -> None:
    held: list[StoredLeaf] = []
    bundles = iter(entry_bundles(size))
    bundle = next(bundles, None)
    for page in source.pages(end=size):
        held += page
        while bundle is not None and len(held) >= bundle.width:
            _write_bundle(folder, bundle, held[: bundle.width])
            held = held[bundle.width :]
            on_progress(bundle.width)
            bundle = next(bundles, None)


def _write_bundle(folder: Path, bundle: EntryBundle, leaves: Sequence[StoredLeaf]) -> None:
    kept = [
        (each.leaf, each.payload)
        for each in leaves
        if each.leaf is not None and each.payload is not None
    ]
    if len(kept) < len(leaves):
        return
    _write(folder / PAYLOADS / str(bundle.index), _encode_payloads([each for _, each in kept]))
    _write_once(folder / bundle.path, partial(encode_bundle, [leaf for leaf, _ in kept]))


def _write_once(path: Path, content: Callable[[], bytes]) -> None:
    # A tile's name says all that is in it; it never changes.
    if not path.exists():
        _write(path, content())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [content], mode=_PUBLIC)


def _encode_payloads(payloads: Sequence[bytes]) -> bytes:
    return b"".join(len(each).to_bytes(_LENGTH_BYTES) + each for each in payloads)


def _parse_payloads(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(data[at:begin])
        if at > len(data):
            raise IntegrityError("a file of payloads is cut short; export the log again")
        found.append(data[begin:at])
    return found
