"""A log exported as files, which anyone reads and verifies without its coordinator.

A bundle is a folder of C2SP tlog-tiles, which others' tools read, with a folder more::

    checkpoint                newest signed checkpoint with its cosignatures
    tile/<L>/<N>[.p/<W>]      hashes of the tree
    tile/entries/<N>[.p/<W>]  leaves, where all of the 256 are there
    matl/leaves/<N>           leaves, where some were dropped: each after its length in four bytes,
                              which is 0 for one that is gone
    matl/payloads/<N>         encrypted entries, in the same form
    matl/checkpoints/<size>   every signed checkpoint
    matl/policy               the log's key, its witnesses' keys, and their quorum (tlog-policy)

C2SP entry bundles have no gaps, so others' tools see a pruned log: they find no bundle for 256
leaves of which some were dropped. Nothing here is believed; ``matl.log.verification`` checks it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from matl.log.sources import LogSource
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.tlog.checkpoint import parse_checkpoint
from matl_common.tlog.merkle import NodeRun
from matl_common.tlog.note import parse_note
from matl_common.tlog.policy import Policy, encode_policy
from matl_common.tlog.tiles import (
    CHECKPOINT_PATH,
    TILE_LEVELS,
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
from matl_common.tlog.verification import StoredLeaf, check_nodes

LEAVES = "matl/leaves"
PAYLOADS = "matl/payloads"
CHECKPOINTS = "matl/checkpoints"
POLICY = "matl/policy"

_LENGTH_BYTES = 4
_NUMBER = re.compile("0|[1-9][0-9]*", re.ASCII)
_PUBLIC = 0o644


class BundleSource:
    """An exported bundle."""

    def __init__(self, folder: Path) -> None:
        """Read a bundle that ``export_bundle`` wrote.

        Raises:
            ConfigurationError: the folder holds none.
        """
        self._folder = folder
        try:
            self._note = (folder / CHECKPOINT_PATH).read_bytes()
            note = parse_note(self._note)
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
        """Signed checkpoints with their cosignatures, the smallest first.

        The one that says how large the bundle is comes last, unless it is among the others.

        Raises:
            IntegrityError: none is there.
        """
        folder = self._folder / CHECKPOINTS
        # Others put files of their own into every folder.
        found = [path for path in folder.glob("*") if _NUMBER.fullmatch(path.name)]
        if not found:
            raise IntegrityError(f"the bundle lacks {CHECKPOINTS}; export it again")
        notes = [path.read_bytes() for path in sorted(found, key=lambda path: int(path.name))]
        return notes if self._note in notes else [*notes, self._note]

    def check_tiles(self, computed: Iterable[NodeRun]) -> None:
        """Compare the tiles above the leaves' hashes with the nodes that the leaves give.

        Args:
            computed: all nodes of these levels, in order; others are passed over.

        Raises:
            LogDamagedError: one is not what they give.
            IntegrityError, InvalidInputError: one is not there, or is none.
        """
        nodes: dict[int, list[bytes]] = {}
        for run in computed:
            nodes.setdefault(run.level, []).extend(run.hashes)
        for tile in hash_tiles(self._size):
            if tile.level == 0:
                continue
            level, first = tile.level * TILE_LEVELS, tile.index * TILE_WIDTH
            given = parse_tile(self._tile(tile), width=tile.width)
            expected = tuple(nodes[level][first : first + tile.width])
            check_nodes([NodeRun(level, first, expected)], [NodeRun(level, first, given)])

    def _tile(self, tile: HashTile) -> bytes:
        try:
            return (self._folder / tile.path).read_bytes()
        except OSError as error:
            raise IntegrityError(f"the bundle lacks {tile.path}; export it again") from error

    def _bundle(self, bundle: EntryBundle, first: int) -> list[StoredLeaf]:
        whole = EntryBundle(bundle.index, min(TILE_WIDTH, self._size - first))
        tile = HashTile(0, whole.index, whole.width)
        hashes = parse_tile(self._tile(tile), width=whole.width)
        rows = zip(hashes, self._leaves(whole), self._payloads(whole), strict=True)
        found = [StoredLeaf(first + at, *row) for at, row in enumerate(rows)]
        for each in found:
            if each.leaf and not each.payload:
                raise IntegrityError(f"the bundle lacks the payload of entry {each.index}")
        return [each if each.leaf else each._replace(leaf=None, payload=None) for each in found]

    def _leaves(self, bundle: EntryBundle) -> Sequence[bytes]:
        """The leaves of a bundle; one that was dropped is empty, which no leaf is."""
        whole, some = self._folder / bundle.path, self._folder / LEAVES / str(bundle.index)
        if whole.exists():
            return parse_bundle(whole.read_bytes(), width=bundle.width)
        return _parse_lengths(some.read_bytes(), bundle) if some.exists() else _none(bundle)

    def _payloads(self, bundle: EntryBundle) -> Sequence[bytes]:
        path = self._folder / PAYLOADS / str(bundle.index)
        return _parse_lengths(path.read_bytes(), bundle) if path.exists() else _none(bundle)


def export_bundle(
    source: LogSource,
    folder: Path,
    *,
    policy: Policy,
    on_progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write a log as a bundle; what a folder already holds of it is not written again.

    Leaves after the newest checkpoint are left out: nothing vouches for them yet. Of a month that
    was dropped the hashes stay; leaves and payloads that the folder holds of it are deleted.

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
    kept = [each.leaf or b"" for each in leaves]
    payloads = [each.payload or b"" for each in leaves]
    some, sealed = folder / LEAVES / str(bundle.index), folder / PAYLOADS / str(bundle.index)
    if all(kept):
        _write(sealed, _encode_lengths(payloads))
        _write_once(folder / bundle.path, partial(encode_bundle, kept))
        return
    _forget(folder, bundle)
    if any(kept):
        _write(some, _encode_lengths(kept))
        _write(sealed, _encode_lengths(payloads))
    else:
        some.unlink(missing_ok=True)
        sealed.unlink(missing_ok=True)


def _forget(folder: Path, bundle: EntryBundle) -> None:
    """Delete leaves of a bundle as it was exported before, whole and in every smaller width."""
    whole = folder / EntryBundle(bundle.index).path
    whole.unlink(missing_ok=True)
    partial_widths = whole.with_name(f"{whole.name}.p")
    if partial_widths.exists():
        shutil.rmtree(partial_widths)


def _write_once(path: Path, content: Callable[[], bytes]) -> None:
    # A tile's name says all that is in it; it never changes.
    if not path.exists():
        _write(path, content())


def _write(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [content], mode=_PUBLIC)


def _encode_lengths(parts: Sequence[bytes]) -> bytes:
    return b"".join(len(each).to_bytes(_LENGTH_BYTES) + each for each in parts)


def _parse_lengths(data: bytes, bundle: EntryBundle) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(data[at:begin])
        if at > len(data):
            raise IntegrityError("a file of the bundle is cut short; export the log again")
        found.append(data[begin:at])
    if len(found) != bundle.width:
        raise IntegrityError(
            f"a file of bundle {bundle.index} holds {len(found)} parts, not {bundle.width}; export "
            "the log again"
        )
    return found


def _none(bundle: EntryBundle) -> Sequence[bytes]:
    return [b""] * bundle.width
