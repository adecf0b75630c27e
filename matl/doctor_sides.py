"""The links of either side, in the order in which a connection needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import grpc

from matl.doctor import (
    LARGEST_CLOCK_ERROR,
    BrokenLinkError,
    Link,
    address_found,
    authority_found,
    certificate_found,
    connection_found,
    first_certificate,
    issued_by,
    key_found,
    name_found,
    parsed,
    shown_certificate,
    split_address,
    valid_until,
)
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import AllowedNode, RefusalReason, load_allowlist
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.ephemeral import HSM_ROOTED
from matl_common.identity.held_keys import load_ed25519_key, load_p256_key, load_tls_key
from matl_common.identity.key_places import KeyPlace
from matl_common.identity.keys import parse_public_key, spki_pin
from matl_common.identity.tls import (
    TlsFiles,
    TlsPlace,
    TokenTls,
    channel_credentials,
    channel_options,
)
from matl_common.ids import FederationId, NodeId
from matl_coordinator.config import Config as CoordinatorConfig
from matl_coordinator.preflight import check_hospitals
from matl_participant.client import (
    CallError,
    FederationClient,
    NotAllowedError,
    UntrustedCoordinatorError,
    Welcome,
)
from matl_participant.config import Config as ParticipantConfig
from matl_participant.log_client import LogClient
from matl_participant.witness import load_witness_keys

_Answer = TypeVar("_Answer")
_SENT_TO_OPERATOR = "send the request of matl pki request to the coordinator's operator"
_REMEDIES = {
    RefusalReason.UNLISTED: f"it is not enrolled, or no longer: {_SENT_TO_OPERATOR}",
    RefusalReason.PIN_MISMATCH: f"it is enrolled with another TLS key: {_SENT_TO_OPERATOR}",
    RefusalReason.WRONG_ROLE: "it is enrolled in another role; have the certificate issued anew",
    RefusalReason.WRONG_FEDERATION: "the certificate is another federation's; use that one's files",
    RefusalReason.EXPIRED: "renew the certificate: matl pki request",
}


def participant_links(config: ParticipantConfig) -> tuple[Link, ...]:
    """What a hospital needs to take part."""
    files, coordinator = config.tls, config.coordinator
    name = SpiffeId(
        FederationId(coordinator.name.federation), Role.PARTICIPANT, NodeId(config.node_id)
    )
    own = ("TLS key", "certificate")
    return (
        Link("TLS key", lambda: key_found(files.private_key)),
        Link("certificate", lambda: certificate_found(files), ("TLS key",)),
        Link("name", lambda: name_found(files, name), ("certificate",)),
        Link("signing key", lambda: _signing_key(config.identity.signing_key, files.private_key)),
        Link("witness key", lambda: _witness(config)),
        Link("authority", lambda: authority_found(coordinator.authority)),
        Link("address", lambda: address_found(coordinator.address)),
        Link("connection", lambda: connection_found(coordinator.address), ("address",)),
        Link(
            "handshake",
            lambda: _handshake(config),
            (*own, "authority", "connection"),
        ),
        Link("enrolment", lambda: _enrolled(config), ("handshake", "name")),
        Link("coordinator's signing key", lambda: _plan(config), ("enrolment",)),
        Link("clock", lambda: _clock(config), ("coordinator's signing key",)),
        Link("log key", lambda: _log(config), ("enrolment", "witness key")),
    )


def coordinator_links(config: CoordinatorConfig, *, peer: Path | None) -> tuple[Link, ...]:
    """What a coordinator needs to serve, and to let in the node of a certificate."""
    files = config.identity.tls
    name = SpiffeId(
        FederationId(config.federation.id), Role.COORDINATOR, NodeId(config.federation.node_id)
    )
    host, port = split_address(config.listen.address)
    address = f"{'127.0.0.1' if host in ('0.0.0.0', '::', '') else host}:{port}"
    links = (
        Link("TLS key", lambda: key_found(files.private_key)),
        Link("certificate", lambda: certificate_found(files), ("TLS key",)),
        Link("name", lambda: name_found(files, name), ("certificate",)),
        Link("signing key", lambda: _signing_key(config.identity.signing_key, files.private_key)),
        Link("log key", lambda: _log_key(config.identity.log_key)),
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
            ("peer's certificate", needs[1]),
        ),
    )


def _signing_key(place: KeyPlace, tls_key: KeyPlace) -> str:
    key = load_p256_key(place)
    if key.keyid == load_tls_key(tls_key).keyid:
        raise BrokenLinkError("the signing key is the TLS key", "use a key for each use")
    return f"{key.holder}, {key.keyid}"


def _witness(config: ParticipantConfig) -> str:
    keys = load_witness_keys(config)
    return "none: this hospital does not witness the log" if keys is None else keys.own.vkey


def _log_key(place: KeyPlace) -> str:
    return f"Ed25519, {load_ed25519_key(place).holder}"


def _handshake(config: ParticipantConfig) -> str:
    coordinator = config.coordinator
    # A token's key cannot sign this handshake; that of the next link can.
    files = config.tls if isinstance(config.tls, TlsFiles) else None
    shown = shown_certificate(
        coordinator.address, name=coordinator.name, trusted=coordinator.authority, files=files
    )
    found = parsed(shown).spiffe_id
    if found != coordinator.name:
        raise BrokenLinkError(
            f"the certificate shown is for {found}, and the configuration says {coordinator.name}",
            "correct coordinator.spiffe_id, or find out who answers there",
        )
    return f"TLS 1.3 with {found}, {valid_until(shown, 'its certificate', 'matl pki renew, there')}"


def _enrolled(config: ParticipantConfig) -> str:
    try:
        welcome = _hello(config)
    except NotAllowedError as error:
        for reason, remedy in _REMEDIES.items():
            if f": {reason.value}" in str(error):
                raise BrokenLinkError(
                    f"the coordinator does not let this node in: {reason.value}", remedy
                ) from error
        raise BrokenLinkError(str(error), _SENT_TO_OPERATOR) from error
    except UntrustedCoordinatorError:
        # Let in; whether to believe what came is the next link's question.
        return "the coordinator lets this node in"
    return f"the coordinator, version {welcome.version}, lets this node in"


def _plan(config: ParticipantConfig) -> str:
    try:
        welcome = _hello(config)
    except UntrustedCoordinatorError as error:
        raise BrokenLinkError(
            str(error),
            "compare coordinator.signing_key with the key that the operator publishes",
        ) from error
    return f"signed the plan of study {welcome.signed_plan.plan.study_id}"


def _clock(config: ParticipantConfig) -> str:
    ahead = _hello(config).clock_ahead
    if abs(ahead) > LARGEST_CLOCK_ERROR:
        raise BrokenLinkError(
            f"the coordinator's clock is {ahead.total_seconds():+.0f} s ahead of this one",
            "have both machines follow a time server",
        )
    return f"{abs(ahead).total_seconds():.1f} s apart at most"


def _log(config: ParticipantConfig) -> str:
    keys = load_witness_keys(config)
    if keys is None:
        return "not asked: no coordinator.log_key and witness_key are configured"
    log = keys.log

    async def ask(channel: grpc.aio.Channel) -> int:
        offer = await LogClient(channel, log_key=log).checkpoint(old_size=0)
        return offer.signed.checkpoint.size

    try:
        size = _asked(config, ask)
    except UntrustedCoordinatorError as error:
        remedy = (
            "compare coordinator.log_key with the key that the coordinator's operator publishes"
        )
        raise BrokenLinkError(str(error), remedy) from error
    return f"signed a checkpoint of {size} entries"


def _hello(config: ParticipantConfig) -> Welcome:
    key = parse_public_key(config.coordinator.signing_key.read_bytes())

    async def ask(channel: grpc.aio.Channel) -> Welcome:
        client = FederationClient(
            channel,
            node_id=NodeId(config.node_id),
            federation_id=config.coordinator.name.federation,
            coordinator_key=key,
        )
        return await client.hello(version="doctor", device="")

    return _asked(config, ask)


def _asked(
    config: ParticipantConfig, ask: Callable[[grpc.aio.Channel], Awaitable[_Answer]]
) -> _Answer:
    async def scenario() -> _Answer:
        channel = grpc.aio.secure_channel(
            config.coordinator.address,
            channel_credentials(config.tls),
            options=channel_options(config.coordinator.name),
        )
        try:
            return await ask(channel)
        finally:
            await channel.close()

    try:
        return asyncio.run(scenario())
    except (NotAllowedError, UntrustedCoordinatorError):
        raise
    except CallError as error:
        raise BrokenLinkError(str(error), "look at the coordinator's log") from error


def _participants(config: CoordinatorConfig) -> str:
    path = config.identity.participant_authority
    found = authority_found(path)
    if issued_by(first_certificate(config.identity.tls.certificate_chain), path):
        raise BrokenLinkError(
            "the participants' authority issued the coordinator's certificate",
            "use two authorities: any participant's certificate could stand for the coordinator",
        )
    return found


def _allowlist(config: CoordinatorConfig) -> str:
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
    if isinstance(files, TokenTls):
        if not issued_by(shown, path):
            raise BrokenLinkError(
                f"what answers at {address} shows a certificate that the token's key did not issue",
                "another process has the port, or the daemon refused the files: look for "
                "tls_files_refused in its log",
            )
        return f"the daemon shows a certificate of the token's key: {HSM_ROOTED}, over TLS 1.3"
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
    until = valid_until(certificate, "the peer's certificate", "matl pki request, at the peer")
    return f"{parsed(certificate).spiffe_id}, {until}"


def _peer_issued(path: Path, authority: Path) -> str:
    if not issued_by(first_certificate(path), authority):
        raise BrokenLinkError(
            "the participants' authority did not issue the peer's certificate",
            "have it issued by this federation (matl pki approve)",
        )
    return "issued by the participants' authority"


def _peer_enrolled(config: CoordinatorConfig, path: Path) -> str:
    peer = parsed(first_certificate(path))
    found = load_allowlist(config.federation.allowlist).authenticate(peer, now=datetime.now(UTC))
    match found:
        case AllowedNode():
            return f"enrolled as {found.role.value} with pin {peer.pin}"
        case reason:
            raise BrokenLinkError(
                f"{peer.spiffe_id} with pin {peer.pin} may not take part: {reason.value}",
                f"{_REMEDIES[reason]}; matl pki list shows who is enrolled",
            )
