"""DSSE envelopes: what is signed is the exact bytes that were sent.

The algorithm is fixed, ECDSA over P-256 with SHA-256, so there is nothing to
negotiate. A payload is only ever returned after its signature has been verified,
and never re-encoded to verify it. Whose key it is, and whether that node is
allowed, is decided by the caller.

Protocol: https://github.com/secure-systems-lab/dsse (protocol.md, envelope.md).
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.identity.keys import spki_pin

MAX_PAYLOAD_BYTES = 1 << 20
MAX_ENVELOPE_BYTES = 2 << 20
MAX_PAYLOAD_TYPE_CHARACTERS = 200
MAX_KEYID_CHARACTERS = 200
MAX_SIGNATURE_BYTES = 512

_ENVELOPE_KEYS = {"payload", "payloadType", "signatures"}
_SIGNATURE_KEYS = {"keyid", "sig"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with one signature. Call ``verify`` before believing the payload."""

    payload_type: str
    payload: bytes
    keyid: str
    signature: bytes


class Signer(Protocol):
    """Something that holds a P-256 key: a PEM file, a token or a service."""

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The verification key."""

    @property
    def keyid(self) -> str:
        """``keyid_of(public_key)``."""

    def sign(self, data: bytes, /) -> bytes:
        """Sign raw ``data`` with ECDSA and SHA-256; returns the DER signature.

        Raises:
            TokenError: a token that holds it cannot be used for now.
        """


def keyid_of(public_key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo in DER, in hexadecimal."""
    return spki_pin(public_key)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """PAE of DSSE v1: the bytes that are signed (protocol.md, "Signature Definition")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, signer: Signer) -> Envelope:
    """Sign exactly these payload bytes."""
    signature = signer.sign(pre_authentication_encoding(payload_type, payload))
    return Envelope(payload_type, payload, signer.keyid, signature)


def verify(envelope: Envelope, public_key: ec.EllipticCurvePublicKey, payload_type: str) -> bytes:
    """Return the payload, if this key signed it as this type.

    Args:
        envelope: what arrived.
        public_key: the P-256 key the allow-list holds for the expected signer. The
            envelope's own ``keyid`` is a hint and decides nothing.
        payload_type: the type the caller is about to parse.

    Raises:
        IntegrityError: another type, another key or other bytes.
    """
    if envelope.payload_type != payload_type:
        raise IntegrityError(
            f"the envelope holds {envelope.payload_type[:80]!r}; expected '{payload_type}'"
        )
    signed = pre_authentication_encoding(payload_type, envelope.payload)
    try:
        public_key.verify(envelope.signature, signed, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise IntegrityError(
            f"the signature on a '{payload_type}' envelope does not verify with key "
            f"{keyid_of(public_key)}; check which key the sender signs with"
        ) from error
    return envelope.payload


def encode_envelope(envelope: Envelope) -> bytes:
    """The envelope as DSSE JSON (envelope.md), deterministically."""
    document = {
        "payload": base64.b64encode(envelope.payload).decode(),
        "payloadType": envelope.payload_type,
        "signatures": [
            {"keyid": envelope.keyid, "sig": base64.b64encode(envelope.signature).decode()}
        ],
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def parse_envelope(data: bytes) -> Envelope:
    """Parse DSSE JSON holding exactly one signature.

    Raises:
        InvalidInputError: too long, not JSON, a key missing, repeated or unknown, bad
            base64, or not exactly one signature.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise InvalidInputError(f"the envelope exceeds {MAX_ENVELOPE_BYTES} bytes")
    try:
        document = json.loads(data, object_pairs_hook=_unique_pairs)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("the envelope is not JSON") from error
    match document:
        case {
            "payload": str(payload),
            "payloadType": str(payload_type),
            "signatures": [{"keyid": str(keyid), "sig": str(signature)} as only],
        } if set(document) == _ENVELOPE_KEYS and set(only) == _SIGNATURE_KEYS:
            return checked_envelope(payload_type, _unbase64(payload), keyid, _unbase64(signature))
    raise InvalidInputError("the envelope is not DSSE JSON with exactly one signature")


def checked_envelope(payload_type: str, payload: bytes, keyid: str, signature: bytes) -> Envelope:
    """Build an envelope from fields that came from outside, within the size limits.

    Raises:
        InvalidInputError: a field is too long.
    """
    fields = (
        ("payload type", len(payload_type), MAX_PAYLOAD_TYPE_CHARACTERS),
        ("payload", len(payload), MAX_PAYLOAD_BYTES),
        ("keyid", len(keyid), MAX_KEYID_CHARACTERS),
        ("signature", len(signature), MAX_SIGNATURE_BYTES),
    )
    for name, length, limit in fields:
        if length > limit:
            raise InvalidInputError(f"the envelope's {name} has length {length}; at most {limit}")
    return Envelope(payload_type, payload, keyid, signature)


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidInputError("the envelope repeats a key")
    return result


def _unbase64(text: str) -> bytes:
    # envelope.md lets a producer choose either alphabet.
    standard = text.translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(standard, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError("the envelope holds a field that is not base64") from error
