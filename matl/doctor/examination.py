"""What is wrong between a node and its coordinator, link by link.

gRPC tells a client that was refused "Socket closed" and no more. This looks at every file and
goes every step of a connection by itself, and names the first link that does not hold. It changes
nothing, and shows nobody more than the daemon would.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from matl_common.clock import utc_now
from matl_common.errors import MatlError
from matl_common.identity.allowlist import RefusalReason
from matl_common.identity.certificates import (
    PeerCertificate,
    Role,
    SpiffeId,
    parse_peer_certificate,
)
from matl_common.identity.ephemeral import coordinator_of, is_authority
from matl_common.identity.held_keys import load_p256_key, load_tls_key
from matl_common.identity.key_places import KeyPlace
from matl_common.identity.keys import permission_warning, spki_pin
from matl_common.identity.pkcs11.promises import pin_weaknesses
from matl_common.identity.pkcs11.uri import TokenUri
from matl_common.identity.renewal import expiry_warning
from matl_common.identity.tls import TlsPlace

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

SENT_TO_OPERATOR = "send the request of matl pki request to the coordinator's operator"
REMEDIES = {
    RefusalReason.UNLISTED: f"it is not enrolled: {SENT_TO_OPERATOR}; no longer, because it was "
    "revoked: make new keys for the request, with matl pki request --replace-keys",
    RefusalReason.PIN_MISMATCH: f"it is enrolled with another TLS key: {SENT_TO_OPERATOR}",
    RefusalReason.WRONG_ROLE: "it is enrolled in another role; have the certificate issued anew",
    RefusalReason.WRONG_FEDERATION: "the certificate is another federation's; use that one's files",
    RefusalReason.EXPIRED: "renew the certificate: matl pki request",
}
"""What to do where the allow-list does not admit a node."""


class BrokenLinkError(MatlError):
    """A link does not hold: what was found, and what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Link:
    """One thing that has to hold; ``check`` says what it found, or raises."""

    name: str
    check: Callable[[], str]
    needs: tuple[str, ...] = ()
    """Links that must hold for this one to mean anything."""
    needs_one_of: tuple[str, ...] = ()
    """Links of which at least one must."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a link."""

    link: str
    status: str
    """``ok``, ``broken`` or ``skipped``."""
    found: str
    remedy: str = ""


def examine(links: tuple[Link, ...]) -> Iterator[Finding]:
    """Check links in order; those that rest on a broken one are skipped."""
    held: set[str] = set()
    for link in links:
        lacking = [each for each in link.needs if each not in held]
        if link.needs_one_of and held.isdisjoint(link.needs_one_of):
            lacking.append(" or ".join(link.needs_one_of))
        if lacking:
            yield Finding(link.name, "skipped", f"needs: {', '.join(lacking)}")
            continue
        try:
            found = link.check()
        except BrokenLinkError as error:
            yield Finding(link.name, "broken", str(error), error.remedy)
        except (MatlError, OSError) as error:
            # Ours say what to do after what is wrong.
            found, _, remedy = str(error).partition("; ")
            yield Finding(link.name, "broken", found, remedy or "see the message")
        else:
            held.add(link.name)
            yield Finding(link.name, "ok", found)


def key_found(place: KeyPlace) -> str:
    """The TLS key is there, of the right kind, and its owner's alone."""
    key = load_tls_key(place)
    check_private(place)
    return f"{key.public_key.curve.name}, {key.holder}, pin {key.keyid}"


def signing_key_found(place: KeyPlace, tls_key: KeyPlace) -> str:
    """The key that signs documents is there, another than TLS's, and its owner's alone."""
    key = load_p256_key(place)
    if key.keyid == load_tls_key(tls_key).keyid:
        raise BrokenLinkError("the signing key is the TLS key", "use a key for each use")
    check_private(place)
    return f"{key.holder}, {key.keyid}"


def check_private(place: KeyPlace) -> None:
    """See that no other account can use a key, or the PIN of its token.

    Raises:
        BrokenLinkError: one can.
    """
    warnings = (
        pin_weaknesses(place) if isinstance(place, TokenUri) else (permission_warning(place),)
    )
    for warning in filter(None, warnings):
        found, _, remedy = warning.partition("; run: ")
        raise BrokenLinkError(found, remedy)


def check_closed(path: Path, what: str) -> None:
    """See that accounts that share neither owner nor group with something cannot read it.

    Raises:
        BrokenLinkError: they can, and get to it through every folder above.
    """
    readable = path.stat().st_mode & stat.S_IROTH
    if readable and all(each.stat().st_mode & stat.S_IXOTH for each in path.resolve().parents):
        raise BrokenLinkError(
            f"every account of this machine can read {what}, {path}", f"chmod o-rwx {path}"
        )


def certificate_found(files: TlsPlace, *, serves: bool) -> str:
    """The certificate is for the key and this side of a connection, and valid."""
    certificate = first_certificate(files.certificate_chain)
    pin = load_tls_key(files.private_key).keyid
    if spki_pin(certificate) != pin:
        raise BrokenLinkError(
            f"{files.certificate_chain} is for another key than {files.private_key}",
            "put the two that belong together in place, or ask for a certificate for this key "
            "(matl pki request)",
        )
    if not is_authority(certificate):
        check_purpose(certificate, "the certificate", serves=serves)
    return valid_until(certificate, "the certificate", "matl pki request, then approve and install")


def check_purpose(certificate: x509.Certificate, what: str, *, serves: bool) -> None:
    """See that TLS accepts a certificate from a server, or from a client.

    An extension that is absent restricts nothing (RFC 5280, section 4.2.1).

    Raises:
        BrokenLinkError: it is for other uses of its key.
    """
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
    name = "serverAuth" if serves else "clientAuth"
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes is not None and wanted not in purposes:
        raise BrokenLinkError(
            f"{what} is not one of a {'server' if serves else 'client'}: its extended key usage "
            f"lacks {name}",
            f"have it issued again with {name}, as matl pki does",
        )
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise BrokenLinkError(
            f"{what} does not allow its key to sign: its key usage lacks digitalSignature",
            "have it issued again with digitalSignature, as matl pki does",
        )


def valid_until(certificate: x509.Certificate, what: str, remedy: str) -> str:
    """Until when a certificate is valid, if it is."""
    now = utc_now()
    if now < certificate.not_valid_before_utc:
        raise BrokenLinkError(
            f"{what} is not valid before {_shown(certificate.not_valid_before_utc)}, and this "
            f"machine's clock says {_shown(now)}",
            "correct the clock, or wait",
        )
    if now >= certificate.not_valid_after_utc:
        raise BrokenLinkError(
            f"{what} expired at {_shown(certificate.not_valid_after_utc)}", f"renew it: {remedy}"
        )
    until = f"valid until {_shown(certificate.not_valid_after_utc)}"
    return f"{until}; renew it soon" if expiry_warning(certificate, now=now) else until


def name_found(files: TlsPlace, wanted: SpiffeId) -> str:
    """The certificate is for the node that the configuration says."""
    certificate = first_certificate(files.certificate_chain)
    is_issuer = wanted.role is Role.COORDINATOR and is_authority(certificate)
    found = coordinator_of(certificate)[0] if is_issuer else parsed(certificate).spiffe_id
    if found != wanted:
        raise BrokenLinkError(
            f"the certificate is for {found}, and the configuration says {wanted}",
            "correct node_id or the coordinator's name in the configuration, or ask for a "
            "certificate for this name",
        )
    return str(found)


def authority_found(path: Path) -> str:
    """The authority trusted is one, and valid."""
    for certificate in authorities_in(path):
        if not is_authority(certificate):
            raise BrokenLinkError(
                f"{path} holds a certificate of a node, not of an authority",
                "put the authority's own certificate there",
            )
        valid_until(certificate, "the authority's certificate", "matl pki init, a new federation")
    return ", ".join(each.subject.rfc4514_string() for each in authorities_in(path))


def issued_by(certificate: x509.Certificate, path: Path) -> bool:
    """Whether an authority in the file signed the certificate."""
    for authority in authorities_in(path):
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def first_certificate(path: Path) -> x509.Certificate:
    """The certificate a chain begins with."""
    return authorities_in(path)[0]


def authorities_in(path: Path) -> list[x509.Certificate]:
    """The certificates of a file."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BrokenLinkError(
            f"cannot read certificates from {path}", "put the PEM file there, readable for you"
        ) from error


def parsed(certificate: x509.Certificate) -> PeerCertificate:
    """What a node's certificate says."""
    return parse_peer_certificate(certificate.public_bytes(Encoding.PEM))


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
