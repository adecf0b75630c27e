"""Keys in a test's memory that sign as those of files and tokens do."""

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from matl_common.signing import keyid_of


class SoftwareSigner:
    """A P-256 key that no file holds."""

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key()
        self.keyid = keyid_of(self.public_key)

    def sign(self, data: bytes, /) -> bytes:
        return self._private_key.sign(data, ec.ECDSA(SHA256()))
