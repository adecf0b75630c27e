"""Handshakes of a client whose TLS key is in a token; the only module with gRPC's custom signer.

gRPC calls that interface experimental. It hands over what is to be signed, not its digest.
"""

import warnings

import grpc
import grpc.experimental
import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from matl_common.errors import MatlError
from matl_common.identity.pkcs11.signing import TokenSigningKey

_ECDSA_P256 = grpc.experimental.PrivateKeySignatureAlgorithm.ECDSA_SECP256R1_SHA256

log = structlog.get_logger(__name__)


class HandshakeError(MatlError):
    """The handshake asks for a signature that a P-256 key cannot give."""


def signed_channel_credentials(
    key: TokenSigningKey[ec.EllipticCurvePublicKey], *, chain: bytes, authority: bytes
) -> grpc.ChannelCredentials:
    """Credentials whose handshakes are signed by ``key``, in its token.

    Args:
        key: of the first certificate in ``chain``.
        chain: PEM.
        authority: PEM; the only one that is trusted.
    """

    def sign(
        data: bytes, algorithm: grpc.experimental.PrivateKeySignatureAlgorithm, _: object
    ) -> bytes:
        try:
            if algorithm != _ECDSA_P256:
                raise HandshakeError(
                    f"a handshake wants a signature of type {algorithm.name}, and a token's TLS "
                    "key is on P-256; put the certificate of that key in place"
                )
            return key.sign(data)
        except MatlError as error:
            # gRPC tells the caller only that the connection was not made.
            log.warning("tls_key_failed", reason=str(error))
            raise

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", grpc.experimental.ExperimentalApiWarning)
        credentials: grpc.ChannelCredentials = (
            grpc.experimental.ssl_channel_credentials_with_custom_signer(
                private_key_sign_fn=sign, root_certificates=authority, certificate_chain=chain
            )
        )
    return credentials
