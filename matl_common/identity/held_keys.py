"""Keys that sign, wherever they are: in a PEM file, which is software-held, or in a token.

The rest of the product asks for a key by its use and is told who holds it; only here and in
``pkcs11`` does it matter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError
from matl_common.identity.key_places import KeyPlace
from matl_common.identity.keys import (
    TLS_CURVES,
    generate_private_key,
    load_ed25519_private_key,
    load_private_key,
    permission_warning,
    private_key_pem,
    spki_pin,
)
from matl_common.identity.pkcs11.signing import (
    ED25519,
    P256,
    PublicKeyT,
    TokenSigningKey,
    create_token_pair,
)
from matl_common.identity.pkcs11.uri import TokenUri
from matl_common.identity.wrapping import SOFTWARE_HELD

_ECDSA = ec.ECDSA(SHA256())

PublicKeyT_co = TypeVar(
    "PublicKeyT_co", bound=ec.EllipticCurvePublicKey | Ed25519PublicKey, covariant=True
)


class KeyKind(StrEnum):
    """The kinds of keys that sign."""

    P256 = "p256"
    """TLS, and what a node signs: updates, plans, receipts."""
    P384 = "p384"
    """TLS alone, in a file."""
    ED25519 = "ed25519"
    """The log's checkpoints, and the cosignatures of witnesses."""


class HeldKey(Protocol[PublicKeyT_co]):
    """A private key that somebody holds and that signs."""

    @property
    def public_key(self) -> PublicKeyT_co:
        """The verification key."""

    @property
    def keyid(self) -> str:
        """The pin of its public key."""

    @property
    def holder(self) -> str:
        """What holds it, for people to read."""

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What one may expect of its holder and does not have, for people to read."""

    def sign(self, data: bytes, /) -> bytes:
        """Sign raw ``data``: ECDSA with SHA-256, in DER; or Ed25519.

        Raises:
            TokenError: a token that holds it cannot be used for now.
        """


P256Key = HeldKey[ec.EllipticCurvePublicKey]
Ed25519Key = HeldKey[Ed25519PublicKey]


@dataclass(frozen=True, slots=True)
class SoftwareKey(Generic[PublicKeyT]):
    """A key that was read from a file, and is in this process's memory."""

    path: Path
    public_key: PublicKeyT
    _sign: Callable[[bytes], bytes]

    @property
    def keyid(self) -> str:
        """The pin of its public key."""
        return spki_pin(self.public_key)

    @property
    def holder(self) -> str:
        """Software."""
        return SOFTWARE_HELD

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What its file gives away; that software holds it is said already."""
        readable = permission_warning(self.path) if self.path.exists() else None
        return () if readable is None else (readable,)

    def sign(self, data: bytes, /) -> bytes:
        """Sign raw ``data``."""
        return self._sign(data)


def load_p256_key(place: KeyPlace) -> P256Key:
    """Load a P-256 key, or open its token.

    Raises:
        ConfigurationError: it is not there, of another type, or not as configured.
        TokenError: its token cannot be reached.
    """
    match place:
        case Path():
            key = load_private_key(place)
            return SoftwareKey(place, key.public_key(), lambda data: key.sign(data, _ECDSA))
        case TokenUri():
            return TokenSigningKey(place, P256)


def load_tls_key(place: KeyPlace) -> P256Key:
    """Load what proves to be this node in TLS; in a file it may also be a P-384 key.

    Raises:
        ConfigurationError, TokenError: as ``load_p256_key``.
    """
    match place:
        case Path():
            key = load_private_key(place, curves=TLS_CURVES)
            return SoftwareKey(place, key.public_key(), lambda data: key.sign(data, _ECDSA))
        case TokenUri():
            return TokenSigningKey(place, P256)


def load_ed25519_key(place: KeyPlace) -> Ed25519Key:
    """Load an Ed25519 key, or open its token.

    Raises:
        ConfigurationError, TokenError: as ``load_p256_key``.
    """
    match place:
        case Path():
            key = load_ed25519_private_key(place)
            return SoftwareKey(place, key.public_key(), key.sign)
        case TokenUri():
            return TokenSigningKey(place, ED25519)


def generate_key(place: KeyPlace, kind: KeyKind) -> P256Key | Ed25519Key:
    """Make a key where there is none; one in a token never leaves it.

    Raises:
        ConfigurationError: there is one already, or it cannot be made there.
        TokenError: its token cannot be reached.
    """
    match place, kind:
        case TokenUri(), KeyKind.P256:
            return create_token_pair(place, P256)
        case TokenUri(), KeyKind.ED25519:
            return create_token_pair(place, ED25519)
        case TokenUri(), KeyKind.P384:
            raise ConfigurationError("a key in a token is p256 or ed25519")
        case Path(), KeyKind.ED25519:
            _write_new(place, private_key_pem(Ed25519PrivateKey.generate()))
            return load_ed25519_key(place)
        case _:
            assert isinstance(place, Path)
            curve = ec.SECP384R1 if kind is KeyKind.P384 else ec.SECP256R1
            _write_new(place, private_key_pem(generate_private_key(curve)))
            return load_tls_key(place)


def refuse_shared_keys(keys: Mapping[str, P256Key]) -> None:
    """See that no key serves two uses; ``keys`` by what the configuration calls them.

    Ed25519 keys have a use of their own by their type.

    Raises:
        ConfigurationError: one does, so one use could stand for the other.
    """
    for (one, key), (other, same) in combinations(keys.items(), 2):
        if key.keyid == same.keyid:
            raise ConfigurationError(
                f"{one} and {other} are the same key, {key.keyid[:16]}; make a key for each use"
            )


def _write_new(path: Path, pem: bytes) -> None:
    if path.exists():
        raise ConfigurationError(f"{path} exists; a key that may be in use is never replaced")
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"there is no folder {path.parent} for the key; make it: mkdir -p -m 700 {path.parent}"
        )
    try:
        write_atomically(path, [pem])
    except OSError as error:
        raise ConfigurationError(f"cannot write the key {path}: {error.strerror}") from error
