"""Ephemeral TLS keys: a coordinator's authority certifies keys that are in memory alone.

gRPC servers cannot sign handshakes in a token, and evidence of a machine is worth nothing for a
TLS key that may be elsewhere too. So the coordinator's lasting key, in a token or a file, is its
own authority, which may certify no further authority and is all that participants trust; it issues
a certificate for a day to a key that is in memory only, and another well before that ends. Whoever
copies this process's memory can stand for the coordinator until then, and no longer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.certificates import (
    CLOCK_SKEW,
    COORDINATOR_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    authority_builder,
    issue_certificate,
    node_names,
    parse_spiffe_id,
)
from matl_common.identity.key_places import KeyPlace
from matl_common.identity.keys import (
    generate_private_key,
    load_private_key,
    private_key_pem,
    spki_pin,
)
from matl_common.identity.pkcs11.certifying import TokenPrivateKey
from matl_common.identity.pkcs11.signing import P256, TokenSigningKey
from matl_common.identity.wrapping import SOFTWARE_HELD

LEAF_VALIDITY = timedelta(hours=24)
HSM_ROOTED = "HSM-rooted, ephemeral TLS key"
FILE_ROOTED = "ephemeral TLS key of an authority in a file"

_Key = Path | TokenSigningKey[ec.EllipticCurvePublicKey]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A key in memory, and the chain from its certificate to the authority's."""

    key: bytes
    chain: bytes
    certificate: x509.Certificate
    authority: x509.Certificate


class LeafIssuer:
    """Certifies keys by a coordinator's authority. Not for several threads at once."""

    def __init__(self, place: KeyPlace) -> None:
        """Open the token, where the authority's key is in one; a file is read when it is needed.

        Raises:
            ConfigurationError: module, PIN or key is not as configured.
            TokenError: the token cannot be reached.
        """
        self._place = place
        self._key = _opened(place)
        self._last: Leaf | None = None

    @property
    def holder(self) -> str:
        """What is where, for people to read."""
        if isinstance(self._key, Path):
            return f"{FILE_ROOTED}: {SOFTWARE_HELD}"
        return f"{HSM_ROOTED}: {self._key.holder}"

    def leaf(self, authority: x509.Certificate, *, now: datetime) -> Leaf:
        """The last leaf while half of its time is left, else a new one.

        Args:
            authority: certifies the key as the coordinator's authority.
            now: aware.

        Raises:
            ConfigurationError: it certifies another key, or not as that.
            TokenError: a new leaf is due, and the token cannot be used for now.
        """
        last = self._last
        if last is None or last.authority != authority or now >= _middle(last.certificate):
            self._last = last = self._issue(authority, now)
        return last

    def _issue(self, authority: x509.Certificate, now: datetime) -> Leaf:
        node, server_names = coordinator_of(authority)
        issuer = _certifying(self._key)
        if spki_pin(authority) != spki_pin(issuer):
            raise ConfigurationError(
                f"the authority of {node} certifies another key than {self._place}; put the "
                "certificate of that key in place"
            )
        if now >= authority.not_valid_after_utc:
            raise ConfigurationError(
                f"the authority of {node} expired at {authority.not_valid_after_utc:%Y-%m-%d}; "
                "make its certificate anew, and give it to every participant"
            )
        key = generate_private_key()
        certificate = issue_certificate(
            CertificateAuthority(authority, issuer, COORDINATOR_ROLES),
            key.public_key(),
            node,
            not_before=now - CLOCK_SKEW,
            not_after=min(now + LEAF_VALIDITY, authority.not_valid_after_utc),
            server_names=server_names,
        )
        chain = b"".join(each.public_bytes(Encoding.PEM) for each in (certificate, authority))
        return Leaf(private_key_pem(key), chain, certificate, authority)


def _opened(place: KeyPlace) -> _Key:
    return place if isinstance(place, Path) else TokenSigningKey(place, P256)


def _certifying(key: _Key) -> ec.EllipticCurvePrivateKey:
    return load_private_key(key) if isinstance(key, Path) else TokenPrivateKey(key)


def create_node_authority(
    place: KeyPlace,
    node: SpiffeId,
    *,
    not_before: datetime,
    not_after: datetime,
    server_names: Iterable[str] = (),
) -> x509.Certificate:
    """Certify a coordinator's key, by itself, as that coordinator's authority.

    Raises:
        ConfigurationError: the node is no coordinator, or the key is not as configured.
        TokenError: the token cannot be used.
    """
    if node.role is not Role.COORDINATOR:
        raise ConfigurationError(f"{node} is no coordinator, and only one has its own authority")
    key = _certifying(_opened(place))
    names = x509.SubjectAlternativeName(node_names(node, server_names))
    builder = authority_builder(
        f"{node.node_id} authority", key.public_key(), not_before=not_before, not_after=not_after
    )
    return builder.add_extension(names, critical=False).sign(key, SHA256())


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether what the certificate is for is certifying, not serving."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        return False


def coordinator_of(authority: x509.Certificate) -> tuple[SpiffeId, tuple[str, ...]]:
    """Whose authority this is, and under which further names that coordinator serves.

    Raises:
        ConfigurationError: it is not one coordinator's, or could certify other authorities.
    """
    try:
        limits = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        names = authority.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        node = parse_spiffe_id(uri)
    except (ValueError, x509.ExtensionNotFound, InvalidInputError) as error:
        raise _no_authority() from error
    if not limits.ca or limits.path_length != 0 or node.role is not Role.COORDINATOR:
        raise _no_authority()
    addresses = names.get_values_for_type(x509.IPAddress)
    return node, (*names.get_values_for_type(x509.DNSName), *map(str, addresses))


def _no_authority() -> ConfigurationError:
    return ConfigurationError(
        "a key that certifies a coordinator's TLS keys needs the certificate of an authority for "
        "that coordinator alone (CA, path length 0, its SPIFFE id); make it with: matl pki "
        "authority"
    )


def _middle(certificate: x509.Certificate) -> datetime:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins + (ends - begins) / 2
