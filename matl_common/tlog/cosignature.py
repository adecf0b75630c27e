"""Cosignatures: a witness's timestamped statement that it saw a log's latest checkpoint.

A line's signature is a time, eight bytes of seconds since 1970, followed by a bare
signature over the time and the checkpoint. Nothing here checks consistency, which a
witness does before it signs (``witness.py``), or says how many are enough (``policy.py``).

Format: https://c2sp.org/tlog-cosignature. It has no type for ECDSA, and many tokens have
nothing else, so this project adds one: the same statement, signed with P-256.
"""

from collections.abc import Collection
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from matl_common.errors import InvalidInputError
from matl_common.tlog.checkpoint import Checkpoint, encode_checkpoint, parse_checkpoint
from matl_common.tlog.note import (
    Note,
    NoteSignature,
    SignatureType,
    Signer,
    VerifierKey,
    Verify,
    encode_public_key,
    load_ed25519,
    load_p256,
    signature_line,
    verified_signatures,
)

TIME_BYTES = 8
MAX_TIME = (1 << 63) - 1

_SUBTREE_LABEL = b"subtree/v1\n\x00"
_MAX_LABELLED_BYTES = 255


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A verified cosignature: who saw the checkpoint, and when, in seconds since 1970."""

    key: VerifierKey
    unix_seconds: int


def _timed_statement(_name: str, text: bytes, signature: bytes) -> tuple[bytes, bytes]:
    """The Ed25519 signed message: two lines, then the checkpoint."""
    unix_seconds, bare = _split(signature)
    # A cosignature is of a checkpoint; no other note's text may be passed off as one.
    parse_checkpoint(text)
    return b"cosignature/v1\ntime %d\n%b" % (unix_seconds, text), bare


def _subtree_statement(name: str, text: bytes, signature: bytes) -> tuple[bytes, bytes]:
    """The ML-DSA-44 signed message, over the subtree that is the whole tree."""
    unix_seconds, bare = _split(signature)
    checkpoint = parse_checkpoint(text)
    message = b"".join(
        (
            _SUBTREE_LABEL,
            _labelled(name),
            unix_seconds.to_bytes(TIME_BYTES),
            _labelled(checkpoint.origin),
            bytes(8),
            checkpoint.size.to_bytes(8),
            checkpoint.root,
        )
    )
    return message, bare


def _load_ml_dsa_44(public_key: bytes) -> Verify:
    key = MLDSA44PublicKey.from_public_bytes(public_key)
    return lambda message, signature: key.verify(signature, message)


ED25519_COSIGNATURE = SignatureType(b"\x04", load_ed25519, _timed_statement)
ML_DSA_44_COSIGNATURE = SignatureType(b"\x06", _load_ml_dsa_44, _subtree_statement)
# The newline keeps this identifier from being the beginning of a later version's.
ECDSA_P256_COSIGNATURE = SignatureType(
    b"\xffmatl/ecdsa-p256-cosignature/v1\n", load_p256, _timed_statement
)
COSIGNATURE_TYPES = (ED25519_COSIGNATURE, ML_DSA_44_COSIGNATURE, ECDSA_P256_COSIGNATURE)


def witness_key(name: str, public_key: Ed25519PublicKey | ec.EllipticCurvePublicKey) -> VerifierKey:
    """The key a witness cosigns with: Ed25519, or P-256.

    Raises:
        InvalidInputError: the name cannot name a witness, or the key is on another curve.
    """
    ed25519 = isinstance(public_key, Ed25519PublicKey)
    kind = ED25519_COSIGNATURE if ed25519 else ECDSA_P256_COSIGNATURE
    return VerifierKey(name, kind, encode_public_key(public_key))


def cosign(
    checkpoint: Checkpoint, key: VerifierKey, signer: Signer, *, unix_seconds: int
) -> NoteSignature:
    """Cosign a checkpoint. Persist it as the latest one *before* calling this.

    Args:
        checkpoint: one whose consistency was verified.
        key: the witness's key.
        signer: holds its private key.
        unix_seconds: now, in seconds since 1970.

    Raises:
        InvalidInputError: the time is out of range.
        IntegrityError: ``signer`` holds another key.
    """
    if not 0 < unix_seconds <= MAX_TIME:
        raise InvalidInputError(f"{unix_seconds} is not a time in seconds since 1970")
    time, text = unix_seconds.to_bytes(TIME_BYTES), encode_checkpoint(checkpoint)
    message, _ = key.signature_type.statement(key.name, text, time)
    return signature_line(text, key, time + signer.sign(message))


def verified_cosignatures(note: Note, keys: Collection[VerifierKey]) -> tuple[Cosignature, ...]:
    """The cosignatures of a checkpoint's note by known witnesses; there may be none.

    Raises:
        IntegrityError: a line names a known witness and does not verify with its key.
    """
    return tuple(
        Cosignature(key, _split(line.signature)[0]) for key, line in verified_signatures(note, keys)
    )


def _split(signature: bytes) -> tuple[int, bytes]:
    unix_seconds = int.from_bytes(signature[:TIME_BYTES])
    if unix_seconds > MAX_TIME:
        raise InvalidInputError("the cosignature's time is out of range")
    return unix_seconds, signature[TIME_BYTES:]


def _labelled(name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) > _MAX_LABELLED_BYTES:
        raise InvalidInputError(f"{name[:80]!r} has more than {_MAX_LABELLED_BYTES} bytes")
    return bytes([len(encoded)]) + encoded
