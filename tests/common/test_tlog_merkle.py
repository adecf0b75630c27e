"""Trees, proofs and their verifiers."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    NodeAddress,
    ReadNode,
    consistency_proof,
    frontier_from,
    grow,
    inclusion_proof,
    leaf_hash,
    merkle_root,
    node_hash,
    nodes_read,
    root_from,
    verify_consistency,
    verify_inclusion,
)

DEFAULT_VECTORS = Path(__file__).parents[2] / ".." / "shared" / "vectors"
VECTORS = Path(os.environ.get("MATL_VECTORS", DEFAULT_VECTORS)) / "rfc6962"
needs_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason=f"no RFC 6962 vectors in {VECTORS}; set MATL_VECTORS"
)
LARGEST = 130


def leaves(size: int) -> list[bytes]:
    return [leaf_hash(number.to_bytes(4)) for number in range(size)]


class StoredTree:
    """Nodes as a table would hold them, written once, with a count of the reads."""

    def __init__(self, size: int) -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.reads = 0
        for number, leaf in enumerate(leaves(size)):
            _, runs = grow(frontier_from(number, self.read), [leaf])
            for run in runs:
                address = (run.level, run.first)
                assert address not in self.nodes
                (self.nodes[address],) = run.hashes
        self.reads = 0

    def read(self, level: int, index: int) -> bytes:
        self.reads += 1
        return self.nodes[level, index]


TREE = StoredTree(LARGEST)


def split(count: int) -> int:
    """Written as the RFC words it: the largest power of two smaller than ``count``."""
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def defined_root(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962 §2.1."""
    if len(hashes) <= 1:
        return hashes[0] if hashes else EMPTY_ROOT
    k = split(len(hashes))
    return node_hash(defined_root(hashes[:k]), defined_root(hashes[k:]))


def defined_path(m: int, hashes: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962 §2.1.1."""
    if len(hashes) == 1:
        return []
    k = split(len(hashes))
    if m < k:
        return [*defined_path(m, hashes[:k]), defined_root(hashes[k:])]
    return [*defined_path(m - k, hashes[k:]), defined_root(hashes[:k])]


def defined_subproof(m: int, hashes: list[bytes], *, known: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 §2.1.2."""
    if m == len(hashes):
        return [] if known else [defined_root(hashes)]
    k = split(len(hashes))
    if m <= k:
        return [*defined_subproof(m, hashes[:k], known=known), defined_root(hashes[k:])]
    return [*defined_subproof(m - k, hashes[k:], known=False), defined_root(hashes[:k])]


def flipped(value: bytes, bit: int) -> bytes:
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_roots_of_every_size_are_those_of_the_definition() -> None:
    for size in range(LARGEST + 1):
        expected = defined_root(leaves(size))
        assert root_from(size, TREE.read) == expected, size
        assert merkle_root(leaves(size)) == expected, size


def test_inclusion_proofs_of_every_leaf_are_those_of_the_definition() -> None:
    for size in range(1, 40):
        for index in range(size):
            proof = inclusion_proof(index, size, TREE.read)
            assert proof == defined_path(index, leaves(size)), (index, size)
            verify_inclusion(
                index=index,
                size=size,
                leaf=leaves(size)[index],
                proof=proof,
                root=root_from(size, TREE.read),
            )


def test_consistency_proofs_of_every_pair_are_those_of_the_definition() -> None:
    for new in range(1, 40):
        for old in range(1, new + 1):
            proof = consistency_proof(old, new, TREE.read)
            assert proof == defined_subproof(old, leaves(new), known=True), (old, new)
            verify_consistency(
                old_size=old,
                new_size=new,
                old_root=root_from(old, TREE.read),
                new_root=root_from(new, TREE.read),
                proof=proof,
            )


@given(st.data())
def test_an_inclusion_proof_with_any_bit_flipped_is_refused(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, LARGEST))
    index = data.draw(st.integers(0, size - 1))
    proof, root = inclusion_proof(index, size, TREE.read), root_from(size, TREE.read)
    parts = [TREE.nodes[0, index], root, *proof]
    part = data.draw(st.integers(0, len(parts) - 1))
    parts[part] = flipped(parts[part], data.draw(st.integers(0, 255)))
    with pytest.raises(IntegrityError):
        verify_inclusion(index=index, size=size, leaf=parts[0], root=parts[1], proof=parts[2:])


@given(st.data())
def test_an_inclusion_proof_serves_no_other_leaf(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, LARGEST))
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(-1, size).filter(lambda number: number != index))
    with pytest.raises(IntegrityError):
        verify_inclusion(
            index=other,
            size=size,
            leaf=TREE.nodes[0, index],
            proof=inclusion_proof(index, size, TREE.read),
            root=root_from(size, TREE.read),
        )


@given(st.data())
def test_a_consistency_proof_with_any_bit_flipped_is_refused(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, LARGEST))
    old = data.draw(st.integers(1, new - 1))
    roots = [root_from(old, TREE.read), root_from(new, TREE.read)]
    parts = [*roots, *consistency_proof(old, new, TREE.read)]
    part = data.draw(st.integers(0, len(parts) - 1))
    parts[part] = flipped(parts[part], data.draw(st.integers(0, 255)))
    with pytest.raises(IntegrityError):
        verify_consistency(
            old_size=old, new_size=new, old_root=parts[0], new_root=parts[1], proof=parts[2:]
        )


@given(st.data())
def test_a_proof_with_a_hash_more_or_less_is_refused(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, LARGEST))
    old = data.draw(st.integers(1, new - 1))
    longer = data.draw(st.booleans())

    def spoilt(proof: list[bytes]) -> list[bytes]:
        return [*proof, EMPTY_ROOT] if longer else proof[:-1]

    old_root, new_root = root_from(old, TREE.read), root_from(new, TREE.read)
    with pytest.raises(IntegrityError):
        verify_consistency(
            old_size=old,
            new_size=new,
            old_root=old_root,
            new_root=new_root,
            proof=spoilt(consistency_proof(old, new, TREE.read)),
        )
    with pytest.raises(IntegrityError):
        verify_inclusion(
            index=old,
            size=new,
            leaf=TREE.nodes[0, old],
            proof=spoilt(inclusion_proof(old, new, TREE.read)),
            root=new_root,
        )


def test_a_proof_is_no_longer_than_the_declared_size_allows() -> None:
    leaf, other = leaves(2)
    with pytest.raises(IntegrityError, match="too long"):
        verify_inclusion(index=0, size=1, leaf=leaf, proof=[other], root=node_hash(other, leaf))


def test_two_roots_of_one_size_are_refused() -> None:
    with pytest.raises(IntegrityError, match="two different roots"):
        verify_consistency(
            old_size=3, new_size=3, old_root=leaves(1)[0], new_root=leaves(2)[1], proof=[]
        )


def test_what_has_no_proof_is_refused() -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(InvalidInputError):
            inclusion_proof(index, size, TREE.read)
    for old, new in ((0, 5), (6, 5), (-1, 5)):
        with pytest.raises(InvalidInputError):
            consistency_proof(old, new, TREE.read)
    with pytest.raises(InvalidInputError):
        root_from(-1, TREE.read)


def test_reads_grow_with_the_logarithm_of_the_tree() -> None:
    reads = 0

    def read(level: int, index: int) -> bytes:
        nonlocal reads
        reads += 1
        return leaf_hash(b"%d %d" % (level, index))

    size = (1 << 40) - 1
    root_from(size, read)
    grow(frontier_from(size, read), [leaf_hash(b"")])
    assert reads <= 80
    reads = 0
    inclusion_proof(12345, size, read)
    consistency_proof(12345, size, read)
    assert reads <= 200


@given(st.lists(st.integers(0, 40), max_size=8))
def test_a_tree_grown_in_any_batches_is_the_tree_of_the_definition(batches: list[int]) -> None:
    frontier, stored = Frontier(), dict[NodeAddress, bytes]()
    for batch in batches:
        new = leaves(frontier.size + batch)[frontier.size :]
        frontier, runs = grow(frontier, new)
        for run in runs:
            for index, value in enumerate(run.hashes, start=run.first):
                assert (run.level, index) not in stored
                stored[run.level, index] = value
    size = sum(batches)
    assert frontier.size == size
    assert frontier.root() == defined_root(leaves(size))
    expected = StoredTree(size)
    assert stored == expected.nodes
    assert frontier == frontier_from(size, expected.read)


def test_growing_keeps_the_frontier_it_started_from() -> None:
    frontier = frontier_from(6, TREE.read)
    grow(frontier, leaves(9)[6:])
    assert frontier == frontier_from(6, TREE.read)


@pytest.mark.parametrize(("size", "peaks"), [(0, 1), (1, 0), (2, 2), (7, 2), (-1, 1), (1 << 63, 1)])
def test_a_frontier_has_a_peak_for_each_complete_subtree(size: int, peaks: int) -> None:
    with pytest.raises(InvalidInputError):
        Frontier(size, (bytes(32),) * peaks)


@given(st.data())
def test_the_nodes_a_proof_reads_are_known_before_any_is_fetched(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, LARGEST))
    old, index = data.draw(st.integers(1, size)), data.draw(st.integers(0, size - 1))

    def computed(read: ReadNode) -> list[object]:
        return [
            inclusion_proof(index, size, read),
            consistency_proof(old, size, read),
            root_from(size, read),
        ]

    fetched = {address: TREE.nodes[address] for address in nodes_read(computed)}
    assert computed(lambda level, i: fetched[level, i]) == computed(TREE.read)


def probes(kind: str) -> list[Any]:
    found = sorted((VECTORS / kind).rglob("*.json"))
    return [pytest.param(path, id=str(path.relative_to(VECTORS))) for path in found]


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def decoded_proof(probe: dict[str, Any]) -> list[bytes]:
    return [decoded(item) for item in probe["proof"] or ()]


@pytest.mark.vectors
@needs_vectors
def test_roots_are_those_of_the_public_vectors() -> None:
    vectors = json.loads((VECTORS / "roots.json").read_text())
    hashes = [leaf_hash(bytes.fromhex(leaf)) for leaf in vectors["leaves_hex"]]
    roots = [merkle_root(hashes[:size]).hex() for size in range(len(hashes) + 1)]
    assert roots == vectors["roots_hex"]


@pytest.mark.vectors
@needs_vectors
@pytest.mark.parametrize("path", probes("inclusion"))
def test_inclusion_is_judged_as_in_the_public_vectors(path: Path) -> None:
    probe = json.loads(path.read_text())
    accepted = True
    try:
        verify_inclusion(
            index=probe["leafIdx"],
            size=probe["treeSize"],
            leaf=decoded(probe["leafHash"]),
            proof=decoded_proof(probe),
            root=decoded(probe["root"]),
        )
    except IntegrityError:
        accepted = False
    assert accepted is not probe["wantErr"], probe["desc"]


@pytest.mark.vectors
@needs_vectors
@pytest.mark.parametrize("path", probes("consistency"))
def test_consistency_is_judged_as_in_the_public_vectors(path: Path) -> None:
    probe = json.loads(path.read_text())
    accepted = True
    try:
        verify_consistency(
            old_size=probe["size1"],
            new_size=probe["size2"],
            old_root=decoded(probe["root1"]),
            new_root=decoded(probe["root2"]),
            proof=decoded_proof(probe),
        )
    except IntegrityError:
        accepted = False
    assert accepted is not probe["wantErr"], probe["desc"]
