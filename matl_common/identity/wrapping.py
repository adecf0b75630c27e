"""Key-encryption keys: what wraps the data keys of the log.

A data key leaves the process only wrapped (AES key wrap, RFC 3394). The key-encryption key here
is a file, readable by its owner alone, and so software-held; ``pkcs11.wrapping`` has one in a
token. Whoever loses it has lost every entry it guards, and whoever can use it can read them; the
log's proofs need neither.
"""

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, IntegrityError

KEY_BYTES = 32
SOFTWARE_HELD = "software-held"
_CHECK_VALUE_CHARACTERS = 16


class KeyEncryptionKey(Protocol):
    """An AES-256 key that wraps others: a file, a token or a service."""

    @property
    def name(self) -> str:
        """Tells keys apart without telling anything of them: see ``name_of_zeros``."""

    @property
    def holder(self) -> str:
        """What holds it, for people to read."""

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What one may expect of its holder and does not have, for people to read."""

    def wrap(self, key: bytes) -> bytes:
        """Wrap a key of 32 bytes (RFC 3394 §2.2.1).

        Raises:
            ConfigurationError, TokenError: a token that holds it cannot be used.
        """

    def unwrap(self, wrapped: bytes) -> bytes:
        """Unwrap what this key has wrapped (RFC 3394 §2.2.2).

        Raises:
            IntegrityError: another key has wrapped it, or it was changed.
            ConfigurationError, TokenError: as ``wrap``.
        """


class SoftwareKeyEncryptionKey:
    """A key-encryption key held in this process's memory."""

    def __init__(self, key: bytes) -> None:
        """Take an AES-256 key of 32 bytes."""
        self._key = key
        self._name = name_of_zeros(aes_key_wrap(key, bytes(KEY_BYTES)))

    @property
    def name(self) -> str:
        """The first 16 hexadecimal characters of a hash of its wrapping of zeros."""
        return self._name

    @property
    def holder(self) -> str:
        """Software."""
        return SOFTWARE_HELD

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """None but that software holds it, which is said already."""
        return ()

    def wrap(self, key: bytes) -> bytes:
        """Wrap a key of 32 bytes."""
        return aes_key_wrap(self._key, key)

    def unwrap(self, wrapped: bytes) -> bytes:
        """Unwrap what this key has wrapped.

        Raises:
            IntegrityError: another key has wrapped it, or it was changed.
        """
        try:
            return aes_key_unwrap(self._key, wrapped)
        except (InvalidUnwrap, ValueError) as error:
            raise foreign_key_error(self._name) from error


def name_of_zeros(wrapped: bytes) -> str:
    """A key's name, by what it makes of 32 zeros: 16 hexadecimal characters of a hash.

    Deterministic, so the same key is known again wherever it is held.
    """
    return hashlib.sha256(wrapped).hexdigest()[:_CHECK_VALUE_CHARACTERS]


def foreign_key_error(name: str) -> IntegrityError:
    """What unwrapping raises where another key has wrapped."""
    return IntegrityError(
        f"a data key of the log does not unwrap with key-encryption key {name}; "
        "name the key that wrapped it"
    )


def create_key_file(path: Path) -> None:
    """Write a new key-encryption key, durably, readable by its owner alone.

    Raises:
        ConfigurationError: the file exists, or cannot be written.
    """
    if path.exists():
        raise ConfigurationError(f"{path} exists; a key that may wrap something is never replaced")
    try:
        write_atomically(path, [base64.b64encode(os.urandom(KEY_BYTES)) + b"\n"])
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the key-encryption key {path}: {error.strerror}"
        ) from error


def load_key_file(path: Path) -> SoftwareKeyEncryptionKey:
    """Load a key-encryption key: 32 bytes in base64, on one line.

    Raises:
        ConfigurationError: the file is missing, unreadable or holds something else.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the key-encryption key {path}: {error.strerror}; without it the log's "
            "entries cannot be read, so restore it from its backup"
        ) from error
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"{path} does not hold {KEY_BYTES} bytes in base64; make one with "
            "'openssl rand -base64 32'"
        )
    return SoftwareKeyEncryptionKey(key)
