"""The steps to a coordinator's port that can be gone without gRPC: name, connection, handshake."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509

from matl.doctor.examination import BrokenLinkError
from matl_common.host_port import split_address
from matl_common.identity.certificates import SpiffeId
from matl_common.identity.tls import TlsFiles

SECONDS = 15.0
"""Bounds every step that waits for another machine."""
READ_BYTES = 16 << 10


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


def shown_certificate(address: str, *, name: SpiffeId, trusted: Path | None) -> x509.Certificate:
    """Begin a TLS 1.3 handshake, take the certificate that is shown, and hang up.

    What the client says last, and with it that there is no certificate, is never sent: to the
    coordinator this is a connection that was given up, and it counts no refused handshake.

    Args:
        address: ``host:port``.
        name: of the coordinator that should answer.
        trusted: authorities, of which one must have issued the certificate; ``None`` where the
            caller compares it with one that it knows.

    Raises:
        BrokenLinkError: this machine refuses the coordinator, or something else answers.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = _context(trusted)
    shaking = context.wrap_bio(incoming, outgoing, server_hostname=name.server_name)
    with (
        _verdicts_explained(),
        socket.create_connection(split_address(address), timeout=SECONDS) as connection,
    ):
        while not _is_shaken(shaking):
            connection.sendall(outgoing.read())
            if received := connection.recv(READ_BYTES):
                incoming.write(received)
            else:
                incoming.write_eof()
    shown = shaking.getpeercert(binary_form=True)
    assert shown is not None, "a server shows its certificate"
    return x509.load_der_x509_certificate(shown)


def show_certificate(address: str, *, name: SpiffeId, files: TlsFiles) -> None:
    """Shake hands with a node's certificate, to see what the coordinator says to it.

    Raises:
        BrokenLinkError: one side refused the other; says which and why.
    """
    context = _context(files.trusted_authority)
    context.load_cert_chain(files.certificate_chain, files.private_key)
    with (
        _verdicts_explained(),
        socket.create_connection(split_address(address), timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=name.server_name) as secure,
    ):
        # What the server thinks of us comes after its own part of the handshake.
        if not _first_byte(secure):
            raise refused_by_coordinator()


def refused_by_coordinator() -> BrokenLinkError:
    """What is known where TLS refuses this node's certificate."""
    # gRPC hangs up without saying why; what else it could be was looked at before.
    return BrokenLinkError(
        "the coordinator refuses this node's certificate: it is not of the participants' "
        "authority, or not valid by the coordinator's clock",
        "compare clocks, and have the certificate issued by this federation (matl pki request); "
        "the coordinator's log has the reason (handshake_refused)",
    )


def _context(trusted: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if trusted is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context.load_verify_locations(trusted)
    return context


def _first_byte(secure: ssl.SSLSocket) -> bytes:
    try:
        return secure.recv(1)
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return b""
        raise


def _is_shaken(shaking: ssl.SSLObject) -> bool:
    try:
        shaking.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


@contextmanager
def _verdicts_explained() -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise BrokenLinkError(
            f"this machine refuses the coordinator's certificate: {error.verify_message}",
            "see that coordinator.authority and coordinator.spiffe_id are the coordinator's, and "
            "that nobody answers in its place",
        ) from error
    except ssl.SSLError as error:
        raise BrokenLinkError(
            f"the TLS handshake fails: {error.reason or error}",
            "see that the address is the coordinator's, and that no proxy is between",
        ) from error
