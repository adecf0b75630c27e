"""Certificates put beside the keys that they are for, in a node's folder."""

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import PeerCertificate
from matl_common.identity.enrolling import Answer
from matl_common.identity.held_keys import load_tls_key
from matl_common.identity.keys import TLS_CURVES, load_private_key, public_key_pem, spki_pin
from matl_common.identity.node_folder import (
    PRIVATE_FOLDER_MODE,
    NodeFolder,
    write_public,
)
from matl_common.identity.pkcs11.uri import TokenUri


def install(
    node: NodeFolder, answer: Answer, *, now: datetime, tls_key: TokenUri | None = None
) -> PeerCertificate:
    """Put an answer's parts beside the keys it was made for, or here for one in a token.

    Raises:
        ConfigurationError: its certificate is for no key of the folder, or not for that one, or
            not valid now.
        TokenError: the token cannot be reached.
    """
    if tls_key is None:
        put_in_place(node, answer.certificate, now=now)
    else:
        check_validity(answer.certificate, now=now)
        if spki_pin(answer.certificate) != load_tls_key(tls_key).keyid:
            raise ConfigurationError(f"the answer's certificate is for another key than {tls_key}")
        node.folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
        write_public(node.tls.certificate_chain, _pem(answer.certificate))
    write_public(node.tls.trusted_authority, _pem(answer.coordinator_authority))
    signing_key = public_key_pem(answer.coordinator_signing_key)
    write_public(node.coordinator_signing_key, signing_key)
    write_public(node.log_verifier_key, answer.log_key.vkey.encode() + b"\n")
    return answer.node


def check_validity(certificate: x509.Certificate, *, now: datetime) -> None:
    """See that a certificate is valid now.

    Raises:
        ConfigurationError: it is not.
    """
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise ConfigurationError(
            f"the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; look at this machine's clock"
        )


def put_in_place(
    node: NodeFolder, certificate: x509.Certificate, *, now: datetime | None = None
) -> None:
    """Put a certificate in place, and its key and those made with it where they are the next.

    Raises:
        ConfigurationError: it is for no key of the folder, or not valid at ``now``.
    """
    if now is not None:
        check_validity(certificate, now=now)
    pin = spki_pin(certificate)
    for path in (node.tls.private_key, node.next_tls_key, node.next.tls.private_key):
        if path.exists() and spki_pin(load_private_key(path, curves=TLS_CURVES)) == pin:
            if path == node.next.tls.private_key:
                _replace_others(node)
            # The key first: a process that looks in between keeps what it had.
            path.replace(node.tls.private_key)
            write_public(node.tls.certificate_chain, _pem(certificate))
            return
    raise ConfigurationError(
        f"the certificate is for key {pin}, which no tls.key in {node.folder} is, nor one that "
        "was made to follow it; was the answer made for another node, or an earlier request?"
    )


def _replace_others(node: NodeFolder) -> None:
    """Put every next key but the TLS key in place, which stays last so that this can be resumed."""
    pairs = (
        (node.next.signing_key, node.signing_key),
        (node.next.signing_public_key, node.signing_public_key),
        (node.next.witness_key, node.witness_key),
    )
    for new, old in pairs:
        if new.exists():
            new.replace(old)
    # Made before these keys were, and may have been stolen with those that they replace.
    node.next_tls_key.unlink(missing_ok=True)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
