"""Checkpoints: a log's signed statement of its size and root hash.

Nothing here keeps a log or compares two checkpoints (``witness.py`` does), and cosigners'
lines are carried but not looked at (``cosignature.py`` and ``policy.py`` do).

Format: https://c2sp.org/tlog-checkpoint, without extension lines: this project writes
none, and refuses statements it does not understand.
"""

import base64
import re
from collections.abc import Collection
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.tlog.merkle import HASH_BYTES, MAX_TREE_SIZE
from matl_common.tlog.note import (
    ECDSA_P256,
    ED25519,
    Note,
    Signer,
    VerifierKey,
    checked_name,
    decode_base64,
    encode_public_key,
    parse_note,
    sign_note,
    verified_signatures,
)

_LINES = 3
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log states: ``root`` is the root hash of its first ``size`` leaves."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint that its log's key has verified, and the note that says it."""

    checkpoint: Checkpoint
    note: Note


def log_key(origin: str, public_key: Ed25519PublicKey | ec.EllipticCurvePublicKey) -> VerifierKey:
    """The key a log signs its checkpoints with: Ed25519, or P-256.

    Raises:
        InvalidInputError: the origin cannot name a log, or the key is on another curve.
    """
    kind = ED25519 if isinstance(public_key, Ed25519PublicKey) else ECDSA_P256
    return VerifierKey(origin, kind, encode_public_key(public_key))


def sign_checkpoint(checkpoint: Checkpoint, key: VerifierKey, signer: Signer) -> SignedCheckpoint:
    """Sign a checkpoint as its log; send ``note.encode()`` of what is returned.

    Args:
        checkpoint: must extend all that this log signed before.
        key: the log's key, whose name is the checkpoint's origin.
        signer: holds its private key.

    Raises:
        InvalidInputError: the origin, size or root cannot stand in a checkpoint.
        IntegrityError: ``key`` is another log's, or ``signer`` holds another key.
    """
    text = encode_checkpoint(checkpoint)
    if checkpoint.origin != key.name:
        raise IntegrityError(f"{key.name!r} does not sign checkpoints of {checkpoint.origin!r}")
    return SignedCheckpoint(checkpoint, Note(text, (sign_note(text, key, signer),)))


def open_checkpoint(data: bytes, keys: Collection[VerifierKey]) -> SignedCheckpoint:
    """Return a checkpoint, if one of the keys signed it as its log.

    Raises:
        InvalidInputError: the bytes are not a signed checkpoint to the last one.
        IntegrityError: no known key of its origin signed it, or one does not verify.
    """
    return verify_checkpoint(parse_note(data), keys)


def verify_checkpoint(note: Note, keys: Collection[VerifierKey]) -> SignedCheckpoint:
    """``open_checkpoint`` for a note that was taken apart before.

    Raises:
        InvalidInputError: its text is not a checkpoint.
        IntegrityError: no known key of its origin signed it, or one does not verify.
    """
    signers = {key.name for key, _ in verified_signatures(note, keys)}
    if not signers:
        raise IntegrityError("the checkpoint is not signed by a known log")
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin not in signers:
        raise IntegrityError(
            f"the checkpoint is of another log than {', '.join(sorted(signers))}, who signed it"
        )
    return SignedCheckpoint(checkpoint, note)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the text of a note.

    Raises:
        InvalidInputError: the origin, size or root cannot stand in it.
    """
    checked_name(checkpoint.origin)
    if not 0 <= checkpoint.size <= MAX_TREE_SIZE or len(checkpoint.root) != HASH_BYTES:
        raise InvalidInputError("a checkpoint holds a tree size and a 32-byte root hash")
    root = base64.b64encode(checkpoint.root).decode()
    return f"{checkpoint.origin}\n{checkpoint.size}\n{root}\n".encode()


def parse_checkpoint(text: bytes) -> Checkpoint:
    """Parse the text of a checkpoint's note; ``open_checkpoint`` also verifies it.

    Raises:
        InvalidInputError: it is not a checkpoint to the last byte.
    """
    try:
        lines = text.decode().split("\n")
    except UnicodeDecodeError as error:
        raise InvalidInputError("the checkpoint is not UTF-8") from error
    if lines.pop() != "" or len(lines) != _LINES:
        raise InvalidInputError("a checkpoint is three lines: origin, size and root hash")
    origin, size, root = lines
    return Checkpoint(
        checked_name(origin), parse_size(size, what="checkpoint's size"), parse_hash(root)
    )


def parse_size(text: str, *, what: str) -> int:
    """A tree size or leaf index as checkpoints and proofs write it.

    Raises:
        InvalidInputError: it is not a decimal number in range; ``what`` names it.
    """
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_TREE_SIZE:
        raise InvalidInputError(f"the {what} is not a decimal number without leading 0")
    return int(text)


def parse_hash(text: str) -> bytes:
    """A base64 line holding one hash.

    Raises:
        InvalidInputError: it does not.
    """
    value = decode_base64(text, what="hash")
    if len(value) != HASH_BYTES:
        raise InvalidInputError(f"a hash has {len(value)} bytes, not {HASH_BYTES}")
    return value
