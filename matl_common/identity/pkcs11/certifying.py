"""A key in a token as ``cryptography`` takes private keys: it signs certificates and requests."""

from typing import NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from matl_common.identity.pkcs11.signing import TokenSigningKey


class TokenPrivateKey(ec.EllipticCurvePrivateKey):
    """A P-256 key whose ``sign`` calls its token. It cannot do what would need the key here."""

    def __init__(self, key: TokenSigningKey[ec.EllipticCurvePublicKey]) -> None:
        """Sign with ``key``."""
        self._key = key

    def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:  # type: ignore[override]
        """Sign raw ``data`` with ECDSA and SHA-256.

        Raises:
            TokenError: the token cannot be used for now.
        """
        if not isinstance(signature_algorithm.algorithm, SHA256):
            raise UnsupportedAlgorithm("a token's P-256 key signs with SHA-256")
        return self._key.sign(data)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The verification key."""
        return self._key.public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._key.public_key.curve

    @property
    def key_size(self) -> int:
        """256."""
        return self.curve.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Refuse: a key for signatures agrees on no secrets."""
        raise UnsupportedAlgorithm("a token's signing key only signs")

    def private_numbers(self) -> NoReturn:
        """Refuse: they never leave the token."""
        raise UnsupportedAlgorithm("a token's key never leaves it")

    def private_bytes(self, *_: object, **__: object) -> NoReturn:
        """Refuse: they never leave the token."""
        raise UnsupportedAlgorithm("a token's key never leaves it")

    def __copy__(self) -> "TokenPrivateKey":
        """Itself; the key is in the token once."""
        return self

    def __deepcopy__(self, memo: object) -> "TokenPrivateKey":
        """Itself; the key is in the token once."""
        return self
