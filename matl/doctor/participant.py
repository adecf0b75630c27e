"""A hospital's links, in the order in which taking part needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2

from matl.doctor.examination import (
    REMEDIES,
    SENT_TO_OPERATOR,
    BrokenLinkError,
    Link,
    authority_found,
    certificate_found,
    check_closed,
    check_private,
    key_found,
    name_found,
    parsed,
    signing_key_found,
    valid_until,
)
from matl.doctor.handshake import (
    SECONDS,
    address_found,
    connection_found,
    refused_by_coordinator,
    show_certificate,
    shown_certificate,
)
from matl_common.attestation.evidence import EvidenceRefusedError
from matl_common.attestation.policy import load_policy
from matl_common.attestation.verifier import check_available
from matl_common.clock import utc_now
from matl_common.errors import InvalidInputError
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.held_keys import load_ed25519_key
from matl_common.identity.keys import parse_public_key
from matl_common.identity.tls import TlsFiles
from matl_common.ids import FederationId, NodeId
from matl_common.modes import says_attested
from matl_common.tlog.cosignature import witness_key
from matl_common.tlog.names import witness_name
from matl_participant.attestation import Attestation
from matl_participant.client import (
    CallError,
    FederationClient,
    NotAllowedError,
    RefusedError,
    UnavailableError,
    UntrustedCoordinatorError,
    Welcome,
    one_try,
)
from matl_participant.config import Config
from matl_participant.connection import RenewingChannel
from matl_participant.log_client import LogClient
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports, unverified
from matl_participant.witness import load_witness_keys

LARGEST_CLOCK_ERROR = timedelta(minutes=1)

_IN_ITS_LOG = "look at the coordinator's log"
_Answer = TypeVar("_Answer")


def participant_links(config: Config) -> tuple[Link, ...]:
    """What a hospital needs to take part."""
    files, coordinator = config.tls, config.coordinator
    name = SpiffeId(
        FederationId(coordinator.name.federation), Role.PARTICIPANT, NodeId(config.node_id)
    )
    signing_key = config.identity.signing_key
    return (
        Link("TLS key", lambda: key_found(files.private_key)),
        Link("certificate", lambda: certificate_found(files, serves=False), ("TLS key",)),
        Link("name", lambda: name_found(files, name), ("certificate",)),
        Link(
            "signing key", lambda: signing_key_found(signing_key, files.private_key), ("TLS key",)
        ),
        Link("witness key", lambda: _witness(config)),
        Link("patients' data", lambda: _data(config)),
        Link("authority", lambda: authority_found(coordinator.authority)),
        *(link for each in coordinator.addresses for link in _way_to(config, each)),
        # One of two machines may be away: the other tells the rest.
        Link("enrolment", lambda: _enrolled(config), ("name",), _handshakes(config)),
        Link("attestation", lambda: _attested(config), ("enrolment",)),
        # Whoever demands evidence says nothing to a coordinator that shows none.
        Link("coordinator's signing key", lambda: _plan(config), ("enrolment", "attestation")),
        Link("clock", lambda: _clock(config), ("coordinator's signing key",)),
        Link("log key", lambda: _log(config), ("enrolment", "attestation", "witness key")),
    )


def _way_to(config: Config, address: str) -> tuple[Link, ...]:
    """To one of the coordinator's addresses."""
    where = f" {address}" if len(config.coordinator.addresses) > 1 else ""
    return (
        Link(f"address{where}", lambda: address_found(address)),
        Link(f"connection{where}", lambda: connection_found(address), (f"address{where}",)),
        Link(
            f"handshake{where}",
            lambda: _handshake(config, address),
            ("TLS key", "certificate", "authority", f"connection{where}"),
        ),
    )


def _handshakes(config: Config) -> tuple[str, ...]:
    links = (link for each in config.coordinator.addresses for link in _way_to(config, each))
    return tuple(each.name for each in links if each.name.startswith("handshake"))


def _witness(config: Config) -> str:
    place = config.identity.witness_key
    if place is None:
        return "none: this hospital does not witness the log"
    key = load_ed25519_key(place)
    check_private(place)
    name = witness_name(FederationId(config.coordinator.name.federation), config.node_id)
    return f"{key.holder}, {witness_key(name, key.public_key).vkey}"


def _data(config: Config) -> str:
    check_closed(config.data.labels_file, "the labels")
    check_closed(config.data.images, "the images")
    return "labels and images are closed to other accounts"


def _handshake(config: Config, address: str) -> str:
    coordinator, files = config.coordinator, config.tls
    shown = shown_certificate(address, name=coordinator.name, trusted=coordinator.authority)
    found = parsed(shown).spiffe_id
    if found != coordinator.name:
        raise BrokenLinkError(
            f"the certificate shown is for {found}, and the configuration says {coordinator.name}",
            "correct coordinator.spiffe_id, or find out who answers there",
        )
    # A token's key cannot sign this handshake; that of the next link can.
    if isinstance(files, TlsFiles):
        show_certificate(address, name=coordinator.name, files=files)
    return f"TLS 1.3 with {found}, {valid_until(shown, 'its certificate', 'matl pki renew, there')}"


def _enrolled(config: Config) -> str:
    async def ask(channel: RenewingChannel) -> bool:
        # Says nothing of this hospital, and does not make it present for a round.
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await one_try(check(health_pb2.HealthCheckRequest(), timeout=SECONDS))
        is_serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
        if not is_serving and len(config.coordinator.addresses) > 1:
            raise UnavailableError(f"{channel.address} stands by", code="UNAVAILABLE")
        return is_serving

    try:
        is_serving = _answered(config, ask)
    except NotAllowedError as error:
        for reason, remedy in REMEDIES.items():
            if f": {reason.value}" in str(error):
                raise BrokenLinkError(
                    f"the coordinator does not let this node in: {reason.value}", remedy
                ) from error
        raise BrokenLinkError(str(error), SENT_TO_OPERATOR) from error
    except CallError as error:
        if isinstance(config.tls, TlsFiles) or not isinstance(error, UnavailableError):
            raise BrokenLinkError(str(error), _IN_ITS_LOG) from error
        # It did answer, before it was shown what only a token can show.
        raise refused_by_coordinator() from error
    return f"the coordinator lets this node in{'' if is_serving else ', and is stopping'}"


def _attested(config: Config) -> str:
    settings = config.attestation
    if settings is None:
        return _unverified(config)
    policy = load_policy(settings.policy)
    check_available(policy)

    async def ask(channel: RenewingChannel) -> str:
        attestation = Attestation(channel, config.coordinator.name, policy)
        attested = await attestation.attest(utc_now())
        return f"{attested.verdict}; configuration {attested.config_digest}"

    try:
        return _answered(config, ask)
    except RefusedError as error:
        raise BrokenLinkError(
            f"the coordinator shows no evidence: {error}",
            "have it attested (MODE2), or take part without: remove [attestation] here",
        ) from error
    except (EvidenceRefusedError, InvalidInputError, UntrustedCoordinatorError) as error:
        raise BrokenLinkError(
            f"the coordinator's evidence is not accepted: {error}",
            f"compare {settings.policy} with what the coordinator's operator says that its machine "
            "runs, and take part in nothing until the two agree",
        ) from error
    except CallError as error:
        raise BrokenLinkError(str(error), _IN_ITS_LOG) from error


def _unverified(config: Config) -> str:
    """What nobody asked for; and whether there would have been something to ask for."""
    mode = ""
    # What is wrong with its answer is another link's to say.
    with suppress(BrokenLinkError, InvalidInputError, UntrustedCoordinatorError):
        mode = _hello(config, _coordinators_key(config)).mode
    if says_attested(mode):
        return unverified(mode)
    return "not asked for: [attestation] names no policy"


def _plan(config: Config) -> str:
    try:
        welcome = _hello(config, _coordinators_key(config))
    except UntrustedCoordinatorError as error:
        raise BrokenLinkError(
            str(error),
            "compare coordinator.signing_key with the key that the operator publishes",
        ) from error
    plan = welcome.signed_plan.plan
    return f"signed the plan of study {plan.study_id}; version {welcome.version}"


def _coordinators_key(config: Config) -> ec.EllipticCurvePublicKey:
    path = config.coordinator.signing_key
    try:
        return parse_public_key(path.read_bytes())
    except (OSError, InvalidInputError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BrokenLinkError(
            f"coordinator.signing_key, {path}: {why}",
            "put the public key there that the coordinator's operator publishes "
            "(coordinator-signing.pub of matl pki install)",
        ) from error


def _clock(config: Config) -> str:
    ahead = _hello(config, _coordinators_key(config)).clock_ahead
    if abs(ahead) > LARGEST_CLOCK_ERROR:
        raise BrokenLinkError(
            f"the coordinator's clock is {ahead.total_seconds():+.0f} s ahead of this one",
            "have both machines follow a time server",
        )
    return f"{abs(ahead).total_seconds():.1f} s apart at most"


def _log(config: Config) -> str:
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


def _hello(config: Config, key: ec.EllipticCurvePublicKey) -> Welcome:
    async def ask(channel: grpc.aio.Channel) -> Welcome:
        client = FederationClient(
            channel,
            node_id=NodeId(config.node_id),
            federation_id=config.coordinator.name.federation,
            coordinator_key=key,
        )
        return await client.hello(version="doctor", device="")

    return _asked(config, ask)


def _asked(config: Config, ask: Callable[[grpc.aio.Channel], Awaitable[_Answer]]) -> _Answer:
    try:
        return _answered(config, ask)
    except CallError as error:
        raise BrokenLinkError(str(error), _IN_ITS_LOG) from error


def _answered(config: Config, ask: Callable[[RenewingChannel], Awaitable[_Answer]]) -> _Answer:
    async def scenario(address: str) -> _Answer:
        async with _channel(config, address) as channel:
            return await ask(channel)

    *others, last = config.coordinator.addresses
    for each in others:
        # Whoever stands by there says so.
        with suppress(UnavailableError):
            return asyncio.run(scenario(each))
    return asyncio.run(scenario(last))


def _channel(config: Config, address: str) -> RenewingChannel:
    coordinator = config.coordinator
    # What a daemon would log of its connection, the doctor finds by itself and says.
    silent = structlog.wrap_logger(structlog.ReturnLogger(), processors=[])
    reports = Reports(Metrics(), log=silent)
    return RenewingChannel(address, config.tls, coordinator.name, reports=reports)
