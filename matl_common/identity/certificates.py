"""X.509 certificates that name nodes: made, and read back from a peer.

A node is the SPIFFE URI ``spiffe://<federation>/<role>/<node_id>`` of its
certificate, and nothing else: not the common name, not a DNS name. The coordinator's
certificate comes from an authority that issues no other, so that no participant's
authority can make a coordinator. Chains and validity are checked by TLS, not here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.keys import generate_private_key, spki_pin
from matl_common.ids import (
    FederationId,
    NodeId,
    parse_federation_id,
    parse_node_id,
)

MAX_CERTIFICATE_BYTES = 16 << 10
# Clocks of peers differ a little; a certificate is not refused for that.
CLOCK_SKEW = timedelta(minutes=5)

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What cryptography raises at a certificate that is none."""

_SPIFFE = re.compile(r"spiffe://([^/]+)/([^/]+)/([^/]+)")
_MAX_COMMON_NAME_CHARACTERS = 64


class Role(StrEnum):
    """What a node's certificate entitles it to be."""

    COORDINATOR = "coordinator"
    PARTICIPANT = "participant"
    OPERATOR = "operator"
    FRONT_END = "front-end"


COORDINATOR_ROLES = frozenset({Role.COORDINATOR})
PARTICIPANT_ROLES = frozenset({Role.PARTICIPANT, Role.OPERATOR, Role.FRONT_END})

_ROLE_NAMES = frozenset(role.value for role in Role)


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A node's name in certificates."""

    federation: FederationId
    role: Role
    node_id: NodeId

    def __str__(self) -> str:
        """The URI."""
        return f"spiffe://{self.federation}/{self.role}/{self.node_id}"

    @property
    def server_name(self) -> str:
        """The DNS name a client demands of this node's certificate, wherever it dials."""
        label = self.node_id.replace("_", "-")
        return f"{label}.{self.federation}.matl.internal"


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a peer's certificate says. TLS has checked the chain; nobody the allow-list."""

    spiffe_id: SpiffeId
    pin: str
    serial: int
    not_after: datetime

    @property
    def role(self) -> Role:
        """The role in the SPIFFE id."""
        return self.spiffe_id.role

    @property
    def node_id(self) -> NodeId:
        """The node in the SPIFFE id."""
        return self.spiffe_id.node_id


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A self-signed authority and the roles it may certify."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey
    roles: frozenset[Role]


def parse_spiffe_id(uri: str) -> SpiffeId:
    """Parse ``spiffe://<federation>/<role>/<node_id>``.

    Raises:
        InvalidInputError: another form, or an unknown role.
    """
    found = _SPIFFE.fullmatch(uri)
    if found is None or found[2] not in _ROLE_NAMES:
        raise InvalidInputError(
            f"{uri[:200]!r} is not a node's URI; expected spiffe://<federation>/<role>/<node_id>"
        )
    return SpiffeId(parse_federation_id(found[1]), Role(found[2]), parse_node_id(found[3]))


def create_authority(
    name: str, *, roles: frozenset[Role], not_before: datetime, not_after: datetime
) -> CertificateAuthority:
    """Make a self-signed authority with a new key, which can certify no other authority."""
    key = generate_private_key()
    builder = authority_builder(name, key.public_key(), not_before=not_before, not_after=not_after)
    return CertificateAuthority(builder.sign(key, SHA256()), key, roles)


def authority_builder(
    name: str, key: ec.EllipticCurvePublicKey, *, not_before: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    """What an authority that can certify no other has to sign for itself."""
    subject = _common_name(name)
    return (
        _unsigned(subject, subject, key, not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )


def issue_certificate(
    authority: CertificateAuthority,
    public_key: ec.EllipticCurvePublicKey,
    spiffe_id: SpiffeId,
    *,
    not_before: datetime,
    not_after: datetime,
    server_names: Iterable[str] = (),
) -> x509.Certificate:
    """Certify a node's TLS key.

    Args:
        authority: the issuer.
        public_key: the node's TLS key.
        spiffe_id: the node's name. A coordinator's certificate serves, and also gets
            ``spiffe_id.server_name``; any other one is a client's.
        not_before: start of validity.
        not_after: end of validity.
        server_names: further DNS names or IP addresses of a coordinator.

    Raises:
        ConfigurationError: the authority may not certify this role, or a node that
            does not serve was given names.
    """
    if spiffe_id.role not in authority.roles:
        raise ConfigurationError(
            f"this authority certifies {' and '.join(sorted(authority.roles))}, not "
            f"{spiffe_id.role}; the coordinator and the participants have separate authorities"
        )
    names = node_names(spiffe_id, server_names)
    serves = spiffe_id.role is Role.COORDINATOR
    usage = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
    issuer = authority.certificate
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(
        authority.private_key.public_key()
    )
    subject = _common_name(spiffe_id.node_id)
    return (
        _unsigned(subject, issuer.subject, public_key, not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority.private_key, SHA256())
    )


def node_names(spiffe_id: SpiffeId, server_names: Iterable[str]) -> list[x509.GeneralName]:
    """The names in a node's certificate.

    Raises:
        ConfigurationError: a node that does not serve was given names.
    """
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
    if spiffe_id.role is Role.COORDINATOR:
        wanted = dict.fromkeys([spiffe_id.server_name, *server_names])
        names.extend(_general_name(name) for name in wanted)
    elif tuple(server_names):
        raise ConfigurationError(f"{spiffe_id} does not serve; give it no server names")
    return names


# Read for every call that a node makes; whether it has expired, or is enrolled, is not asked here.
@lru_cache(maxsize=1024)
def parse_peer_certificate(pem: bytes) -> PeerCertificate:
    """Read a node's name and pin from the certificate TLS accepted.

    Raises:
        InvalidInputError: not a certificate of a node: unreadable, an authority's, or
            without exactly one URI that is a SPIFFE id of this project.
    """
    if len(pem) > MAX_CERTIFICATE_BYTES:
        raise InvalidInputError(f"the certificate exceeds {MAX_CERTIFICATE_BYTES} bytes")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions = certificate.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_authority = _is_authority(extensions)
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        pin = spki_pin(certificate)
    except MALFORMED as error:
        raise InvalidInputError(
            "the peer's certificate is not one made for a node; issue it again"
        ) from error
    if is_authority or len(uris) != 1:
        raise InvalidInputError(
            "the peer's certificate is an authority's or does not hold exactly one URI; "
            "issue it again"
        )
    return PeerCertificate(
        spiffe_id=parse_spiffe_id(uris[0]),
        pin=pin,
        serial=certificate.serial_number,
        not_after=certificate.not_valid_after_utc,
    )


def _is_authority(extensions: x509.Extensions) -> bool:
    # Absence says "not an authority": RFC 5280, section 4.2.1.9.
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    key_id = x509.SubjectKeyIdentifier.from_public_key(public_key)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(key_id, critical=False)
    )


def _common_name(name: str) -> x509.Name:
    # For people who read certificates; nothing is ever decided by it.
    shown = name[:_MAX_COMMON_NAME_CHARACTERS]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, shown)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
