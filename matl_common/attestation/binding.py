"""What a report must be about: this TLS key, this question, this federation, this configuration.

A report proves that a measured program asked the hardware to sign 64 bytes. That those bytes
are this hash makes the report useless for any other connection, time or study.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from matl_common.errors import InvalidInputError
from matl_common.ids import Digest

NONCE_BYTES = 32
REPORT_DATA_BYTES = 64

_LABEL = b"fl-ratls-v1"


@dataclass(frozen=True, slots=True)
class Binding:
    """What the verifier holds, to be found in the report."""

    tls_spki: bytes
    """SubjectPublicKeyInfo in DER of the coordinator's TLS leaf."""
    nonce: bytes
    """``NONCE_BYTES`` that the verifier drew for this one question."""
    federation_id: str
    config_digest: Digest
    """Of what the coordinator's configuration decides."""

    @property
    def report_data(self) -> bytes:
        """SHA-512 over a label and the four fields; 64 bytes.

        Every field follows its length in four bytes, big-endian. Joined without lengths, bytes
        could move from one field into the next under the same hash: the end of a key into the
        beginning of a nonce, say. The label needs none, because it is constant and first.

        Raises:
            InvalidInputError: the nonce has another length.
        """
        if len(self.nonce) != NONCE_BYTES:
            raise InvalidInputError(
                f"the nonce has {len(self.nonce)} bytes; a verifier draws {NONCE_BYTES}"
            )
        fields = (
            self.tls_spki,
            self.nonce,
            self.federation_id.encode(),
            bytes.fromhex(self.config_digest),
        )
        framed = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
        return hashlib.sha512(_LABEL + framed).digest()


def tls_spki(certificate: x509.Certificate) -> bytes:
    """The certificate's SubjectPublicKeyInfo in DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
