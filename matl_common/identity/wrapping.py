"""Key-encryption keys: what wraps the data keys of the log.

A data key leaves the process only wrapped (AES key wrap, RFC 3394). The key-encryption key
is a file here, readable by its owner alone, and so software-held. Whoever loses it has lost
every entry it guards, and whoever reads it can read them; the log's proofs need neither.
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
_CHECK_VALUE_CHARACTERS = 16


class KeyEncryptionKey(Protocol):
    """An AES-256 key that wraps others: a file, a token or a service."""

    @property
    def name(self) -> str:
        """Tells keys apart without telling anything of them."""

    def wrap(self, key: bytes) -> bytes:
        """Wrap a key of 32 bytes (RFC 3394 §2.2.1)."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """Unwrap what this key has wrapped (RFC 3394 §2.2.2).

        Raises:
            IntegrityError: another key has wrapped it, or it was changed.
        """


class SoftwareKeyEncryptionKey:
    """A key-encryption key held in this process's memory."""

    def __init__(self, key: bytes) -> None:
        """Take an AES-256 key of 32 bytes."""
        self._key = key
        # Deterministic, so the same key is known again wherever it is held.
        check_value = hashlib.sha256(aes_key_wrap(key, bytes(KEY_BYTES))).hexdigest()
        self._name = check_value[:_CHECK_VALUE_CHARACTERS]

    @property
    def name(self) -> str:
        """The first 16 hexadecimal characters of a hash of its wrapping of zeros."""
        return self._name

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
            raise IntegrityError(
                f"a data key of the log does not unwrap with key-encryption key {self._name}; "
                "name the key that wrapped it"
            ) from error


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
