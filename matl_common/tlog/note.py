"""Signed notes: a text, and signature lines of named keys.

Which signature types exist is data: a ``SignatureType`` says how keys of a type are
encoded and what their signatures cover, and further types live beside their meaning
(``cosignature.py``). Nothing here holds a private key: a ``Signer`` does, which may be
a key in memory or in a token. Nothing here decides whose keys are known.

Format: https://c2sp.org/signed-note.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from matl_common.errors import IntegrityError, InvalidInputError

MAX_NOTE_BYTES = 256 << 10
MAX_SIGNATURES = 100
MAX_NAME_CHARACTERS = 200
KEY_ID_BYTES = 4

_SIGNATURE_PREFIX = "\N{EM DASH} "
_NAME = re.compile(r"[^\s+]+")
_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")

# Raises InvalidSignature unless the second argument signs the first.
Verify = Callable[[bytes, bytes], None]


class Signer(Protocol):
    """Something that holds a private key: a PEM file, a token or a service."""

    def sign(self, data: bytes, /) -> bytes:
        """Sign raw ``data``; ECDSA with SHA-256 returns a DER signature."""


def plain_statement(_name: str, text: bytes, signature: bytes) -> tuple[bytes, bytes]:
    """What a signature covers that signs the text as it is."""
    return text, signature


def _recommended_hash(name: str, typed_key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + typed_key).digest()


@dataclass(frozen=True, slots=True)
class SignatureType:
    """How keys of one type are encoded and what their signatures cover.

    Attributes:
        identifier: the assigned type byte; or 0xff and a longer name, which must not be
            the beginning of another's.
        load: makes a verifying function of a public key's bytes, which have one
            encoding only; raises ValueError or UnsupportedAlgorithm for anything else.
        statement: from key name, note text and the line's signature, the bytes that
            were signed and the bare signature over them; raises InvalidInputError.
        hash_key: from key name, and identifier with public key, the hash whose first
            four bytes are the key id.
    """

    identifier: bytes
    load: Callable[[bytes], Verify]
    statement: Callable[[str, bytes, bytes], tuple[bytes, bytes]] = plain_statement
    hash_key: Callable[[str, bytes], bytes] = _recommended_hash


def load_ed25519(public_key: bytes) -> Verify:
    """An Ed25519 public key of 32 bytes (RFC 8032)."""
    key = Ed25519PublicKey.from_public_bytes(public_key)
    return lambda message, signature: key.verify(signature, message)


def load_p256(spki: bytes) -> Verify:
    """A P-256 public key as SubjectPublicKeyInfo in DER; signatures are DER over SHA-256."""
    key = load_der_public_key(spki)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a P-256 key")
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
        raise ValueError("another encoding than the usual")
    return lambda message, signature: key.verify(signature, message, ec.ECDSA(SHA256()))


ED25519 = SignatureType(b"\x01", load_ed25519)
ECDSA_P256 = SignatureType(
    b"\x02",
    load_p256,
    hash_key=lambda _name, typed_key: hashlib.sha256(typed_key[1:]).digest(),
)
NOTE_TYPES = (ED25519, ECDSA_P256)


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line. It proves nothing until a known key has verified it."""

    name: str
    key_id: bytes
    signature: bytes

    def encode(self) -> bytes:
        """The line, with its newline."""
        blob = base64.b64encode(self.key_id + self.signature).decode()
        return f"{_SIGNATURE_PREFIX}{self.name} {blob}\n".encode()


@dataclass(frozen=True, slots=True)
class Note:
    """A text, which ends in a newline, and all its signature lines, verified or not."""

    text: bytes
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """The note as it is stored and sent."""
        return self.text + b"\n" + b"".join(line.encode() for line in self.signatures)


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named public key of one signature type.

    Raises:
        InvalidInputError: the name or the key cannot stand in a verifier key.
    """

    name: str
    signature_type: SignatureType
    public_key: bytes

    def __post_init__(self) -> None:
        checked_name(self.name)
        try:
            self.signature_type.load(self.public_key)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInputError(
                f"the key of {self.name!r} is not a public key of its type"
            ) from error

    @property
    def key_id(self) -> bytes:
        """The four bytes that name this key, with its name, in signature lines."""
        return self.signature_type.hash_key(self.name, self._typed_key)[:KEY_ID_BYTES]

    @property
    def vkey(self) -> str:
        """The key as text, ``name+id+key``."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(self._typed_key).decode()}"

    def verify(self, text: bytes, signature: bytes) -> None:
        """Check the signature of a line by this key.

        Raises:
            IntegrityError: it does not cover this text, or another key made it.
        """
        try:
            signed, bare = self.signature_type.statement(self.name, text, signature)
            self.signature_type.load(self.public_key)(signed, bare)
        except (InvalidSignature, InvalidInputError) as error:
            raise IntegrityError(
                f"a signature under the name {self.name!r} does not verify with key "
                f"{self.key_id.hex()}"
            ) from error

    @property
    def _typed_key(self) -> bytes:
        return self.signature_type.identifier + self.public_key


def encode_public_key(key: Ed25519PublicKey | ec.EllipticCurvePublicKey) -> bytes:
    """The bytes of a public key as signature types encode them."""
    match key:
        case Ed25519PublicKey():
            return key.public_bytes_raw()
        case _:
            return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def parse_verifier_key(text: str, types: Iterable[SignatureType] = NOTE_TYPES) -> VerifierKey:
    """Parse a key written as ``name+id+key``, of one of the accepted types.

    Raises:
        InvalidInputError: another form or type, or a key id that does not match.
    """
    # Base64 may hold '+', a key name may not.
    match text.split("+", maxsplit=2):
        case [name, _, encoded]:
            typed_key = decode_base64(encoded, what="verifier key")
            for each in types:
                if typed_key.startswith(each.identifier):
                    key = VerifierKey(name, each, typed_key.removeprefix(each.identifier))
                    if key.vkey == text:
                        return key
                    raise InvalidInputError(f"the key id of {name[:80]!r} does not match its key")
            raise InvalidInputError(f"the key of {name[:80]!r} is not of a type accepted here")
    raise InvalidInputError("not a verifier key; expected name+id+key as in C2SP signed-note")


def sign_note(text: bytes, key: VerifierKey, signer: Signer) -> NoteSignature:
    """Sign a text as it is; ``signer`` holds the private key of ``key``.

    Raises:
        IntegrityError: it holds another.
    """
    return signature_line(text, key, signer.sign(text))


def signature_line(text: bytes, key: VerifierKey, signature: bytes) -> NoteSignature:
    """The line for a signature just made.

    Raises:
        IntegrityError: another key made it; check which key the signer holds.
    """
    key.verify(text, signature)
    return NoteSignature(key.name, key.key_id, signature)


def verified_signatures(
    note: Note, keys: Collection[VerifierKey]
) -> tuple[tuple[VerifierKey, NoteSignature], ...]:
    """The signatures of a note by known keys, in the note's order; there may be none.

    Lines by other keys are passed over, even under a known name.

    Raises:
        IntegrityError: a line names a known key and does not verify with it.
    """
    known = {(key.name, key.key_id): key for key in keys}
    found: list[tuple[VerifierKey, NoteSignature]] = []
    for line in note.signatures:
        if key := known.get((line.name, line.key_id)):
            key.verify(note.text, line.signature)
            found.append((key, line))
    return tuple(found)


def parse_note(data: bytes) -> Note:
    """Take a note apart. Its text must not be believed before a key has verified it.

    Raises:
        InvalidInputError: it is not a signed note to the last byte.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise InvalidInputError(f"the note has more than {MAX_NOTE_BYTES} bytes")
    if _CONTROL.search(data):
        raise InvalidInputError("the note holds a control character")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError("the note is not UTF-8") from error
    # The text may hold blank lines, so the last one ends it.
    body, separator, signatures = text.rpartition("\n\n")
    if not separator:
        raise InvalidInputError("the note has no signatures")
    lines = signatures.split("\n")
    if lines.pop() != "" or not 1 <= len(lines) <= MAX_SIGNATURES:
        raise InvalidInputError(
            f"a note needs 1 to {MAX_SIGNATURES} signature lines, each ended by a newline"
        )
    return Note(f"{body}\n".encode(), tuple(_parse_line(line) for line in lines))


def _parse_line(line: str) -> NoteSignature:
    match line.removeprefix(_SIGNATURE_PREFIX).split(" "):
        case [name, encoded] if line.startswith(_SIGNATURE_PREFIX) and _NAME.fullmatch(name):
            blob = decode_base64(encoded, what="signature line")
            if len(blob) <= KEY_ID_BYTES:
                raise InvalidInputError("a signature line of the note is too short")
            return NoteSignature(name, blob[:KEY_ID_BYTES], blob[KEY_ID_BYTES:])
    raise InvalidInputError("a signature line of the note is malformed")


def checked_name(name: str) -> str:
    """A name that a key may carry and a log have as its origin.

    Raises:
        InvalidInputError: it is another.
    """
    if not (_NAME.fullmatch(name) and name.isprintable() and len(name) <= MAX_NAME_CHARACTERS):
        raise InvalidInputError(
            f"{name[:80]!r} cannot name a key or a log; use up to {MAX_NAME_CHARACTERS} "
            "printable characters without spaces or '+'"
        )
    return name


def decode_base64(text: str, *, what: str) -> bytes:
    """Standard base64 with padding, in its one canonical form.

    Raises:
        InvalidInputError: it is not; ``what`` names it.
    """
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(f"the {what} is not base64") from error
    # One encoding per value: stray bits after the last byte are refused.
    if base64.b64encode(decoded).decode() != text:
        raise InvalidInputError(f"the {what} is not canonical base64")
    return decoded
