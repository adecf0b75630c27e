"""Entries encrypted for the log: AES-256-GCM under a data key, bound to their place.

A payload is ``nonce (12) ‖ AES-256-GCM(salt (32) ‖ entry)``. The associated data names the
log, the index, the time and the key, so a payload opens nowhere else. Nonces are random and
never derived from the index: a batch that was rolled back takes the same index again with
another text. Nothing here keeps or makes a key.
"""

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from matl_common.errors import IntegrityError
from matl_common.ids import digest_of
from matl_common.tlog.entry import Entry
from matl_common.tlog.leaf import (
    SALT_BYTES,
    Leaf,
    check_disclosure,
    encode_leaf,
    plaintext_digest,
)

DATA_KEY_BYTES = 32
NONCE_BYTES = 12
RANDOM_BYTES = SALT_BYTES + NONCE_BYTES


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key that encrypts the payloads of one month."""

    name: str
    cipher: AESGCM


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the log keeps of an entry."""

    leaf: bytes
    """``leaf.encode_leaf``; hashed into the tree."""
    payload: bytes
    salt: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """An entry with the salt that shows a leaf to be of it."""

    data: bytes
    salt: bytes


def data_key(name: str, key: bytes) -> DataKey:
    """A data key of 32 bytes."""
    return DataKey(name, AESGCM(key))


def seal(entry: Entry, *, origin: str, index: int, key: DataKey, random: bytes) -> Sealed:
    """Encrypt an entry for one place in the log.

    Args:
        entry: what happened.
        origin: the log's name.
        index: its position in the log.
        key: the data key of the entry's month.
        random: 44 fresh random bytes: salt and nonce.
    """
    salt, nonce = random[:SALT_BYTES], random[SALT_BYTES:RANDOM_BYTES]
    bound = _associated_data(origin, index, entry.at, key.name)
    payload = nonce + key.cipher.encrypt(nonce, salt + entry.data, bound)
    leaf = Leaf(
        origin=origin,
        index=index,
        at=entry.at,
        event=entry.event,
        node=entry.node,
        round=entry.round,
        plaintext=plaintext_digest(salt, entry.data),
        ciphertext=digest_of(payload),
        key=key.name,
    )
    return Sealed(encode_leaf(leaf), payload, salt)


def check_payload(leaf: Leaf, payload: bytes) -> None:
    """Check that a payload is the one the leaf commits to; needs no key.

    Raises:
        IntegrityError: it is another.
    """
    if digest_of(payload) != leaf.ciphertext:
        raise IntegrityError(f"the payload of leaf {leaf.index} is not the one it commits to")


def open_sealed(leaf: Leaf, payload: bytes, key: DataKey) -> Opened:
    """Decrypt a payload and check that it is what the leaf commits to.

    Raises:
        IntegrityError: another payload, another key, or another text.
    """
    check_payload(leaf, payload)
    bound = _associated_data(leaf.origin, leaf.index, leaf.at, leaf.key)
    try:
        text = key.cipher.decrypt(payload[:NONCE_BYTES], payload[NONCE_BYTES:], bound)
    except (InvalidTag, ValueError) as error:
        raise IntegrityError(
            f"the payload of leaf {leaf.index} does not open with data key {leaf.key}"
        ) from error
    opened = Opened(data=text[SALT_BYTES:], salt=text[:SALT_BYTES])
    check_disclosure(leaf, salt=opened.salt, plaintext=opened.data)
    return opened


def _associated_data(origin: str, index: int, at: str, key: str) -> bytes:
    return "\n".join(["matl-log-payload-v1", origin, str(index), at, key]).encode()
