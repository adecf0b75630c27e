"""Checkpoints: a log's signed statement of its size and root hash.

The text is C2SP tlog-checkpoint; the signatures are C2SP signed-note lines with
Ed25519 (type 0x01). Lines by keys the caller does not know, such as cosignatures,
are carried but prove nothing. Nothing here keeps a log or compares two checkpoints.

Formats: https://c2sp.org/signed-note and https://c2sp.org/tlog-checkpoint.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.tlog.merkle import HASH_BYTES, MAX_TREE_SIZE

MAX_NOTE_BYTES = 64 << 10
MAX_SIGNATURES = 100
ED25519_TYPE = 0x01

_KEY_ID_BYTES = 4
_CHECKPOINT_LINES = 3
_SIGNATURE_PREFIX = "\N{EM DASH} "
_KEY_NAME = re.compile(r"[^\s+]{1,200}")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log states: ``root`` is the root hash of its first ``size`` leaves."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class LogKey:
    """The name and public key a log signs its checkpoints with."""

    name: str
    public_key: Ed25519PublicKey

    @property
    def key_id(self) -> bytes:
        """SHA-256(name ‖ 0x0A ‖ type ‖ key), first four bytes (signed-note)."""
        return hashlib.sha256(self.name.encode() + b"\n" + self._typed_key).digest()[:_KEY_ID_BYTES]

    @property
    def verifier_key(self) -> str:
        """The key as a C2SP vkey, ``name+id+key``."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(self._typed_key).decode()}"

    @property
    def _typed_key(self) -> bytes:
        return bytes([ED25519_TYPE]) + self.public_key.public_bytes_raw()


def parse_verifier_key(text: str) -> LogKey:
    """Parse a C2SP vkey that holds an Ed25519 key.

    Raises:
        InvalidInputError: another form or algorithm, or a key id that does not match.
    """
    # Base64 may hold '+', a key name may not.
    match text.split("+", maxsplit=2):
        case [name, _, encoded]:
            typed_key = _decode_base64(encoded, what="verifier key")
            if typed_key[:1] != bytes([ED25519_TYPE]):
                raise InvalidInputError("the verifier key is not an Ed25519 key")
            try:
                key = LogKey(_checked_name(name), Ed25519PublicKey.from_public_bytes(typed_key[1:]))
            except ValueError as error:
                raise InvalidInputError("the verifier key has the wrong length") from error
            if key.verifier_key == text:
                return key
    raise InvalidInputError("not a verifier key; expected name+id+key as in C2SP signed-note")


def sign_checkpoint(checkpoint: Checkpoint, private_key: Ed25519PrivateKey) -> bytes:
    """Sign a checkpoint as its origin; the key's name is the origin.

    Raises:
        InvalidInputError: the origin, size or root cannot stand in a checkpoint.
    """
    body = _encode_body(checkpoint)
    key = LogKey(checkpoint.origin, private_key.public_key())
    line = base64.b64encode(key.key_id + private_key.sign(body)).decode()
    return body + f"\n{_SIGNATURE_PREFIX}{checkpoint.origin} {line}\n".encode()


def verify_checkpoint(note: bytes, key: LogKey) -> Checkpoint:
    """Return the checkpoint, if ``key`` signed it as its origin.

    Raises:
        InvalidInputError: the note is not a checkpoint to the last byte.
        IntegrityError: ``key`` did not sign it, or its origin is another log.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise InvalidInputError(f"the checkpoint has more than {MAX_NOTE_BYTES} bytes")
    try:
        text = note.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError("the checkpoint is not UTF-8") from error
    # signed-note: the text may hold blank lines, so the last one ends it.
    body, separator, signatures = text.rpartition("\n\n")
    if not separator:
        raise InvalidInputError("the checkpoint has no signatures")
    body += "\n"
    candidates = _signatures_by(key, signatures)
    if not any(_verifies(key, signature, body.encode()) for signature in candidates):
        raise IntegrityError(f"the checkpoint is not signed by {key.name!r} with the known key")
    checkpoint = _parse_body(body)
    if checkpoint.origin != key.name:
        raise IntegrityError(f"the checkpoint is of another log than {key.name!r}")
    return checkpoint


def _signatures_by(key: LogKey, text: str) -> list[bytes]:
    lines = text.split("\n")
    if lines.pop() != "" or not 1 <= len(lines) <= MAX_SIGNATURES:
        raise InvalidInputError(
            f"the checkpoint needs 1 to {MAX_SIGNATURES} signature lines, each ended by a newline"
        )
    found: list[bytes] = []
    for line in lines:
        match line.removeprefix(_SIGNATURE_PREFIX).split(" "):
            case [name, encoded] if line.startswith(_SIGNATURE_PREFIX):
                _checked_name(name)
                blob = _decode_base64(encoded, what="signature line")
                if len(blob) <= _KEY_ID_BYTES:
                    raise InvalidInputError("a signature line of the checkpoint is too short")
                if name == key.name and blob[:_KEY_ID_BYTES] == key.key_id:
                    found.append(blob[_KEY_ID_BYTES:])
            case _:
                raise InvalidInputError("a signature line of the checkpoint is malformed")
    return found


def _verifies(key: LogKey, signature: bytes, body: bytes) -> bool:
    try:
        key.public_key.verify(signature, body)
    except InvalidSignature:
        return False
    return True


def _encode_body(checkpoint: Checkpoint) -> bytes:
    _checked_name(checkpoint.origin)
    if not 0 <= checkpoint.size <= MAX_TREE_SIZE or len(checkpoint.root) != HASH_BYTES:
        raise InvalidInputError("a checkpoint holds a tree size and a 32-byte root hash")
    root = base64.b64encode(checkpoint.root).decode()
    return f"{checkpoint.origin}\n{checkpoint.size}\n{root}\n".encode()


def _parse_body(body: str) -> Checkpoint:
    lines = body.split("\n")
    # No extension lines: this project writes none, and unknown statements are refused.
    if lines.pop() != "" or len(lines) != _CHECKPOINT_LINES:
        raise InvalidInputError("a checkpoint is three lines: origin, size and root hash")
    origin, size, encoded_root = lines
    if not _DECIMAL.fullmatch(size) or int(size) > MAX_TREE_SIZE:
        raise InvalidInputError("the checkpoint's size is not a decimal number without leading 0")
    root = _decode_base64(encoded_root, what="root hash")
    if len(root) != HASH_BYTES:
        raise InvalidInputError(f"the checkpoint's root hash has {len(root)} bytes, not 32")
    return Checkpoint(_checked_name(origin), int(size), root)


def _checked_name(name: str) -> str:
    if not _KEY_NAME.fullmatch(name) or not name.isprintable():
        raise InvalidInputError(
            f"{name[:80]!r} cannot name a log; use printable characters without spaces or '+'"
        )
    return name


def _decode_base64(text: str, *, what: str) -> bytes:
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(f"the checkpoint's {what} is not base64") from error
    # One encoding per value: stray bits after the last byte are refused.
    if base64.b64encode(decoded).decode() != text:
        raise InvalidInputError(f"the checkpoint's {what} is not canonical base64")
    return decoded
