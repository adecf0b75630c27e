"""Our log against sigstore 4.5.1 and tlog-scales 0.0.3, in an environment of their own.

sigstore is the reference client of the largest such log; tlog-scales reads and writes tiles,
notes and cosignatures. Both were written without sight of ours.
"""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from matl_common.errors import IntegrityError
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.cosignature import (
    COSIGNATURE_TYPES,
    ML_DSA_44_COSIGNATURE,
    cosign,
    witness_key,
)
from matl_common.tlog.merkle import (
    Frontier,
    consistency_proof,
    grow,
    inclusion_proof,
    leaf_hash,
    merkle_root,
    root_from,
    verify_consistency,
    verify_inclusion,
)
from matl_common.tlog.note import Note, VerifierKey, parse_verifier_key
from matl_common.tlog.policy import open_witnessed, threshold_policy
from matl_common.tlog.proof import parse_proof, verify_proof
from matl_common.tlog.tiles import (
    CHECKPOINT_PATH,
    encode_bundle,
    encode_tile,
    entry_bundles,
    hash_tiles,
    parse_bundle,
    tree_in_tiles,
)

_REPOSITORY = Path(__file__).parents[2]
_PYTHON = Path(
    os.environ.get("MATL_TLOG_PYTHON", _REPOSITORY / "out" / "venv-tlog" / "bin" / "python")
)
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not _PYTHON.exists(), reason="no sigstore here; run `make peers`"),
]

ORIGIN = "dr-study.matl.internal/log"
# Past 256 full tiles, so that there are three levels of tiles.
SIZE = 256 * 256 + 300
ENTRIES = [b"entry %d" % number for number in range(SIZE)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
FRONTIER, RUNS = grow(Frontier(), LEAVES)
LEVELS = [run.hashes for run in RUNS]


def read_node(level: int, index: int) -> bytes:
    return LEVELS[level][index]


def run(verb: str, folder: Path) -> None:
    script = Path(__file__).with_name("tlog_verifiers.py")
    subprocess.run([_PYTHON, script, verb, folder], check=True, timeout=100)


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def spoilt(path: list[str]) -> list[list[str]]:
    """A proof of hashes in hexadecimal, in ways in which it is wrong."""
    flipped = [f"{int(path[0][0], 16) ^ 1:x}{path[0][1:]}", *path[1:]] if path else ["00" * 32]
    return [flipped, path[:-1] if path else ["ff" * 32], [*path, "00" * 32], path[::-1]]


def inclusion_probes(generator: random.Random) -> list[dict[str, Any]]:
    probes = []
    for size in [*range(1, 12), 255, 256, 257, 65_537, SIZE]:
        for index in {0, size - 1, size // 2, generator.randrange(size)}:
            root = root_from(size, read_node).hex()
            path = [value.hex() for value in inclusion_proof(index, size, read_node)]
            common = {"leaf": ENTRIES[index].hex(), "index": index, "size": size, "root": root}
            probes += [common | {"path": each} for each in [path, *spoilt(path)]]
            probes.append(common | {"path": path, "leaf": ENTRIES[index - 1].hex()})
            probes.append(common | {"path": path, "index": (index + 1) % size})
    return probes


def consistency_probes(generator: random.Random) -> list[dict[str, Any]]:
    probes = []
    for new in [*range(2, 12), 255, 256, 257, 65_537, SIZE]:
        for old in {1, new - 1, new // 2, generator.randrange(1, new)}:
            roots = {
                "old_root": root_from(old, read_node).hex(),
                "new_root": root_from(new, read_node).hex(),
            }
            path = [value.hex() for value in consistency_proof(old, new, read_node)]
            common: dict[str, Any] = {"old": old, "new": new, **roots}
            probes += [common | {"path": each} for each in [path, *spoilt(path)]]
            probes.append(common | {"path": path, "old_root": roots["new_root"]})
    return probes


def we_accept_inclusion(probe: dict[str, Any]) -> bool:
    try:
        verify_inclusion(
            index=probe["index"],
            size=probe["size"],
            leaf=leaf_hash(bytes.fromhex(probe["leaf"])),
            proof=[bytes.fromhex(value) for value in probe["path"]],
            root=bytes.fromhex(probe["root"]),
        )
    except IntegrityError:
        return False
    return True


def we_accept_consistency(probe: dict[str, Any]) -> bool:
    try:
        verify_consistency(
            old_size=probe["old"],
            new_size=probe["new"],
            old_root=bytes.fromhex(probe["old_root"]),
            new_root=bytes.fromhex(probe["new_root"]),
            proof=[bytes.fromhex(value) for value in probe["path"]],
        )
    except IntegrityError:
        return False
    return True


JUDGES = {"inclusion": we_accept_inclusion, "consistency": we_accept_consistency}


def test_others_read_our_log_and_judge_our_proofs_as_we_do(tmp_path: Path) -> None:
    signer = Ed25519PrivateKey.generate()
    cosigner, future = Ed25519PrivateKey.generate(), MLDSA44PrivateKey.generate()
    keys = [
        log_key(ORIGIN, signer.public_key()),
        witness_key("b.example/w", cosigner.public_key()),
        VerifierKey("c.example/w", ML_DSA_44_COSIGNATURE, future.public_key().public_bytes_raw()),
    ]
    checkpoint = Checkpoint(ORIGIN, SIZE, FRONTIER.root())
    signed = sign_checkpoint(checkpoint, keys[0], signer)
    lines = (
        *signed.note.signatures,
        cosign(checkpoint, keys[1], cosigner, unix_seconds=1_700_000_000),
        cosign(checkpoint, keys[2], future, unix_seconds=1_700_000_000),
    )
    log = tmp_path / "log"
    write_file(log / CHECKPOINT_PATH, Note(signed.note.text, lines).encode())
    for tile in hash_tiles(SIZE):
        write_file(log / tile.path, encode_tile(tile, read_node))
    for bundle in entry_bundles(SIZE):
        first = bundle.index * 256
        write_file(log / bundle.path, encode_bundle(ENTRIES[first : first + bundle.width]))
    generator = random.Random(1)
    probes: dict[str, Any] = {
        "vkeys": [key.vkey for key in keys],
        "entries": [0, 255, 256, SIZE - 1],
        "inclusion": inclusion_probes(generator),
        "consistency": consistency_probes(generator),
    }
    (tmp_path / "probes.json").write_text(json.dumps(probes))

    run("judge", tmp_path)

    answers = json.loads((tmp_path / "answers.json").read_text())
    stated = [ORIGIN, SIZE, FRONTIER.root().hex()]
    assert answers["checkpoint"] == answers["sigstore_checkpoint"] == stated
    assert answers["signed_by"] == sorted(key.vkey for key in keys)
    assert answers["root_of_tiles"] == FRONTIER.root().hex()
    assert answers["entries"] == [ENTRIES[index].hex() for index in (0, 255, 256, SIZE - 1)]
    for kind, we_accept in JUDGES.items():
        ours = [we_accept(probe) for probe in probes[kind]]
        assert set(ours) == {True, False}
        for probe, mine, theirs in zip(probes[kind], ours, answers[kind], strict=True):
            assert set(theirs.values()) == {mine}, (probe, theirs)


def test_we_read_a_log_and_its_proofs_that_another_wrote(tmp_path: Path) -> None:
    run("write", tmp_path)

    log = tmp_path / "log"
    keys = json.loads((tmp_path / "keys.json").read_text())
    policy = threshold_policy(
        [parse_verifier_key(keys["log"])],
        {"w": parse_verifier_key(keys["witness"], COSIGNATURE_TYPES)},
        threshold=1,
    )
    checkpoint = open_witnessed((log / CHECKPOINT_PATH).read_bytes(), policy).checkpoint
    size = checkpoint.size
    leaves = [
        leaf_hash(entry)
        for bundle in entry_bundles(size)
        for entry in parse_bundle((log / bundle.path).read_bytes(), width=bundle.width)
    ]
    assert merkle_root(leaves) == checkpoint.root
    read = tree_in_tiles(size, lambda tile: (log / tile.path).read_bytes())
    assert {old: root_from(int(old), read).hex() for old in keys["roots"]} == keys["roots"]
    for index in (0, 999, size - 1):
        command = [str(_PYTHON), "-m", "tlog_scales.cli", "gen-proof", str(log), str(index)]
        printed = subprocess.run(command, check=True, timeout=100, capture_output=True).stdout
        verified = verify_proof(parse_proof(printed), leaves[index], policy)
        assert verified.checkpoint == checkpoint
