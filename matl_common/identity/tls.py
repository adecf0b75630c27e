"""Mutual TLS 1.3 for gRPC; with ``token_tls``, the only module that touches gRPC credentials.

A server demands a certificate from the participants' authority. A client trusts the
coordinator's authority alone, which certifies no one else, and demands the server
name derived from the coordinator's SPIFFE id, so that no other certificate passes,
whatever address was dialled. Whether a peer is enrolled is the allow-list's question.

TLS 1.2 is shut out twice: by the cipher suites set in ``matl_common`` before gRPC is
imported, and by ``peer_certificate`` on every RPC.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from matl_common import TLS_SUITES, TLS_SUITES_VARIABLE
from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.certificates import (
    MALFORMED,
    PeerCertificate,
    SpiffeId,
    parse_peer_certificate,
)
from matl_common.identity.ephemeral import LeafIssuer, is_authority
from matl_common.identity.key_places import KeyPlace
from matl_common.identity.keys import TLS_CURVES, load_private_key, private_key_pem, spki_pin
from matl_common.identity.pkcs11.signing import P256, TokenSigningKey
from matl_common.identity.pkcs11.uri import TokenUri
from matl_common.identity.token_tls import signed_channel_credentials
from matl_common.identity.wrapping import SOFTWARE_HELD

MAX_MESSAGE_BYTES = 2 << 20
MAX_METADATA_BYTES = 8 << 10
MAX_STREAMS_PER_CONNECTION = 64
READ_BUFFER_BYTES = 128 << 10
"""What a connection to the coordinator reads at once, and keeps for its next read when nothing is
sent: by itself gRPC keeps as much as ever came at once, a megabyte for each hospital."""
# Half-open ones included, which cost a descriptor each until their handshake times out.
MAX_CONNECTIONS = 4096
HANDSHAKE_TIMEOUT_MS = 10_000
KEEPALIVE_TIME_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
MIN_PING_INTERVAL_MS = 30_000
MAX_PING_STRIKES = 2
MAX_CONNECTION_IDLE_MS = 15 * 60_000
# Bounds how long a connection outlives a change of trusted authorities.
MAX_CONNECTION_AGE_MS = 60 * 60_000
MAX_CONNECTION_AGE_GRACE_MS = 60_000
HANDOVER_SECONDS = 0.25
"""How long new connections wait when the server's certificate is exchanged."""
RECONNECT_BACKOFF_MS = 500
MAX_RECONNECT_BACKOFF_MS = 10_000
MIN_RESOLUTION_INTERVAL_MS = 1_000
"""How soon a name is looked up again when its address does not answer; gRPC's own 30 s would be how
long everybody calls a coordinator where it was before."""

_TLS_1_3 = b"TLSv1.3"

ChannelOptions = tuple[tuple[str, int | str], ...]


class PeerRefusedError(MatlError):
    """The connection does not identify a node: no TLS 1.3, or a certificate of no node."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """The content of ``TlsFiles``, each part fitting the others."""

    key: bytes
    chain: bytes
    authority: bytes
    certificate: x509.Certificate
    lasting: x509.Certificate
    holder: str


class AuthenticatedContext(Protocol):
    """The part of a gRPC servicer context that identity comes from."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the transport knows of the peer."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a node keeps its TLS key, its certificate chain and the authority it trusts."""

    private_key: Path
    certificate_chain: Path
    trusted_authority: Path


@dataclass(frozen=True, slots=True)
class TokenTls:
    """The same for a node whose TLS key is in a token."""

    private_key: TokenUri
    certificate_chain: Path
    trusted_authority: Path


TlsPlace = TlsFiles | TokenTls


def tls_place(key: KeyPlace, chain: Path, authority: Path) -> TlsPlace:
    """Where a node's TLS key, chain and trusted authority are, wherever the key is."""
    if isinstance(key, TokenUri):
        return TokenTls(key, chain, authority)
    return TlsFiles(key, chain, authority)


class ServerIdentity:
    """A server's credentials, which may be exchanged while it serves.

    gRPC asks for them at every handshake, and silently keeps the last ones it liked where it
    gets an error or a bad key. So it is only ever given what was checked here. Connections that
    are open keep the keys they were opened with. For one port: what gRPC has is known of one.
    """

    def __init__(
        self,
        files: TlsPlace,
        *,
        clock: Callable[[], datetime] = utc_now,
        only_in_memory: bool = False,
    ) -> None:
        """Load the files, and have a key in memory certified where they are an authority's.

        Args:
            files: of the TLS key, or of an authority for this coordinator alone; which of them,
                the certificate says. A key in a token is always the latter.
            clock: the time.
            only_in_memory: refuse a TLS key that exists anywhere but in this process.

        Raises:
            ConfigurationError: a file is missing or does not fit the others, or gRPC was
                imported before ``matl_common``.
            TokenError: the token cannot be reached.
        """
        self._files = files
        self._clock = clock
        self._only_in_memory = only_in_memory
        self._issuer = LeafIssuer(files.private_key)
        self._identity = self._load()
        self._authorities = x509.load_pem_x509_certificates(self._identity.authority)
        # Replaced whole, so that gRPC's threads need no lock.
        self._configuration = _configuration(self._identity)
        # What gRPC has. Only its threads read and write this, one at a time.
        self._offered = self._configuration
        self.credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self.news,  # type: ignore[arg-type]  # None is for "unchanged"; the stubs forget it
            require_client_authentication=True,
        )

    @property
    def certificate(self) -> x509.Certificate:
        """What new connections are shown."""
        return self._identity.certificate

    @property
    def chain(self) -> bytes:
        """The same with what it was issued by, in PEM."""
        return self._identity.chain

    @property
    def lasting(self) -> x509.Certificate:
        """What an operator has to renew: that certificate, or the authority that issued it."""
        return self._identity.lasting

    @property
    def holder(self) -> str:
        """What holds the key, for people to read."""
        return self._identity.holder

    def certifies(self, pem: bytes) -> bool:
        """Whether the trusted authority, itself and not one below it, signed this certificate.

        For a certificate that somebody else's TLS took, and that says who its holder is. Expiry
        is not looked at.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem)
        except MALFORMED:
            return False
        for authority in self._authorities:
            with suppress(ValueError, TypeError, InvalidSignature):
                certificate.verify_directly_issued_by(authority)
                return True
        return False

    def renew(self) -> bool:
        """Load the files again; whether anything in them is new, or a new key was due.

        Raises:
            ConfigurationError, TokenError: as at first; what was loaded before stays in use.
        """
        found = self._load()
        if found == self._identity:
            return False
        self._identity = found
        self._authorities = x509.load_pem_x509_certificates(found.authority)
        self._configuration = _configuration(found)
        return True

    def news(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC is to use from now on, where that is not what it has. It asks under a lock."""
        configuration = self._configuration
        if configuration is self._offered:
            return None
        # gRPC frees what it made of the last answer when it gets the next one, although other
        # threads may have asked before and only be about to begin a handshake with it: a flood of
        # connections ended the process (https://github.com/grpc/grpc/issues/36693). Nobody can ask
        # while this answer is awaited, so those handshakes begin meanwhile.
        time.sleep(HANDOVER_SECONDS)
        self._offered = configuration
        return configuration

    def _load(self) -> _Identity:
        files = self._files
        _check_suites()
        _, (certificate, *_rest) = _read_certificates(files.certificate_chain)
        if isinstance(files, TlsFiles) and not is_authority(certificate):
            if self._only_in_memory:
                raise ConfigurationError(
                    f"{files.private_key} is a TLS key in a file, and whoever has a copy can serve "
                    "with it on another machine than the attested one; let it be the key of an "
                    "authority, which certifies keys in memory (matl pki authority)"
                )
            return _load(files)
        authority, _ = _read_certificates(files.trusted_authority)
        leaf = self._issuer.leaf(certificate, now=self._clock())
        return _Identity(
            leaf.key, leaf.chain, authority, leaf.certificate, certificate, self._issuer.holder
        )


def server_credentials(files: TlsPlace) -> grpc.ServerCredentials:
    """Credentials of a server that demands a client certificate.

    Raises:
        ConfigurationError: as ``ServerIdentity``.
    """
    return ServerIdentity(files).credentials


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """What a client shows and whom it trusts, as its files were when they fitted each other."""

    certificate: x509.Certificate
    authority: bytes
    """Of coordinators, in PEM."""
    _trusting: Callable[[bytes], grpc.ChannelCredentials]

    def credentials(self, *, only: bytes | None = None) -> grpc.ChannelCredentials:
        """Credentials; use them with ``channel_options``, which pins the server's name.

        Args:
            only: a server's certificate in PEM that is the only one to pass, in place of all that
                the authority issued; gRPC takes a leaf for a trust anchor.
        """
        return self._trusting(only or self.authority)


def load_client_identity(files: TlsPlace) -> ClientIdentity:
    """Read a client's files, and open its token where the key is in one.

    Raises:
        ConfigurationError: as ``server_credentials``.
        TokenError: the token of the key cannot be reached.
    """
    if isinstance(files, TokenTls):
        _check_suites()
        key = TokenSigningKey(files.private_key, P256)
        chain, authority, certificate = _certified(files, key.keyid)
        return ClientIdentity(
            certificate,
            authority,
            lambda trusted: signed_channel_credentials(key, chain=chain, authority=trusted),
        )
    identity = _load(files)
    return ClientIdentity(
        identity.certificate,
        identity.authority,
        lambda trusted: grpc.ssl_channel_credentials(
            root_certificates=trusted,
            private_key=identity.key,
            certificate_chain=identity.chain,
        ),
    )


def channel_credentials(files: TlsPlace) -> grpc.ChannelCredentials:
    """Credentials of a client that trusts the authority in its files.

    Raises:
        ConfigurationError, TokenError: as ``load_client_identity``.
    """
    return load_client_identity(files).credentials()


def peer_certificate(context: AuthenticatedContext) -> PeerCertificate:
    """Who is calling, from the connection alone; never from metadata or the message.

    Raises:
        PeerRefusedError: the connection is not TLS 1.3 or has no node's certificate.
    """
    properties = context.auth_context()
    version = tuple(properties.get("ssl_tls_version", ()))
    if version != (_TLS_1_3,):
        raise PeerRefusedError("the connection does not use TLS 1.3; upgrade the client")
    match tuple(properties.get("x509_pem_cert", ())):
        case (pem,):
            try:
                return parse_peer_certificate(pem)
            except InvalidInputError as error:
                raise PeerRefusedError(str(error)) from error
    raise PeerRefusedError("the connection presents no client certificate")


def server_options() -> ChannelOptions:
    """Limits of a server against slow, large, many and immortal connections."""
    return (
        *_message_limits(),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
        ("grpc.max_connection_idle_ms", MAX_CONNECTION_IDLE_MS),
        ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", MAX_CONNECTION_AGE_GRACE_MS),
        # What is sent ahead of what is read waits in memory, for every stream. gRPC makes room for
        # the message that is read, and by itself for as much as the connection could hold.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.experimental.tcp_max_read_buffer_size", READ_BUFFER_BYTES),
        # Otherwise a second coordinator could share the port and take half the calls.
        ("grpc.so_reuseport", 0),
    )


def channel_options(coordinator: SpiffeId) -> ChannelOptions:
    """Limits of a client, and the name the coordinator's certificate must carry."""
    return (
        *_message_limits(),
        ("grpc.ssl_target_name_override", coordinator.server_name),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MS),
        # gRPC's name for how long an attempt may take, its handshake included.
        ("grpc.min_reconnect_backoff_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_BACKOFF_MS),
        ("grpc.dns_min_time_between_resolutions_ms", MIN_RESOLUTION_INTERVAL_MS),
        # Only the caller knows which calls may be repeated.
        ("grpc.enable_retries", 0),
    )


def _message_limits() -> ChannelOptions:
    # Never -1: without a limit, a compressed message of zeros fills the memory.
    return (
        # A chunk in one frame rather than in 64.
        ("grpc.http2.max_frame_size", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    )


def _configuration(identity: _Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.chain)], root_certificates=identity.authority
    )


def _check_suites() -> None:
    if os.environ.get(TLS_SUITES_VARIABLE) != TLS_SUITES:
        raise ConfigurationError(
            "gRPC could negotiate TLS 1.2 in this process; import matl_common before grpc, "
            f"or start it with {TLS_SUITES_VARIABLE}={TLS_SUITES}"
        )


def _load(files: TlsFiles) -> _Identity:
    _check_suites()
    # gRPC reports a bad key only by failing every handshake, so it is checked here.
    # That it is no RSA key is also what makes the suites above unusable.
    key = load_private_key(files.private_key, curves=TLS_CURVES)
    chain, authority, certificate = _certified(files, spki_pin(key))
    pem = private_key_pem(key)
    return _Identity(pem, chain, authority, certificate, certificate, SOFTWARE_HELD)


def _certified(files: TlsPlace, pin: str) -> tuple[bytes, bytes, x509.Certificate]:
    chain, certificates = _read_certificates(files.certificate_chain)
    authority, _ = _read_certificates(files.trusted_authority)
    if spki_pin(certificates[0]) != pin:
        raise ConfigurationError(
            f"{files.certificate_chain} does not begin with the certificate of the key "
            f"{files.private_key}; put the files that belong together in place"
        )
    return chain, authority, certificates[0]


def _read_certificates(path: Path) -> tuple[bytes, list[x509.Certificate]]:
    try:
        pem = path.read_bytes()
        certificates = x509.load_pem_x509_certificates(pem)
        for each in certificates:
            # Read only when asked for; what is wrong with a key shows then.
            each.public_key()
    except (OSError, *MALFORMED) as error:
        raise ConfigurationError(
            f"cannot read certificates from {path}; give the path of a PEM file"
        ) from error
    return pem, certificates
