"""The two authorities of a federation, as files of one folder, and what they certify.

    coordinator-ca.{crt,key}  participant-ca.{crt,key}

Where the coordinator's TLS key is in a token, that key is the coordinators' authority, and there
is no ``coordinator-ca.key``.
"""

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import (
    CLOCK_SKEW,
    COORDINATOR_ROLES,
    PARTICIPANT_ROLES,
    CertificateAuthority,
    SpiffeId,
    create_authority,
    issue_certificate,
)
from matl_common.identity.keys import load_private_key, private_key_pem, spki_pin
from matl_common.identity.node_folder import NodeFolder, write_public

AUTHORITY_VALIDITY = timedelta(days=5 * 365)
CERTIFICATE_VALIDITY = timedelta(days=365)

COORDINATOR_SIDE, PARTICIPANT_SIDE = "coordinator", "participant"
SIDES = {COORDINATOR_SIDE: COORDINATOR_ROLES, PARTICIPANT_SIDE: PARTICIPANT_ROLES}


def make_authority(
    folder: Path, side: str, name: str, *, not_before: datetime, not_after: datetime
) -> None:
    """Make an authority with its key in a file."""
    made = create_authority(name, roles=SIDES[side], not_before=not_before, not_after=not_after)
    write_public(folder / f"{side}-ca.crt", made.certificate.public_bytes(Encoding.PEM))
    write_atomically(folder / f"{side}-ca.key", [private_key_pem(made.private_key)])


def load_authority(folder: Path, side: str) -> CertificateAuthority:
    """An authority whose key is in the folder.

    Raises:
        ConfigurationError: a file is missing, or they do not fit.
    """
    certificate = read_certificate(folder / f"{side}-ca.crt")
    key = load_private_key(folder / f"{side}-ca.key")
    if spki_pin(certificate) != spki_pin(key):
        raise ConfigurationError(f"{side}-ca.crt and {side}-ca.key in {folder} do not fit")
    return CertificateAuthority(certificate, key, SIDES[side])


def is_rooted_in_token(folder: Path, coordinator: NodeFolder) -> bool:
    """Whether the coordinators' authority is the coordinator's own TLS key.

    Raises:
        ConfigurationError: a certificate is missing.
    """
    authority = read_certificate(folder / f"{COORDINATOR_SIDE}-ca.crt")
    return spki_pin(read_certificate(coordinator.tls.certificate_chain)) == spki_pin(authority)


def issue(
    authority: CertificateAuthority,
    key: ec.EllipticCurvePublicKey,
    spiffe_id: SpiffeId,
    *,
    now: datetime,
    validity: timedelta,
    server_names: tuple[str, ...] = (),
) -> x509.Certificate:
    """Certify a node's TLS key, for ``validity`` or as long as the authority is valid.

    Raises:
        ConfigurationError: the authority is not valid any more, or may not certify this.
    """
    issuer = authority.certificate
    if now >= issuer.not_valid_after_utc:
        raise ConfigurationError(
            f"the authority's certificate expired on {issuer.not_valid_after_utc:%Y-%m-%d}"
        )
    return issue_certificate(
        authority,
        key,
        spiffe_id,
        not_before=max(now - CLOCK_SKEW, issuer.not_valid_before_utc),
        # One that outlives its authority would be refused then without a word of warning.
        not_after=min(now + validity, issuer.not_valid_after_utc),
        server_names=server_names,
    )


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate from PEM.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read a certificate from {path}") from error


def names_served(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and IP addresses in a certificate."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    )
