"""New TLS keys and certificates for a federation that runs."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.identity.certificates import (
    COORDINATOR_ROLES,
    PARTICIPANT_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    issue_certificate,
)
from matl_common.identity.development import LOOPBACK_NAMES
from matl_common.identity.keys import load_private_key, private_key_pem
from matl_common.ids import NodeId
from tests.system.federation import COORDINATOR, FEDERATION, Federation


def replace_files(
    federation: Federation,
    node: NodeId,
    key: ec.EllipticCurvePrivateKey,
    *,
    valid_for: timedelta = timedelta(days=7),
) -> x509.Certificate:
    """Put a new key with its certificate in place, one file after the other."""
    serves = node == COORDINATOR
    side, roles = (
        ("coordinator", COORDINATOR_ROLES) if serves else ("participant", PARTICIPANT_ROLES)
    )
    keys = federation.folder / "keys"
    issuer = CertificateAuthority(
        x509.load_pem_x509_certificate((keys / f"{side}-ca.crt").read_bytes()),
        load_private_key(keys / f"{side}-ca.key"),
        roles,
    )
    now = datetime.now(UTC)
    certificate = issue_certificate(
        issuer,
        key.public_key(),
        SpiffeId(FEDERATION, Role.COORDINATOR if serves else Role.PARTICIPANT, node),
        not_before=now - timedelta(minutes=5),
        not_after=now + valid_for,
        server_names=LOOPBACK_NAMES if serves else (),
    )
    files = federation.keys[node].tls
    files.private_key.write_bytes(private_key_pem(key))
    files.certificate_chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    return certificate
