"""Proofs that an entry is in a witnessed log: one file, verified offline, years later.

Who keeps an entry and its ``.tlog-proof`` needs only a policy of public keys to show that
the log took it in. Nothing here says what an entry means.

Format: https://c2sp.org/tlog-proof.
"""

import base64
from dataclasses import dataclass

from matl_common.errors import InvalidInputError
from matl_common.tlog.checkpoint import (
    SignedCheckpoint,
    parse_hash,
    parse_size,
    verify_checkpoint,
)
from matl_common.tlog.merkle import HASH_BYTES, MAX_TREE_SIZE, verify_inclusion
from matl_common.tlog.note import MAX_NOTE_BYTES, Note, decode_base64, parse_note
from matl_common.tlog.policy import Policy, require_quorum

FILE_SUFFIX = ".tlog-proof"
MAX_PATH_HASHES = 63
MAX_EXTRA_BYTES = 64 << 10
MAX_PROOF_BYTES = MAX_NOTE_BYTES + (MAX_EXTRA_BYTES << 1)

_HEADER = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True, slots=True)
class TlogProof:
    """What shows that the leaf at ``index`` is in the checkpoint's tree.

    Attributes:
        index: the leaf's index.
        path: the inclusion proof, from the leaf up.
        checkpoint: the log's note, with the cosignatures it had.
        extra: bytes for the application's use. They are not authenticated.

    Raises:
        InvalidInputError: a value cannot stand in a proof.
    """

    index: int
    path: tuple[bytes, ...]
    checkpoint: Note
    extra: bytes | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < MAX_TREE_SIZE:
            raise InvalidInputError(f"{self.index} is not the index of a leaf")
        if len(self.path) > MAX_PATH_HASHES or any(len(each) != HASH_BYTES for each in self.path):
            raise InvalidInputError(
                f"an inclusion proof is at most {MAX_PATH_HASHES} hashes of {HASH_BYTES} bytes"
            )
        if self.extra is not None and len(self.extra) > MAX_EXTRA_BYTES:
            raise InvalidInputError(f"a proof's extra data has at most {MAX_EXTRA_BYTES} bytes")


def verify_proof(proof: TlogProof, leaf: bytes, policy: Policy) -> SignedCheckpoint:
    """Check that a leaf is in a log that the policy trusts.

    Args:
        proof: the proof.
        leaf: the hash of the leaf (step 1 of the specification, which is the caller's).
        policy: the logs, witnesses and quorum that are trusted.

    Returns:
        The checkpoint whose tree holds the leaf.

    Raises:
        InvalidInputError: the note in the proof is not a checkpoint.
        IntegrityError: a signature, the quorum or the inclusion proof does not hold.
    """
    # 2. The log, its origin and its signature.
    signed = verify_checkpoint(proof.checkpoint, policy.logs)
    # 3. The witnesses.
    require_quorum(signed, policy)
    # 4. The leaf's place under the root that they have signed.
    verify_inclusion(
        index=proof.index,
        size=signed.checkpoint.size,
        leaf=leaf,
        proof=proof.path,
        root=signed.checkpoint.root,
    )
    return signed


def encode_proof(proof: TlogProof) -> bytes:
    """The proof as the content of a ``.tlog-proof`` file."""
    lines = [_HEADER]
    if proof.extra is not None:
        lines.append(f"extra {base64.b64encode(proof.extra).decode()}")
    lines.append(f"index {proof.index}")
    lines.extend(base64.b64encode(value).decode() for value in proof.path)
    return "".join(f"{line}\n" for line in lines).encode() + b"\n" + proof.checkpoint.encode()


def parse_proof(data: bytes) -> TlogProof:
    """Parse a proof; ``verify_proof`` says whether it holds.

    Raises:
        InvalidInputError: it is not a proof to the last byte.
    """
    if len(data) > MAX_PROOF_BYTES:
        raise InvalidInputError(f"the proof has more than {MAX_PROOF_BYTES} bytes")
    head, _, note = data.partition(b"\n\n")
    try:
        lines = head.decode().split("\n")
    except UnicodeDecodeError as error:
        raise InvalidInputError("the proof is not UTF-8") from error
    if lines.pop(0) != _HEADER:
        raise InvalidInputError(f"a proof begins with the line {_HEADER!r}")
    extra = None
    if lines and lines[0].startswith("extra "):
        extra = decode_base64(lines.pop(0).removeprefix("extra "), what="proof's extra data")
    if not lines or not lines[0].startswith("index "):
        raise InvalidInputError("the proof does not say which leaf it is of")
    index = parse_size(lines.pop(0).removeprefix("index "), what="leaf's index")
    return TlogProof(index, tuple(map(parse_hash, lines)), parse_note(note), extra)
