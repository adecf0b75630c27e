"""Which nodes may take part, with which keys and how many enrolled patients.

The operator writes ``allowlist.toml``; its values are the only source of a node's
role, pins, signing key and weight. Deciding is pure; reading the file is separate.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.certificates import PeerCertificate, Role
from matl_common.identity.keys import (
    parse_public_key,
    public_key_pem,
    spki_pin,
    witness_keyid,
)
from matl_common.ids import (
    FederationId,
    NodeId,
    parse_digest,
    parse_federation_id,
    parse_node_id,
)
from matl_common.tlog.cosignature import COSIGNATURE_TYPES
from matl_common.tlog.names import witness_name
from matl_common.tlog.note import MAX_SIGNATURES, VerifierKey, parse_verifier_key
from matl_common.validation import problems_in

MAX_ALLOWLIST_BYTES = 1 << 20
MAX_NODES = 1000
MAX_PINS_PER_NODE = 8
MAX_LABELS = 64
MAX_WITNESSES = MAX_SIGNATURES - 1
"""A checkpoint bears the log's signature and one of each, and others' tools read no more."""
MAX_PATIENTS = 1_000_000_000


class RefusalReason(StrEnum):
    """Why a peer with a certificate that TLS accepted may still not take part."""

    WRONG_FEDERATION = "wrong_federation"
    UNLISTED = "unlisted"
    WRONG_ROLE = "wrong_role"
    PIN_MISMATCH = "pin_mismatch"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class AllowedNode:
    """One enrolled node.

    ``pins`` are the SHA-256 values of the TLS keys it may use, two of them while a key
    is being replaced. ``enrolled_patients`` weighs its updates; ``label_histogram``
    counts its enrolled patients per grade, where the operator knows them. With a
    ``witness_key`` it cosigns the log's checkpoints.
    """

    node_id: NodeId
    role: Role
    pins: frozenset[str]
    signing_key: ec.EllipticCurvePublicKey
    enrolled_patients: int
    label_histogram: tuple[int, ...] | None = None
    witness_key: VerifierKey | None = None

    @property
    def signing_keyid(self) -> str:
        """The ``keyid`` of envelopes this node signs."""
        return spki_pin(self.signing_key)

    @property
    def witness_keyid(self) -> str | None:
        """What tells its witness key from others, if it has one."""
        return None if self.witness_key is None else witness_keyid(self.witness_key)


@dataclass(frozen=True, slots=True)
class Allowlist:
    """The enrolled nodes of one federation. Obtain one from ``parse_allowlist``."""

    federation: FederationId
    nodes: Mapping[NodeId, AllowedNode]

    def lookup(self, node_id: NodeId) -> AllowedNode | None:
        """The enrolled node of this name."""
        return self.nodes.get(node_id)

    def authenticate(self, peer: PeerCertificate, *, now: datetime) -> AllowedNode | RefusalReason:
        """Match a peer's certificate with its enrolment, on every RPC.

        A connection outlives the certificate that opened it, hence ``now``.
        """
        node = self.nodes.get(peer.node_id)
        if peer.spiffe_id.federation != self.federation:
            return RefusalReason.WRONG_FEDERATION
        if node is None:
            return RefusalReason.UNLISTED
        if peer.role is not node.role:
            return RefusalReason.WRONG_ROLE
        if peer.pin not in node.pins:
            return RefusalReason.PIN_MISMATCH
        if now >= peer.not_after:
            return RefusalReason.EXPIRED
        return node

    def restricted_to(self, other: "Allowlist") -> "Allowlist":
        """This list without the nodes and pins that ``other`` lacks; nothing new gets in."""
        nodes = {}
        for node_id, node in self.nodes.items():
            left = other.nodes.get(node_id)
            if left is not None and left.role is node.role and left.pins & node.pins:
                nodes[node_id] = replace(node, pins=left.pins & node.pins)
        return Allowlist(self.federation, nodes)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


_Count = Annotated[int, Field(ge=0, le=MAX_PATIENTS)]


class _NodeTable(_Strict):
    node_id: str
    role: Literal["participant", "operator", "front-end"]
    pins: Annotated[list[str], Field(min_length=1, max_length=MAX_PINS_PER_NODE)]
    signing_key: Annotated[str, Field(max_length=1000)]
    enrolled_patients: _Count = 0
    label_histogram: Annotated[list[_Count], Field(min_length=1, max_length=MAX_LABELS)] | None = (
        None
    )
    witness_key: Annotated[str, Field(max_length=8000)] | None = None


class _AllowlistTable(_Strict):
    version: Literal[1]
    federation: str
    nodes: Annotated[list[_NodeTable], Field(max_length=MAX_NODES)]


def load_allowlist(path: Path) -> Allowlist:
    """Read and parse ``allowlist.toml``.

    Raises:
        ConfigurationError: the file is missing or unreadable.
        InvalidInputError: as ``parse_allowlist``.
    """
    return parse_allowlist(read_allowlist(path))


def read_allowlist(path: Path) -> bytes:
    """Read ``allowlist.toml``, one byte beyond what may be parsed at most.

    Raises:
        ConfigurationError: the file is missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_ALLOWLIST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the allow-list {path}: {error.strerror}; check the path"
        ) from error


def parse_allowlist(data: bytes) -> Allowlist:
    """Parse an allow-list in TOML.

    Raises:
        InvalidInputError: not TOML, too long, an unknown key, a value out of range, or
            a node, pin or signing key that is listed twice.
    """
    if len(data) > MAX_ALLOWLIST_BYTES:
        raise InvalidInputError(f"the allow-list exceeds {MAX_ALLOWLIST_BYTES} bytes")
    try:
        table = _AllowlistTable.model_validate(tomllib.loads(data.decode()))
    except ValidationError as error:
        problems = problems_in(error, whole="file")
        raise InvalidInputError(f"the allow-list is not valid: {problems}") from error
    # tomllib also lets out what int() says of a number with thousands of digits.
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the allow-list is not TOML: {error}") from error
    federation = parse_federation_id(table.federation)
    return enrol(federation, (_allowed_node(federation, each) for each in table.nodes))


def enrol(federation: FederationId, nodes: Iterable[AllowedNode]) -> Allowlist:
    """Make an allow-list of nodes no two of which share a name or a key.

    Raises:
        InvalidInputError: two do, or more are witnesses than a checkpoint has room for.
    """
    listed: dict[NodeId, AllowedNode] = {}
    owner_of_key: dict[str, NodeId] = {}
    for node in nodes:
        if node.node_id in listed:
            raise InvalidInputError(f"the allow-list names {node.node_id} twice")
        listed[node.node_id] = node
        # The signing key too: one key for two uses would let one stand for the other.
        witness = () if node.witness_keyid is None else (node.witness_keyid,)
        for key in (*sorted(node.pins), node.signing_keyid, *witness):
            if key in owner_of_key:
                raise InvalidInputError(
                    f"{node.node_id} lists key {key}, which {owner_of_key[key]} lists already; "
                    "every node needs keys of its own, one for each use"
                )
            owner_of_key[key] = node.node_id
    witnesses = sum(node.witness_key is not None for node in listed.values())
    if witnesses > MAX_WITNESSES:
        raise InvalidInputError(
            f"the allow-list gives {witnesses} hospitals a witness_key, and a checkpoint has room "
            f"for {MAX_WITNESSES} cosignatures; leave it out of {witnesses - MAX_WITNESSES} of them"
        )
    return Allowlist(federation, listed)


def encode_allowlist(allowlist: Allowlist) -> bytes:
    """The allow-list as TOML that ``parse_allowlist`` reads back."""
    tables = [f'version = 1\nfederation = "{allowlist.federation}"\n']
    if not allowlist.nodes:
        tables.append("nodes = []\n")
    for node in allowlist.nodes.values():
        lines = [
            "[[nodes]]",
            f'node_id = "{node.node_id}"',
            f'role = "{node.role}"',
            f"pins = {json.dumps(sorted(node.pins))}",
            f"signing_key = '''\n{public_key_pem(node.signing_key).decode()}'''",
            f"enrolled_patients = {node.enrolled_patients}",
        ]
        if node.label_histogram is not None:
            lines.append(f"label_histogram = {list(node.label_histogram)}")
        if node.witness_key is not None:
            lines.append(f"witness_key = {json.dumps(node.witness_key.vkey)}")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables).encode()


def _witness_key(federation: FederationId, table: _NodeTable) -> VerifierKey | None:
    if table.witness_key is None:
        return None
    if Role(table.role) is not Role.PARTICIPANT:
        raise InvalidInputError(f"{table.node_id[:80]!r} has a witness_key; only participants may")
    key = parse_verifier_key(table.witness_key, COSIGNATURE_TYPES)
    wanted = witness_name(federation, parse_node_id(table.node_id))
    if key.name != wanted:
        raise InvalidInputError(
            f"the witness_key of {table.node_id[:80]!r} is named {key.name[:200]!r}, not {wanted!r}"
        )
    return key


def _allowed_node(federation: FederationId, table: _NodeTable) -> AllowedNode:
    pins = frozenset(parse_digest(pin) for pin in table.pins)
    if len(pins) != len(table.pins):
        raise InvalidInputError(f"the allow-list repeats a pin of {table.node_id[:80]!r}")
    if Role(table.role) is Role.PARTICIPANT and table.enrolled_patients < 1:
        raise InvalidInputError(
            f"{table.node_id[:80]!r} is a participant without enrolled_patients, which weigh it"
        )
    histogram = table.label_histogram
    return AllowedNode(
        node_id=parse_node_id(table.node_id),
        role=Role(table.role),
        pins=pins,
        signing_key=parse_public_key(table.signing_key.encode()),
        enrolled_patients=table.enrolled_patients,
        label_histogram=None if histogram is None else tuple(histogram),
        witness_key=_witness_key(federation, table),
    )
