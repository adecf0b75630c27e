"""Two other implementations of transparency logs; run by the interpreter of their environment.

    python tlog_verifiers.py judge FOLDER    what they say of a log and of proofs that we made
    python tlog_verifiers.py write FOLDER    a log that tlog-scales writes, for us to read

``judge`` reads ``FOLDER/log`` (tiles and checkpoint) and ``FOLDER/probes.json``, and writes
``FOLDER/answers.json``. sigstore's verifier knows inclusion only.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sigstore._internal.merkle import (  # type: ignore[import-not-found]  # not in ours
    verify_merkle_inclusion,
)
from sigstore._internal.rekor.checkpoint import (  # type: ignore[import-not-found]
    LogCheckpoint,
    SignedNote,
)
from sigstore.errors import VerificationError  # type: ignore[import-not-found]
from tlog_scales.backend import LocalBackend  # type: ignore[import-not-found]
from tlog_scales.reader import TilesReader  # type: ignore[import-not-found]
from tlog_scales.signing import (  # type: ignore[import-not-found]
    MLDSA44CosignatureSigner,
    PlainEd25519Signer,
    Vkey,
    VkeySet,
)
from tlog_scales.tiles import leaf_hash  # type: ignore[import-not-found]
from tlog_scales.tlog import (  # type: ignore[import-not-found]
    ConsistencyProof,
    ConsistencyProofInvalid,
    InclusionProof,
    InclusionProofInvalid,
)
from tlog_scales.writer import TilesWriter  # type: ignore[import-not-found]

ORIGIN = "peer.example/log"


def accepts(check: Callable[[], None]) -> bool:
    try:
        check()
    except (VerificationError, ConsistencyProofInvalid, InclusionProofInvalid):
        return False
    return True


def judge_inclusion(probe: dict[str, Any]) -> dict[str, bool]:
    leaf, root = bytes.fromhex(probe["leaf"]), bytes.fromhex(probe["root"])
    path = [bytes.fromhex(value) for value in probe["path"]]
    proof = SimpleNamespace(
        log_index=probe["index"], tree_size=probe["size"], hashes=path, root_hash=root
    )
    entry = SimpleNamespace(_inner=SimpleNamespace(inclusion_proof=proof, canonicalized_body=leaf))
    scales = InclusionProof(probe["index"], probe["size"], path)
    return {
        "sigstore": accepts(lambda: verify_merkle_inclusion(entry)),
        "tlog-scales": accepts(lambda: scales.check(leaf_hash(leaf), root)),
    }


def judge_consistency(probe: dict[str, Any]) -> dict[str, bool]:
    path = [bytes.fromhex(value) for value in probe["path"]]
    proof = ConsistencyProof(probe["old"], probe["new"], path)
    old_root, new_root = bytes.fromhex(probe["old_root"]), bytes.fromhex(probe["new_root"])
    return {"tlog-scales": accepts(lambda: proof.check(old_root, new_root))}


def judge(folder: Path) -> None:
    given = json.loads((folder / "probes.json").read_text())
    reader = TilesReader(LocalBackend(folder / "log"))
    checkpoint = reader.get_checkpoint()
    keys = VkeySet(*(Vkey.from_string(text) for text in given["vkeys"]))
    note = SignedNote.from_text((folder / "log" / "checkpoint").read_text())
    parsed = LogCheckpoint.from_text(note.note)
    answers = {
        "checkpoint": [checkpoint.origin, checkpoint.size, checkpoint.root_hash.hex()],
        "sigstore_checkpoint": [parsed.origin, parsed.log_size, parsed.log_hash],
        "signed_by": sorted(
            key.serialize() for key, _ in keys.verify(checkpoint.signatures, checkpoint)
        ),
        "root_of_tiles": reader.calculate_root_hash().hex(),
        "entries": [reader.get_entry(index).hex() for index in given["entries"]],
        "inclusion": [judge_inclusion(probe) for probe in given["inclusion"]],
        "consistency": [judge_consistency(probe) for probe in given["consistency"]],
    }
    (folder / "answers.json").write_text(json.dumps(answers))


def write(folder: Path) -> None:
    log, witness = PlainEd25519Signer(ORIGIN, bytes(32)), MLDSA44CosignatureSigner("w", bytes(32))
    writer = TilesWriter.create(folder / "log", ORIGIN)
    roots = {}
    for size in (1, 200, 256, 1000, 66_000):
        for number in range(writer.size, size):
            writer.add_leaf(b"entry %d" % number)
        writer.commit([log, witness])
        roots[size] = writer.reader.calculate_root_hash().hex()
    keys = {"log": log.vkey.serialize(), "witness": witness.vkey.serialize()}
    (folder / "keys.json").write_text(json.dumps(keys | {"roots": roots}))


if __name__ == "__main__":
    {"judge": judge, "write": write}[sys.argv[1]](Path(sys.argv[2]))
