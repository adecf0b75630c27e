"""A coordinator's links, and those of a node that it does not let in."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import make_url

from matl.doctor.examination import (
    REMEDIES,
    BrokenLinkError,
    Link,
    authority_found,
    certificate_found,
    check_closed,
    check_private,
    check_purpose,
    first_certificate,
    issued_by,
    key_found,
    name_found,
    parsed,
    signing_key_found,
    valid_until,
)
from matl.doctor.handshake import (
    address_found,
    connection_found,
    shown_certificate,
)
from matl_common.attestation.policy import load_policy
from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError
from matl_common.host_port import dialled_from_here
from matl_common.identity.allowlist import AllowedNode, load_allowlist
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.ephemeral import FILE_ROOTED, HSM_ROOTED, is_authority
from matl_common.identity.held_keys import load_ed25519_key
from matl_common.identity.key_places import KeyPlace, load_wrapping_key
from matl_common.identity.keys import spki_pin
from matl_common.identity.tls import ServerIdentity, TlsPlace, TokenTls
from matl_common.ids import FederationId, NodeId
from matl_coordinator.attesters.choice import make_attester
from matl_coordinator.config import Config
from matl_coordinator.preflight import check_hospitals
from matl_coordinator.service.attesting import Subject, attest_itself


def coordinator_links(config: Config, *, file: Path, peer: Path | None) -> tuple[Link, ...]:
    """What a coordinator needs to serve, and to let in the node of a certificate.

    Args:
        config: the coordinator's.
        file: what it was read from.
        peer: a node's certificate.
    """
    files = config.identity.tls
    name = SpiffeId(
        FederationId(config.federation.id), Role.COORDINATOR, NodeId(config.federation.node_id)
    )
    address = dialled_from_here(config.listen.address)
    links = (
        Link("TLS key", lambda: key_found(files.private_key)),
        Link("certificate", lambda: certificate_found(files, serves=True), ("TLS key",)),
        Link("name", lambda: name_found(files, name), ("certificate",)),
        Link(
            "signing key",
            lambda: signing_key_found(config.identity.signing_key, files.private_key),
            ("TLS key",),
        ),
        Link("log key", lambda: _log_key(config.identity.log_key)),
        Link("log encryption key", lambda: _wrapping_key(config.log_encryption_key)),
        Link("database's password", lambda: _password(config, file)),
        Link("attestation", lambda: _attested(config), ("certificate",)),
        Link("participants' authority", lambda: _participants(config), ("certificate",)),
        Link("allow-list", lambda: _allowlist(config)),
        Link("address", lambda: address_found(address)),
        Link("connection", lambda: connection_found(address), ("address",)),
        Link(
            "handshake",
            lambda: _shows(address, name, files),
            ("certificate", "connection"),
        ),
    )
    if peer is None:
        return links
    needs = ("participants' authority", "allow-list")
    return (
        *links,
        Link("peer's certificate", lambda: _peer_valid(peer)),
        Link(
            "peer's authority",
            lambda: _peer_issued(peer, config.identity.participant_authority),
            ("peer's certificate", needs[0]),
        ),
        Link(
            "peer's enrolment",
            lambda: _peer_enrolled(config, peer),
            ("peer's authority", needs[1]),
        ),
    )


def _log_key(place: KeyPlace) -> str:
    key = load_ed25519_key(place)
    check_private(place)
    return f"Ed25519, {key.holder}"


def _wrapping_key(place: KeyPlace) -> str:
    if isinstance(place, Path) and not place.exists():
        return "none yet: the coordinator makes one when it founds its study"
    key = load_wrapping_key(place)
    check_private(place)
    return f"AES-256, {key.holder}"


def _password(config: Config, file: Path) -> str:
    if make_url(config.database_url).password is None:
        return f"{file} holds none"
    check_closed(file, "the database's password in")
    return f"{file} is closed to other accounts"


def _attested(config: Config) -> str:
    settings = config.attestation
    if settings is None:
        return "not configured: this coordinator shows no evidence"
    identity = ServerIdentity(config.identity.tls, only_in_memory=settings.is_genuine)
    subject = Subject(config.federation.id, config.digest, lambda: identity.chain)
    attester = make_attester(settings, now=utc_now())
    policy = load_policy(settings.policy)
    verdict = asyncio.run(attest_itself(attester, subject, policy, now=utc_now()))
    return f"{verdict}; configuration {config.digest}"


def _participants(config: Config) -> str:
    path = config.identity.participant_authority
    found = authority_found(path)
    if issued_by(first_certificate(config.identity.tls.certificate_chain), path):
        raise BrokenLinkError(
            "the participants' authority issued the coordinator's certificate",
            "use two authorities: any participant's certificate could stand for the coordinator",
        )
    return found


def _allowlist(config: Config) -> str:
    allowlist = load_allowlist(config.federation.allowlist)
    if allowlist.federation != config.federation.id:
        raise BrokenLinkError(
            f"the allow-list is for federation {allowlist.federation}, the configuration for "
            f"{config.federation.id}",
            "use the one of this federation",
        )
    try:
        check_hospitals(config, allowlist)
    except ConfigurationError as error:
        remedy = "enrol hospitals (matl pki approve), or change the key that the message names"
        raise BrokenLinkError(str(error), remedy) from error
    return f"{len(allowlist.nodes)} nodes: {', '.join(sorted(allowlist.nodes)[:20])}"


def _shows(address: str, name: SpiffeId, files: TlsPlace) -> str:
    path = files.certificate_chain
    shown, own = shown_certificate(address, name=name, trusted=None), first_certificate(path)
    if is_authority(own):
        if not issued_by(shown, path):
            raise BrokenLinkError(
                f"what answers at {address} shows a certificate that {path} did not issue",
                "another process has the port, or the daemon refused the files: look for "
                "tls_files_refused in its log",
            )
        rooted = HSM_ROOTED if isinstance(files, TokenTls) else FILE_ROOTED
        return f"the daemon shows a certificate of its authority: {rooted}, over TLS 1.3"
    if shown != own:
        raise BrokenLinkError(
            f"what answers at {address} shows another certificate than {path} "
            f"(pin {spki_pin(shown)})",
            "another process has the port, or the daemon refused the file: look for "
            "tls_files_refused in its log",
        )
    return "the daemon shows the certificate in the file, over TLS 1.3"


def _peer_valid(path: Path) -> str:
    certificate = first_certificate(path)
    check_purpose(certificate, "the peer's certificate", serves=False)
    until = valid_until(certificate, "the peer's certificate", "matl pki request, at the peer")
    return f"{parsed(certificate).spiffe_id}, {until}"


def _peer_issued(path: Path, authority: Path) -> str:
    if not issued_by(first_certificate(path), authority):
        raise BrokenLinkError(
            "the participants' authority did not issue the peer's certificate",
            "have it issued by this federation (matl pki approve)",
        )
    return "issued by the participants' authority"


def _peer_enrolled(config: Config, path: Path) -> str:
    peer = parsed(first_certificate(path))
    found = load_allowlist(config.federation.allowlist).authenticate(peer, now=utc_now())
    match found:
        case AllowedNode():
            return f"enrolled as {found.role.value} with pin {peer.pin}"
        case reason:
            raise BrokenLinkError(
                f"{peer.spiffe_id} with pin {peer.pin} may not take part: {reason.value}",
                f"{REMEDIES[reason]}; matl pki list shows who is enrolled",
            )
