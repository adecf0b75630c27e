"""What is wrong between a node and its coordinator, link by link.

gRPC tells a client that was refused "Socket closed" and no more. This looks at every file and
goes every step of a connection by itself, and names the first link that does not hold. It changes
nothing, and what it sends, the daemon would send as well.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.errors import MatlError
from matl_common.identity.certificates import (
    PeerCertificate,
    Role,
    SpiffeId,
    parse_peer_certificate,
)
from matl_common.identity.ephemeral import coordinator_of
from matl_common.identity.held_keys import load_tls_key
from matl_common.identity.key_places import KeyPlace
from matl_common.identity.keys import (
    permission_warning,
    spki_pin,
)
from matl_common.identity.renewal import expiry_warning
from matl_common.identity.tls import TlsFiles, TlsPlace, TokenTls

SECONDS = 15.0
"""Bounds every step that waits for another machine."""
LARGEST_CLOCK_ERROR = timedelta(minutes=1)


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
        if lacking := [each for each in link.needs if each not in held]:
            yield Finding(link.name, "skipped", f"needs: {', '.join(lacking)}")
            continue
        try:
            found = link.check()
        except BrokenLinkError as error:
            yield Finding(link.name, "broken", str(error), error.remedy)
        except (MatlError, OSError) as error:
            yield Finding(link.name, "broken", str(error), "see the message")
        else:
            held.add(link.name)
            yield Finding(link.name, "ok", found)


def key_found(place: KeyPlace) -> str:
    """The TLS key is there, of the right kind, and its owner's alone."""
    key = load_tls_key(place)
    if isinstance(place, Path) and (warning := permission_warning(place)):
        raise BrokenLinkError(warning.partition(";")[0], f"chmod 600 {place}")
    return f"{key.public_key.curve.name}, {key.holder}, pin {key.keyid}"


def certificate_found(files: TlsPlace) -> str:
    """The certificate is for the key, and valid."""
    certificate = first_certificate(files.certificate_chain)
    pin = load_tls_key(files.private_key).keyid
    if spki_pin(certificate) != pin:
        raise BrokenLinkError(
            f"{files.certificate_chain} is for another key than {files.private_key}",
            "put the two that belong together in place, or ask for a certificate for this key "
            "(matl pki request)",
        )
    return valid_until(certificate, "the certificate", "matl pki request, then approve and install")


def valid_until(certificate: x509.Certificate, what: str, remedy: str) -> str:
    """Until when a certificate is valid, if it is."""
    now = datetime.now(UTC)
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
    is_issuer = isinstance(files, TokenTls) and wanted.role is Role.COORDINATOR
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
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
            is_authority = constraints.value.ca
        except x509.ExtensionNotFound:
            is_authority = False
        if not is_authority:
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


def address_found(address: str) -> str:
    """The name resolves."""
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise BrokenLinkError(
            f"{host} has no address: {error.strerror}", "correct the address, or the name service"
        ) from error
    return ", ".join(sorted({str(each[4][0]) for each in found}))


def connection_found(address: str) -> str:
    """Something listens."""
    try:
        socket.create_connection(split_address(address), timeout=SECONDS).close()
    except OSError as error:
        raise BrokenLinkError(
            f"nobody answers at {address}: {error.strerror or error}",
            "see that the coordinator runs, and that no firewall is between",
        ) from error
    return f"something listens at {address}"


def shown_certificate(
    address: str, *, name: SpiffeId, trusted: Path | None, files: TlsFiles | None = None
) -> x509.Certificate:
    """Shake hands over TLS 1.3, and take the certificate that is shown.

    Raises:
        BrokenLinkError: one side refused the other; says which and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if trusted is None:
        # The caller compares the certificate with one it knows.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context.load_verify_locations(trusted)
    if files is not None:
        context.load_cert_chain(files.certificate_chain, files.private_key)
    try:
        with (
            socket.create_connection(split_address(address), timeout=SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name.server_name) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
            # What the server thinks of us comes after its own part of the handshake.
            if files is not None and not secure.recv(1):
                raise _refused_by_coordinator()
    except ssl.SSLCertVerificationError as error:
        raise BrokenLinkError(
            f"this machine refuses the coordinator's certificate: {error.verify_message}",
            "see that coordinator.authority and coordinator.spiffe_id are the coordinator's, and "
            "that nobody answers in its place",
        ) from error
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            raise _refused_by_coordinator() from error
        raise BrokenLinkError(
            f"the TLS handshake fails: {error.reason or error}",
            "see that the address is the coordinator's, and that no proxy is between",
        ) from error
    assert shown is not None, "a server shows its certificate"
    return x509.load_der_x509_certificate(shown)


def _refused_by_coordinator() -> BrokenLinkError:
    # gRPC hangs up without saying why; what else it could be was looked at before.
    return BrokenLinkError(
        "the coordinator refuses this node's certificate: it is not of the participants' "
        "authority, or not valid by the coordinator's clock",
        "compare clocks, and have the certificate issued by this federation (matl pki request); "
        "the coordinator's log has the reason (handshake_refused)",
    )


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


def split_address(address: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
