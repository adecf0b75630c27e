"""Merkle trees of RFC 6962, over a tree that a caller stores.

Stored is every *complete* node, addressed ``(level, index)``: leaf hashes at level
0, and at level k the root of leaves ``index * 2**k`` to ``(index + 1) * 2**k - 1``.
Such a node never changes once written, so an append-only table holds it. A tree grows
by ``grow``, which reads nothing; proofs read O(log n) nodes through ``read_node``.
Nothing here keeps state or decides what a leaf means.

Sections cited are those of RFC 6962 and RFC 9162.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest

from typing_extensions import Buffer

from matl_common.errors import IntegrityError, InvalidInputError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
MAX_TREE_SIZE = (1 << 63) - 1

NodeAddress = tuple[int, int]
ReadNode = Callable[[int, int], bytes]


def leaf_hash(entry: Buffer) -> bytes:
    """Hash of a leaf: SHA-256(0x00 ‖ entry) (RFC 6962 §2.1)."""
    # Not of the two put together: that would copy a chunk of an update.
    sha256 = hashlib.sha256(b"\x00")
    sha256.update(entry)
    return sha256.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an interior node: SHA-256(0x01 ‖ left ‖ right) (RFC 6962 §2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def merkle_root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Merkle Tree Hash of a list of leaf hashes held in memory (RFC 6962 §2.1)."""
    if not leaf_hashes:
        return EMPTY_ROOT
    level = list(leaf_hashes)
    while len(level) > 1:
        pairs = zip_longest(level[::2], level[1::2])
        # An odd last node has no sibling and moves up unchanged.
        level = [left if right is None else node_hash(left, right) for left, right in pairs]
    return level[0]


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that must be known of a tree to append to it: O(log n) hashes.

    Attributes:
        size: leaves in the tree.
        peaks: roots of the complete subtrees the tree consists of, leftmost and largest
            first, one for each set bit of ``size``.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _check_size(self.size)
        if len(self.peaks) != self.size.bit_count():
            raise InvalidInputError(
                f"a tree of {self.size} leaves has {self.size.bit_count()} peaks, "
                f"not {len(self.peaks)}"
            )

    def root(self) -> bytes:
        """Root hash of the tree (RFC 6962 §2.1)."""
        return _fold(self.peaks) if self.peaks else EMPTY_ROOT


@dataclass(frozen=True, slots=True)
class NodeRun:
    """Neighbouring nodes of one level; the first has index ``first``."""

    level: int
    first: int
    hashes: tuple[bytes, ...]


def grow(frontier: Frontier, leaf_hashes: Iterable[bytes]) -> tuple[Frontier, tuple[NodeRun, ...]]:
    """Append leaves.

    Returns:
        The grown tree's frontier, and every node the leaves complete, themselves
        included, lowest level first. Store all of them in one transaction.
    """
    hashes = tuple(leaf_hashes)
    level, first = 0, frontier.size
    peaks = dict(zip(_peak_levels(frontier.size), frontier.peaks, strict=True))
    runs: list[NodeRun] = []
    while hashes:
        runs.append(NodeRun(level, first, hashes))
        # The first needs the sibling that was here before it; the last may have none yet.
        paired = (peaks.pop(level), *hashes) if first & 1 else hashes
        if len(paired) & 1:
            peaks[level] = paired[-1]
        hashes = tuple(map(node_hash, paired[::2], paired[1::2]))
        level, first = level + 1, first >> 1
    size = frontier.size + (len(runs[0].hashes) if runs else 0)
    return Frontier(size, tuple(peaks[level] for level in _peak_levels(size))), tuple(runs)


def frontier_from(size: int, read_node: ReadNode) -> Frontier:
    """Frontier of the first ``size`` leaves of a stored tree."""
    _check_size(size)
    return Frontier(size, tuple(read_node(k, (size >> k) - 1) for k in _peak_levels(size)))


def nodes_read(compute: Callable[[ReadNode], object]) -> list[NodeAddress]:
    """The nodes a computation reads, so that a store can fetch them in one query.

    Args:
        compute: one of this module's functions with all but ``read_node`` given; which
            nodes it reads depends on sizes and indices alone, never on a hash.
    """
    addresses: dict[NodeAddress, None] = {}

    def note_address(level: int, index: int) -> bytes:
        addresses[level, index] = None
        return bytes(HASH_BYTES)

    compute(note_address)
    return list(addresses)


def root_from(size: int, read_node: ReadNode) -> bytes:
    """Root hash of the first ``size`` leaves."""
    return frontier_from(size, read_node).root()


def inclusion_proof(index: int, size: int, read_node: ReadNode) -> list[bytes]:
    """Audit path of leaf ``index`` in the tree of ``size`` leaves (RFC 6962 §2.1.1).

    Raises:
        InvalidInputError: there is no such leaf in a tree of that size.
    """
    _check_size(size)
    if not 0 <= index < size:
        raise InvalidInputError(f"there is no leaf {index} in a tree of {size} leaves")
    proof: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _largest_power_below(end - begin)
        if index < middle:
            proof.append(_range_hash(middle, end, read_node))
            end = middle
        else:
            proof.append(_range_hash(begin, middle, read_node))
            begin = middle
    # Collected from the root down; a proof is read from the leaf up.
    return proof[::-1]


def consistency_proof(old_size: int, new_size: int, read_node: ReadNode) -> list[bytes]:
    """Proof that the first ``old_size`` leaves were not changed (RFC 6962 §2.1.2).

    Raises:
        InvalidInputError: unless ``1 <= old_size <= new_size``; an empty tree is
            consistent with everything and has no proof.
    """
    _check_size(new_size)
    if not 1 <= old_size <= new_size:
        raise InvalidInputError(f"no consistency proof exists from size {old_size} to {new_size}")
    proof: list[bytes] = []
    begin, end = 0, new_size
    while end != old_size:
        middle = begin + _largest_power_below(end - begin)
        if old_size <= middle:
            proof.append(_range_hash(middle, end, read_node))
            end = middle
        else:
            proof.append(_range_hash(begin, middle, read_node))
            begin = middle
    if begin > 0:
        # The old root itself is left out only when it is a node of the new tree.
        proof.append(_range_hash(begin, end, read_node))
    return proof[::-1]


def verify_inclusion(
    *, index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes
) -> None:
    """Check an audit path (RFC 9162 §2.1.3.2).

    Args:
        index: the leaf's index.
        size: leaves in the tree.
        leaf: the leaf's hash.
        proof: the audit path, from the leaf up.
        root: the root hash of the tree.

    Raises:
        IntegrityError: the leaf is not shown to be in that tree at that index.
    """
    if not 0 <= index < size:
        raise IntegrityError(f"there is no leaf {index} in a tree of {size} leaves")
    _check_hashes(leaf, root, *proof)
    position, last = index, size - 1
    current = leaf
    for sibling in proof:
        if last == 0:
            raise IntegrityError("the inclusion proof is too long")
        if position & 1 or position == last:
            current = node_hash(sibling, current)
            position, last = _skip_lone_levels(position, last)
        else:
            current = node_hash(current, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or current != root:
        raise IntegrityError(
            f"the proof does not show leaf {index} in the tree of {size} leaves with this root"
        )


def verify_consistency(
    *, old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that one tree extends another (RFC 9162 §2.1.4.2).

    Size 0 is refused: any tree extends the empty one, so a caller treats its first
    contact on its own.

    Raises:
        IntegrityError: the new tree is not shown to begin with the old one.
    """
    if not 1 <= old_size <= new_size:
        raise IntegrityError(f"no consistency proof exists from size {old_size} to {new_size}")
    if old_size == new_size:
        if old_root != new_root:
            raise IntegrityError(f"two different roots were given for size {old_size}")
        if proof:
            raise IntegrityError("from a tree to itself there is nothing to prove")
        return
    _check_hashes(old_root, new_root, *proof)
    # Where the old tree is one complete node, the proof leaves its root out.
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not path:
        raise IntegrityError("the consistency proof is empty")
    old, new = _roots_along(path, old_size, new_size)
    if old != old_root or new != new_root:
        raise IntegrityError(
            f"the proof does not show that the tree of {new_size} leaves extends "
            f"the tree of {old_size}"
        )


def _roots_along(path: Sequence[bytes], old_size: int, new_size: int) -> tuple[bytes, bytes]:
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise IntegrityError("the consistency proof is too long")
        if position & 1 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            position, last = _skip_lone_levels(position, last)
        else:
            new = node_hash(new, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise IntegrityError("the consistency proof is too short")
    return old, new


def _skip_lone_levels(position: int, last: int) -> tuple[int, int]:
    """Climb the levels at which the node is a left child without a sibling."""
    while position and not position & 1:
        position, last = position >> 1, last >> 1
    return position, last


def _range_hash(begin: int, end: int, read_node: ReadNode) -> bytes:
    """Hash of leaves ``begin`` to ``end - 1``; ``begin`` as RFC 6962 splits a tree."""
    subtrees: list[bytes] = []
    for level in _peak_levels(end - begin):
        subtrees.append(read_node(level, begin >> level))
        begin += 1 << level
    return _fold(subtrees)


def _peak_levels(count: int) -> list[int]:
    """Levels of the complete subtrees that make up ``count`` leaves, highest first."""
    return [level for level in reversed(range(count.bit_length())) if count >> level & 1]


def _fold(subtrees: Sequence[bytes]) -> bytes:
    """Root over complete subtrees, which join from the smallest, the rightmost."""
    return reduce(lambda rest, subtree: node_hash(subtree, rest), reversed(subtrees))


def _largest_power_below(count: int) -> int:
    """The largest power of two strictly smaller than ``count``, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_TREE_SIZE:
        raise InvalidInputError(f"{size} is not a tree size")


def _check_hashes(*hashes: bytes) -> None:
    if any(len(value) != HASH_BYTES for value in hashes):
        raise IntegrityError(f"every hash of a proof has {HASH_BYTES} bytes")
