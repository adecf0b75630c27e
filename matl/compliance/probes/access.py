"""164.312(a): who is let in, and under which name."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from grpc_health.v1 import health_pb2

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.logbook import Logbook
from matl.compliance.site import CoordinatorSite, Site, answering, at_coordinator
from matl_common.identity.allowlist import Allowlist, load_allowlist
from matl_common.identity.authorities import read_certificate
from matl_common.identity.certificates import (
    PARTICIPANT_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
)
from matl_common.identity.keys import generate_private_key, load_private_key, private_key_pem
from matl_common.identity.pkcs11.uri import TokenUri
from matl_common.identity.tls import TlsFiles, channel_credentials, channel_options
from matl_common.ids import FederationId, NodeId

CALL_SECONDS: Final = 15.0
LOGGED_SECONDS: Final = 15.0
_METHOD: Final = "/grpc.health.v1.Health/Check"
_UNLISTED: Final = NodeId("nobody-enrolled-this")
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class BadCertificate:
    """A certificate that must not be let in, and what the log has to say of it."""

    name: str
    reason: str
    in_handshake: bool
    node: NodeId | None = None
    files: TlsFiles | None = None
    """``None``: no certificate is shown at all."""

    @property
    def denial(self) -> tuple[str, str, NodeId | None]:
        """Event, reason and node of the entry."""
        event = "handshake_refused" if self.in_handshake else "access_denied"
        return event, self.reason, self.node


def certificates(site: Site) -> Outcome:
    """Dial with every bad certificate, and see each refused and logged."""
    here = answering(site)
    allowlist = load_allowlist(here.config.federation.allowlist)
    with tempfile.TemporaryDirectory(prefix="matl-probe-") as folder:
        bad, lacking = _bad_certificates(here, allowlist, Path(folder))
        before = here.log.reader.size()
        with ThreadPoolExecutor(len(bad)) as pool:
            answers = list(pool.map(partial(_dial, here), bad))
    let_in = [each.name for each, code in zip(bad, answers, strict=True) if not _is_refused(code)]
    if let_in:
        raise BrokenControlError(
            f"let in with: {', '.join(let_in)}",
            "stop the coordinator, and find out what answers at its address",
        )
    missing = _missing_denials(here.log, before, bad)
    if missing:
        raise BrokenControlError(
            f"refused, but the log does not say so within {LOGGED_SECONDS:g} s: "
            f"{', '.join(missing)}",
            "see whether more than 60 of a kind were refused within this hour, which are summed "
            "up, and whether the daemon can write its log",
        )
    if lacking:
        raise NotTestedError(
            f"refused and logged: {', '.join(each.name for each in bad)}; the others need the "
            f"participants' authority: {lacking}",
            "name it in [probes] authority_key of safeguards.toml, for this run only",
        )
    said = "; ".join(f"{each.name}: {each.reason}" for each in bad)
    return passed(f"{len(bad)} dialled, all refused, and each refusal is in the log ({said})")


def unique(site: Site) -> Outcome:
    """Read who is enrolled: no two nodes share a name or a key."""
    here = at_coordinator(site)
    # Refuses names and keys that are listed twice.
    allowlist = load_allowlist(here.config.federation.allowlist)
    if not allowlist.nodes:
        raise BrokenControlError(
            "the allow-list enrols nobody", "enrol the hospitals: matl pki approve"
        )
    roles = Counter(each.role.value for each in allowlist.nodes.values())
    keys = sum(len(each.pins) for each in allowlist.nodes.values())
    counted = ", ".join(f"{count} {role}s" for role, count in sorted(roles.items()))
    return passed(
        f"{len(allowlist.nodes)} nodes ({counted}), {keys} TLS keys and {len(allowlist.nodes)} "
        "signing keys, none of them twice"
    )


def _bad_certificates(
    site: CoordinatorSite, allowlist: Allowlist, folder: Path
) -> tuple[list[BadCertificate], str]:
    """What to dial with, and why not more if some cannot be made."""
    listed = next(
        (each for each in allowlist.nodes.values() if each.role is Role.PARTICIPANT), None
    )
    federation = allowlist.federation
    name = SpiffeId(
        federation, Role.PARTICIPANT, listed.node_id if listed is not None else _UNLISTED
    )
    make = _Maker(folder, _trusted(site), site.now)
    stranger = create_authority(
        "an authority of a probe",
        roles=PARTICIPANT_ROLES,
        not_before=site.now - _DAY,
        not_after=site.now + _DAY,
    )
    bad = [
        BadCertificate("no certificate", "no_certificate", in_handshake=True),
        BadCertificate(
            "another authority",
            "wrong_authority",
            in_handshake=True,
            files=make("stranger", stranger, name),
        ),
    ]
    try:
        authority = _participants_authority(site)
    except NotTestedError as error:
        return bad, str(error)
    if listed is None:
        return bad, "and an enrolled hospital"
    now = site.now
    other_role = SpiffeId(federation, Role.OPERATOR, listed.node_id)
    elsewhere = SpiffeId(FederationId("another-federation"), Role.PARTICIPANT, listed.node_id)
    unlisted = SpiffeId(federation, Role.PARTICIPANT, _UNLISTED)
    long_ago = (now - 2 * _DAY, now - _DAY)
    later = (now + _DAY, now + 2 * _DAY)
    bad += [
        BadCertificate(
            "expired", "expired", in_handshake=True, files=make("old", authority, name, *long_ago)
        ),
        BadCertificate(
            "not yet valid",
            "not_yet_valid",
            in_handshake=True,
            files=make("early", authority, name, *later),
        ),
        BadCertificate(
            "unlisted",
            "unlisted",
            in_handshake=False,
            node=_UNLISTED,
            files=make("unlisted", authority, unlisted),
        ),
        BadCertificate(
            "listed name, another key",
            "pin_mismatch",
            in_handshake=False,
            node=listed.node_id,
            files=make("key", authority, name),
        ),
        BadCertificate(
            "listed name, another role",
            "wrong_role",
            in_handshake=False,
            node=listed.node_id,
            files=make("role", authority, other_role),
        ),
        BadCertificate(
            "another federation",
            "wrong_federation",
            in_handshake=False,
            node=listed.node_id,
            files=make("federation", authority, elsewhere),
        ),
    ]
    return bad, ""


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes certificates with keys of their own, in files of one folder."""

    folder: Path
    trusted: Path
    now: datetime

    def __call__(
        self,
        stem: str,
        authority: CertificateAuthority,
        name: SpiffeId,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> TlsFiles:
        key: ec.EllipticCurvePrivateKey = generate_private_key()
        issued = issue_certificate(
            authority,
            key.public_key(),
            name,
            not_before=not_before or self.now - timedelta(hours=1),
            not_after=not_after or self.now + timedelta(hours=1),
        )
        files = TlsFiles(self.folder / f"{stem}.key", self.folder / f"{stem}.crt", self.trusted)
        files.private_key.touch(mode=0o600)
        files.private_key.write_bytes(private_key_pem(key))
        files.certificate_chain.write_bytes(issued.public_bytes(Encoding.PEM))
        return files


def _participants_authority(site: CoordinatorSite) -> CertificateAuthority:
    """The authority that hospitals' certificates come from, with its key.

    Raises:
        NotTestedError: its key is not here, which is as it should be on most days.
    """
    certificate = site.config.identity.participant_authority
    given = site.registry.probes.authority_key
    # Where the federation folder is on this machine, the coordinator's own folder is in it.
    place = given or site.config.federation.allowlist.parent.parent / "participant-ca.key"
    if isinstance(place, TokenUri) or not place.exists():
        raise NotTestedError(f"there is no key file {place}")
    key = load_private_key(place)
    return CertificateAuthority(read_certificate(certificate), key, PARTICIPANT_ROLES)


def _trusted(site: CoordinatorSite) -> Path:
    """What a hospital would trust: whoever issued this coordinator's certificate.

    Only bad certificates are shown with it, so a self-issued chain serves as well.
    """
    beside = site.config.identity.tls_certificate
    authority = site.config.federation.allowlist.parent.parent / "coordinator-ca.crt"
    return authority if authority.exists() else beside


def _dial(site: CoordinatorSite, bad: BadCertificate) -> grpc.StatusCode | None:
    """Call with a bad certificate; returns the status, ``None`` where an answer came."""
    trusted = _trusted(site).read_bytes()
    credentials = (
        grpc.ssl_channel_credentials(trusted)
        if bad.files is None
        else channel_credentials(bad.files)
    )
    # Channels with like arguments would share a connection, and with it a certificate.
    options = (*channel_options(site.name), ("grpc.use_local_subchannel_pool", 1))
    with grpc.secure_channel(site.address, credentials, options=options) as channel:
        call = channel.unary_unary(
            _METHOD,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            call(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return None


def _is_refused(code: grpc.StatusCode | None) -> bool:
    return code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED}


def _missing_denials(log: Logbook, start: int, bad: list[BadCertificate]) -> list[str]:
    """Names of those that the log says nothing of, however long one looks."""
    wanted = Counter(each.denial for each in bad)
    deadline = time.monotonic() + LOGGED_SECONDS
    while True:
        lacking = wanted - Counter(_denials(log, start))
        if not lacking or time.monotonic() >= deadline:
            return [each.name for each in bad if each.denial in lacking]
        time.sleep(0.05)


def _denials(log: Logbook, start: int) -> Iterator[tuple[str, str, NodeId | None]]:
    for each in log.since(start):
        if each.get("event") in {"handshake_refused", "access_denied"}:
            yield str(each["event"]), str(each.get("reason")), each.get("node")
