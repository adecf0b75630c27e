"""A whole federation's keys and certificates in one folder, for development.

Made in one step: the folder is complete or does not exist. Every private key of every
node lies side by side, which no real federation may do; the folder says so.

    coordinator-ca.{crt,key}  participant-ca.{crt,key}   the two authorities
    DEVELOPMENT-KEYS.json                                what the folder was made for
    <node_id>/tls.key tls.crt trusted-ca.crt             mutual TLS
    <node_id>/signing.key signing.pub                    DSSE envelopes
    <coordinator>/allowlist.toml log.key log.vkey        enrolment and the log's key
    <others>/coordinator-signing.pub log.vkey            what they trust the coordinator by
    <participants>/witness.key                           cosignatures
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.durable import fsync_directory, write_atomically
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import AllowedNode, encode_allowlist, enrol
from matl_common.identity.certificates import (
    CLOCK_SKEW,
    COORDINATOR_ROLES,
    PARTICIPANT_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
)
from matl_common.identity.keys import (
    generate_private_key,
    private_key_pem,
    public_key_pem,
    spki_pin,
)
from matl_common.identity.tls import TlsFiles
from matl_common.ids import FederationId, NodeId
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.cosignature import witness_key
from matl_common.tlog.names import log_origin, witness_name

MARKER = "DEVELOPMENT-KEYS.json"
KEYS_VERSION = 2
"""Of which files each node has; a folder of another version is made anew."""
DEFAULT_VALIDITY = timedelta(days=30)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

_PUBLIC_MODE = 0o644
_FOLDER_MODE = 0o755


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What the operator of a development federation says about a participant."""

    patients: int
    label_histogram: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class DevelopmentFederation:
    """What to make keys for."""

    federation: FederationId
    coordinator: NodeId
    participants: Mapping[NodeId, Enrolment]
    operators: tuple[NodeId, ...] = ()
    server_names: tuple[str, ...] = field(default=LOOPBACK_NAMES)


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """Where a node's files are. The last three exist as the module's docstring says."""

    folder: Path

    @property
    def tls(self) -> TlsFiles:
        """The node's side of mutual TLS."""
        return TlsFiles(
            private_key=self.folder / "tls.key",
            certificate_chain=self.folder / "tls.crt",
            trusted_authority=self.folder / "trusted-ca.crt",
        )

    @property
    def signing_key(self) -> Path:
        """The private key of the node's envelopes."""
        return self.folder / "signing.key"

    @property
    def coordinator_signing_key(self) -> Path:
        """The public key of the coordinator's envelopes."""
        return self.folder / "coordinator-signing.pub"

    @property
    def allowlist(self) -> Path:
        """The enrolled nodes."""
        return self.folder / "allowlist.toml"

    @property
    def log_key(self) -> Path:
        """The private key of the log's checkpoints."""
        return self.folder / "log.key"

    @property
    def witness_key(self) -> Path:
        """The private key that a participant cosigns checkpoints with."""
        return self.folder / "witness.key"

    @property
    def log_verifier_key(self) -> Path:
        """The log's C2SP verifier key."""
        return self.folder / "log.vkey"


def create_development_keys(
    folder: Path,
    wanted: DevelopmentFederation,
    *,
    now: datetime,
    validity: timedelta = DEFAULT_VALIDITY,
) -> Mapping[NodeId, NodeFolder]:
    """Make the folder, or accept the one made earlier for the same federation.

    Returns:
        Every node's folder.

    Raises:
        ConfigurationError: the folder exists and is something else, was made for
            another federation, or its certificates have expired. Nothing is overwritten.
    """
    if not folder.exists():
        _create(folder, wanted, not_before=now - CLOCK_SKEW, not_after=now + validity)
    else:
        _check_existing(folder, wanted, now=now)
    return MappingProxyType({node: NodeFolder(folder / node) for node in _node_ids(wanted)})


def _create(
    folder: Path, wanted: DevelopmentFederation, *, not_before: datetime, not_after: datetime
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _fill(temporary, wanted, not_before=not_before, not_after=not_after)
        temporary.chmod(_FOLDER_MODE)
        # Fails where the folder has appeared meanwhile with anything in it.
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    fsync_directory(folder.parent)


def _fill(
    folder: Path, wanted: DevelopmentFederation, *, not_before: datetime, not_after: datetime
) -> None:
    authorities = {
        name: create_authority(
            f"{wanted.federation} {name} authority (development keys)",
            roles=roles,
            not_before=not_before,
            not_after=not_after,
        )
        for name, roles in (("coordinator", COORDINATOR_ROLES), ("participant", PARTICIPANT_ROLES))
    }
    for name, authority in authorities.items():
        _write_public(folder / f"{name}-ca.crt", _pem(authority.certificate))
        write_atomically(folder / f"{name}-ca.key", [private_key_pem(authority.private_key)])
    nodes = {
        node: _write_node(folder / node, wanted, node, authorities) for node in _node_ids(wanted)
    }
    _write_trust(folder, wanted, nodes)
    _write_public(folder / MARKER, _marker(wanted, not_after))


def _write_node(
    folder: Path,
    wanted: DevelopmentFederation,
    node: NodeId,
    authorities: Mapping[str, CertificateAuthority],
) -> AllowedNode:
    """Write a node's own keys and certificates; return its enrolment."""
    folder.mkdir(mode=0o700)
    role = _role_of(node, wanted)
    serves = role is Role.COORDINATOR
    issuer = authorities["coordinator" if serves else "participant"]
    trusted = authorities["participant" if serves else "coordinator"]
    tls_key, signing_key = generate_private_key(), generate_private_key()
    certificate = issue_certificate(
        issuer,
        tls_key.public_key(),
        SpiffeId(wanted.federation, role, node),
        not_before=issuer.certificate.not_valid_before_utc,
        not_after=issuer.certificate.not_valid_after_utc,
        server_names=wanted.server_names if serves else (),
    )
    write_atomically(folder / "tls.key", [private_key_pem(tls_key)])
    write_atomically(folder / "signing.key", [private_key_pem(signing_key)])
    _write_public(folder / "tls.crt", _pem(certificate))
    _write_public(folder / "trusted-ca.crt", _pem(trusted.certificate))
    _write_public(folder / "signing.pub", public_key_pem(signing_key.public_key()))
    enrolment = wanted.participants.get(node, Enrolment(patients=0))
    witness = None
    if role is Role.PARTICIPANT:
        private_key = Ed25519PrivateKey.generate()
        write_atomically(NodeFolder(folder).witness_key, [private_key_pem(private_key)])
        witness = witness_key(witness_name(wanted.federation, node), private_key.public_key())
    return AllowedNode(
        node_id=node,
        role=role,
        pins=frozenset({spki_pin(tls_key)}),
        signing_key=signing_key.public_key(),
        enrolled_patients=enrolment.patients,
        label_histogram=enrolment.label_histogram,
        witness_key=witness,
    )


def _write_trust(
    folder: Path, wanted: DevelopmentFederation, nodes: Mapping[NodeId, AllowedNode]
) -> None:
    """Write what each node must know of the others."""
    private_key = Ed25519PrivateKey.generate()
    vkey = log_key(log_origin(wanted.federation), private_key.public_key()).vkey.encode() + b"\n"
    coordinator = NodeFolder(folder / wanted.coordinator)
    write_atomically(coordinator.log_key, [private_key_pem(private_key)])
    enrolled = enrol(
        wanted.federation,
        (node for node in nodes.values() if node.role is not Role.COORDINATOR),
    )
    _write_public(coordinator.allowlist, encode_allowlist(enrolled))
    signing_key = public_key_pem(nodes[wanted.coordinator].signing_key)
    for node in nodes:
        _write_public(NodeFolder(folder / node).log_verifier_key, vkey)
        if node != wanted.coordinator:
            _write_public(NodeFolder(folder / node).coordinator_signing_key, signing_key)


def _check_existing(folder: Path, wanted: DevelopmentFederation, *, now: datetime) -> None:
    try:
        found = json.loads((folder / MARKER).read_bytes())
        not_after = datetime.fromisoformat(found.pop("not_after"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{folder} exists and holds no development keys; choose another folder"
        ) from error
    if found != _description(wanted):
        raise ConfigurationError(
            f"{folder} holds development keys of another federation or version; delete it or "
            "choose another"
        )
    if now >= not_after:
        raise ConfigurationError(
            f"the development keys in {folder} expired on {not_after:%Y-%m-%d}; delete the folder"
        )


def _marker(wanted: DevelopmentFederation, not_after: datetime) -> bytes:
    document = _description(wanted) | {"not_after": not_after.isoformat()}
    return json.dumps(document, indent=2).encode() + b"\n"


def _description(wanted: DevelopmentFederation) -> dict[str, object]:
    return {
        "warning": "development keys: every node's private keys are in this folder",
        "version": KEYS_VERSION,
        "federation": wanted.federation,
        "coordinator": wanted.coordinator,
        "participants": {
            node: {
                "patients": enrolment.patients,
                "label_histogram": enrolment.label_histogram and list(enrolment.label_histogram),
            }
            for node, enrolment in wanted.participants.items()
        },
        "operators": list(wanted.operators),
        "server_names": list(wanted.server_names),
    }


def _node_ids(wanted: DevelopmentFederation) -> tuple[NodeId, ...]:
    nodes = (wanted.coordinator, *wanted.participants, *wanted.operators)
    if len(set(nodes)) != len(nodes):
        raise ConfigurationError("two nodes of the development federation share a name")
    return nodes


def _role_of(node: NodeId, wanted: DevelopmentFederation) -> Role:
    if node == wanted.coordinator:
        return Role.COORDINATOR
    return Role.PARTICIPANT if node in wanted.participants else Role.OPERATOR


def _write_public(path: Path, content: bytes) -> None:
    write_atomically(path, [content], mode=_PUBLIC_MODE)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
