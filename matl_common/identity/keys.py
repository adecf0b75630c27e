"""Elliptic-curve keys as files, and the pin that names a key.

Keys only: nothing here knows whose they are. Private keys are written unencrypted,
readable by their owner alone; they are software-held, whatever the folder is called.
"""

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.tlog.note import VerifierKey, parse_verifier_key

SIGNING_CURVES = (ec.SECP256R1,)
TLS_CURVES = (ec.SECP256R1, ec.SECP384R1)

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def generate_private_key(
    curve: type[ec.EllipticCurve] = ec.SECP256R1,
) -> ec.EllipticCurvePrivateKey:
    """Make a new key, on P-256 unless told otherwise."""
    return ec.generate_private_key(curve())


def private_key_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    """The key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_key_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key as SubjectPublicKeyInfo PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_private_key(
    path: Path, *, curves: Sequence[type[ec.EllipticCurve]] = SIGNING_CURVES
) -> ec.EllipticCurvePrivateKey:
    """Load an unencrypted private key on one of these curves from PEM.

    Raises:
        ConfigurationError: the file is missing, unreadable or holds something else.
    """
    key = _load_any_private_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, tuple(curves)):
        raise ConfigurationError(
            f"{path} does not hold a {_named(curves)} key; make one for this use"
        )
    return key


def check_curve(key: ec.EllipticCurvePublicKey, curves: Sequence[type[ec.EllipticCurve]]) -> None:
    """Refuse a key on another curve.

    Raises:
        InvalidInputError: it is.
    """
    if not isinstance(key.curve, tuple(curves)):
        raise InvalidInputError(f"the key is on {key.curve.name}, not {_named(curves)}")


def _named(curves: Sequence[type[ec.EllipticCurve]]) -> str:
    return " or ".join(f"P-{curve().key_size}" for curve in curves)


def load_ed25519_private_key(path: Path) -> Ed25519PrivateKey:
    """Load an unencrypted Ed25519 private key from PEM, such as a log signs with.

    Raises:
        ConfigurationError: the file is missing, unreadable or holds something else.
    """
    key = _load_any_private_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} does not hold an Ed25519 key; make one for this use")
    return key


def parse_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Parse a P-256 public key from PEM.

    Raises:
        InvalidInputError: the bytes are not one.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInputError("not a public key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInputError("the public key is not a P-256 key")
    return key


def load_verifier_key(path: Path) -> VerifierKey:
    """A log's verifier key, which its file holds in one line (C2SP signed-note).

    Raises:
        ConfigurationError: the file cannot be read, or holds something else.
    """
    try:
        return parse_verifier_key(path.read_text("utf-8").strip())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, InvalidInputError) as error:
        raise ConfigurationError(f"{path} is not a verifier key in one line: {error}") from error


def permission_warning(path: Path) -> str | None:
    """Say what is wrong with a private key file's permissions, or nothing."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & _OTHERS:
        return None
    return f"{path} can be used by other accounts (mode {mode:04o}); run: chmod 600 {path}"


def spki_pin(
    holder: x509.Certificate
    | ec.EllipticCurvePublicKey
    | ec.EllipticCurvePrivateKey
    | Ed25519PublicKey,
) -> str:
    """SHA-256 of the holder's SubjectPublicKeyInfo in DER, in hexadecimal."""
    match holder:
        case x509.Certificate() | ec.EllipticCurvePrivateKey():
            key = holder.public_key()
        case _:
            key = holder
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def witness_keyid(key: VerifierKey) -> str:
    """SHA-256 of a witness's public key, in hexadecimal; of a P-256 key the same as its pin."""
    return hashlib.sha256(key.public_key).hexdigest()


def _load_any_private_key(path: Path) -> object:
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the private key {path}: {error.strerror}; check the path and its owner"
        ) from error
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{path} is not an unencrypted private key in PEM form; convert it with "
            "'openssl pkcs8 -topk8 -nocrypt'"
        ) from error
