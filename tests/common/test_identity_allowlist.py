"""Who is enrolled, and who is refused and why."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.allowlist import (
    MAX_WITNESSES,
    AllowedNode,
    Allowlist,
    RefusalReason,
    encode_allowlist,
    enrol,
    load_allowlist,
    parse_allowlist,
)
from matl_common.identity.certificates import PeerCertificate, Role, SpiffeId
from matl_common.identity.keys import generate_private_key, public_key_pem
from matl_common.ids import FederationId, NodeId
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.cosignature import witness_key
from matl_common.tlog.names import witness_name
from matl_common.tlog.note import VerifierKey, parse_note

pytestmark = pytest.mark.certificates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FEDERATION = FederationId("dr-study")
A, B = NodeId("hospital_a"), NodeId("hospital_b")
PIN_A, PIN_A_NEXT, PIN_B = "a" * 64, "c" * 64, "b" * 64
SIGNING_A, SIGNING_B = (generate_private_key().public_key() for _ in range(2))

NODE_A = AllowedNode(
    A, Role.PARTICIPANT, frozenset({PIN_A, PIN_A_NEXT}), SIGNING_A, 1000, (500, 200, 200, 60, 40)
)
NODE_B = AllowedNode(B, Role.OPERATOR, frozenset({PIN_B}), SIGNING_B, 0)
ALLOWLIST = enrol(FEDERATION, [NODE_A, NODE_B])
PEER_A = PeerCertificate(
    SpiffeId(FEDERATION, Role.PARTICIPANT, A), PIN_A, serial=1, not_after=NOW + timedelta(days=1)
)
TOML = encode_allowlist(ALLOWLIST).decode()


@pytest.mark.parametrize("pin", [PIN_A, PIN_A_NEXT])
def test_a_node_is_known_by_any_of_its_pins(pin: str) -> None:
    assert ALLOWLIST.authenticate(replace(PEER_A, pin=pin), now=NOW) == NODE_A


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (
            replace(PEER_A, spiffe_id=SpiffeId(FEDERATION, Role.PARTICIPANT, NodeId("hospital_z"))),
            RefusalReason.UNLISTED,
        ),
        (
            replace(PEER_A, spiffe_id=SpiffeId(FederationId("other"), Role.PARTICIPANT, A)),
            RefusalReason.WRONG_FEDERATION,
        ),
        (
            replace(PEER_A, spiffe_id=SpiffeId(FEDERATION, Role.OPERATOR, A)),
            RefusalReason.WRONG_ROLE,
        ),
        (
            replace(PEER_A, spiffe_id=SpiffeId(FEDERATION, Role.COORDINATOR, A)),
            RefusalReason.WRONG_ROLE,
        ),
        (replace(PEER_A, pin=PIN_B), RefusalReason.PIN_MISMATCH),
        (replace(PEER_A, not_after=NOW), RefusalReason.EXPIRED),
    ],
)
def test_a_peer_is_refused_with_the_reason(peer: PeerCertificate, reason: RefusalReason) -> None:
    assert ALLOWLIST.authenticate(peer, now=NOW) is reason


def test_a_node_is_looked_up_by_its_name() -> None:
    assert ALLOWLIST.lookup(B) == NODE_B
    assert ALLOWLIST.lookup(NodeId("hospital_z")) is None


def test_an_allowlist_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "allowlist.toml").write_text(TOML)
    assert load_allowlist(tmp_path / "allowlist.toml") == ALLOWLIST


def test_a_missing_allowlist_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="check the path"):
        load_allowlist(tmp_path / "allowlist.toml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 2"),
        ("version = 1", "version = 1\nmore = 1"),
        ("enrolled_patients = 1000", "enrolled_patients = -1"),
        ("enrolled_patients = 1000", "enrolled_patients = 1.5"),
        ("enrolled_patients = 1000", "enrolled_patients = true"),
        ("enrolled_patients = 1000", 'enrolled_patients = "1000"'),
        ("enrolled_patients = 1000", "patients = 1000"),
        ("500, 200", "-1, 200"),
        ('role = "operator"', 'role = "coordinator"'),
        ('role = "operator"', 'role = "admin"'),
        (f'"{PIN_B}"', ""),
        (f'"{PIN_B}"', '"bb"'),
        (f'"{PIN_B}"', f'"{PIN_B}", "{PIN_B}"'),
        (f'"{PIN_B}"', f'"{PIN_A}"'),
        ("hospital_b", "hospital_a"),
        ("hospital_b", "Hospital B"),
        ('"dr-study"', '"DR"'),
        ("BEGIN PUBLIC KEY", "BEGIN PRIVATE KEY"),
        (public_key_pem(SIGNING_B).decode(), public_key_pem(SIGNING_A).decode()),
        ("[[nodes]]", "[nodes]"),
    ],
)
def test_an_allowlist_with_a_mistake_is_refused(old: str, new: str) -> None:
    assert old in TOML
    with pytest.raises(InvalidInputError):
        parse_allowlist(TOML.replace(old, new).encode())


@pytest.mark.parametrize("data", [b"\xff", b"= 1", b"", b"#" * ((1 << 20) + 1)])
def test_bytes_that_are_no_allowlist_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_allowlist(data)


def test_a_key_does_not_serve_both_tls_and_signing() -> None:
    node = replace(NODE_B, pins=frozenset({NODE_B.signing_keyid}))
    with pytest.raises(InvalidInputError, match="one for each use"):
        enrol(FEDERATION, [node])


def witness(private_key: Ed25519PrivateKey, node_id: NodeId = A) -> VerifierKey:
    return witness_key(witness_name(FEDERATION, node_id), private_key.public_key())


def test_a_hospitals_witness_key_is_read_back() -> None:
    node = replace(NODE_A, witness_key=witness(Ed25519PrivateKey.generate()))
    allowlist = enrol(FEDERATION, [node, NODE_B])
    assert parse_allowlist(encode_allowlist(allowlist)) == allowlist


def test_two_hospitals_do_not_share_a_witness_key() -> None:
    shared, other = Ed25519PrivateKey.generate(), NodeId("hospital_c")
    first = replace(NODE_A, witness_key=witness(shared))
    second = AllowedNode(
        other,
        Role.PARTICIPANT,
        frozenset({"d" * 64}),
        generate_private_key().public_key(),
        1,
        witness_key=witness(shared, other),
    )
    with pytest.raises(InvalidInputError, match="one for each use"):
        enrol(FEDERATION, [first, second])


def test_a_signing_key_is_no_witness_key() -> None:
    key = witness_key(witness_name(FEDERATION, A), SIGNING_A)
    with pytest.raises(InvalidInputError, match="one for each use"):
        enrol(FEDERATION, [replace(NODE_A, witness_key=key)])


@pytest.mark.parametrize(
    ("node", "key", "complaint"),
    [
        (NODE_A, witness(Ed25519PrivateKey.generate(), B), "is named"),
        (NODE_B, witness(Ed25519PrivateKey.generate(), B), "only participants"),
        (NODE_A, log_key("dr-study.matl.internal/log", SIGNING_B), "not of a type"),
    ],
)
def test_a_witness_key_of_another_is_refused(
    node: AllowedNode, key: VerifierKey, complaint: str
) -> None:
    encoded = encode_allowlist(enrol(FEDERATION, [replace(node, witness_key=key)]))
    with pytest.raises(InvalidInputError, match=complaint):
        parse_allowlist(encoded)


def witnesses(count: int) -> list[AllowedNode]:
    names = [NodeId(f"hospital_{number}") for number in range(count)]
    return [
        AllowedNode(
            name,
            Role.PARTICIPANT,
            frozenset({f"{number:064x}"}),
            generate_private_key().public_key(),
            1,
            witness_key=witness(Ed25519PrivateKey.generate(), name),
        )
        for number, name in enumerate(names)
    ]


def test_a_checkpoint_has_room_for_the_cosignature_of_every_witness() -> None:
    nodes = witnesses(MAX_WITNESSES + 1)
    lines = (f"\N{EM DASH} {name} AAAAAAAA\n" for name in ["log", *range(MAX_WITNESSES)])
    assert len(parse_note(b"text\n\n" + "".join(lines).encode()).signatures) == 1 + MAX_WITNESSES
    assert len(enrol(FEDERATION, nodes[:-1]).nodes) == MAX_WITNESSES
    encoded = encode_allowlist(Allowlist(FEDERATION, {each.node_id: each for each in nodes}))
    with pytest.raises(InvalidInputError, match="leave it out of 1 of them"):
        parse_allowlist(encoded)
    silent = replace(nodes[-1], witness_key=None)
    assert len(enrol(FEDERATION, [*nodes[:-1], silent]).nodes) == MAX_WITNESSES + 1
