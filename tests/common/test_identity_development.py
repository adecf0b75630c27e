"""Development keys: whole, marked and never overwritten."""

import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import MAX_WITNESSES, load_allowlist
from matl_common.identity.certificates import Role, parse_peer_certificate
from matl_common.identity.development import (
    MARKER,
    DevelopmentFederation,
    Enrolment,
    create_development_keys,
)
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import parse_public_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import FederationId, NodeId
from matl_common.signing import sign, verify

pytestmark = pytest.mark.certificates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C, OPERATOR = (NodeId(name) for name in ("coordinator", "hospital_b", "hospital_c", "ops"))
WANTED = DevelopmentFederation(
    federation=FederationId("dr-study"),
    coordinator=A,
    participants={B: Enrolment(1000, (600, 200, 100, 50, 50)), C: Enrolment(500)},
    operators=(OPERATOR,),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("development") / "keys"
    create_development_keys(folder, WANTED, now=NOW)
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_node_is_enrolled_with_the_keys_it_holds(folder: Path) -> None:
    allowlist = load_allowlist(NodeFolder(folder / A).allowlist)
    roles = {B: Role.PARTICIPANT, C: Role.PARTICIPANT, OPERATOR: Role.OPERATOR}
    for node, role in roles.items():
        files = NodeFolder(folder / node)
        peer = parse_peer_certificate(files.tls.certificate_chain.read_bytes())
        allowed = allowlist.authenticate(peer, now=NOW)
        assert allowed == allowlist.lookup(node)
        assert peer.role is role
        enrolled = allowlist.lookup(node)
        assert enrolled is not None
        signer = load_p256_key(files.signing_key)
        assert verify(sign("text/x", b"x", signer), enrolled.signing_key, "text/x") == b"x"
    assert allowlist.lookup(A) is None


def test_the_enrolled_numbers_are_the_operators(folder: Path) -> None:
    allowlist = load_allowlist(NodeFolder(folder / A).allowlist)
    nodes = [allowlist.nodes[node] for node in (B, C, OPERATOR)]
    assert [node.enrolled_patients for node in nodes] == [1000, 500, 0]
    assert [node.label_histogram for node in nodes] == [(600, 200, 100, 50, 50), None, None]


def test_only_as_many_hospitals_witness_as_a_checkpoint_has_room_for(tmp_path: Path) -> None:
    names = [NodeId(f"hospital_{number:03d}") for number in range(MAX_WITNESSES + 2)]
    wanted = replace(WANTED, participants=dict.fromkeys(names, Enrolment(10)))
    nodes = create_development_keys(tmp_path / "keys", wanted, now=NOW)
    enrolled = load_allowlist(nodes[A].allowlist).nodes
    witnesses = [node for node in names if enrolled[node].witness_key is not None]
    assert witnesses == names[:MAX_WITNESSES]
    assert [node for node in names if nodes[node].witness_key.exists()] == witnesses


def test_the_two_sides_trust_each_others_authority_and_not_their_own(folder: Path) -> None:
    authorities = {
        side: (folder / f"{side}-ca.crt").read_bytes() for side in ("coordinator", "participant")
    }
    assert NodeFolder(folder / A).tls.trusted_authority.read_bytes() == authorities["participant"]
    assert NodeFolder(folder / B).tls.trusted_authority.read_bytes() == authorities["coordinator"]
    for node, side in ((A, "coordinator"), (B, "participant"), (OPERATOR, "participant")):
        issuer = x509.load_pem_x509_certificate(authorities[side])
        leaf = x509.load_pem_x509_certificate(
            NodeFolder(folder / node).tls.certificate_chain.read_bytes()
        )
        leaf.verify_directly_issued_by(issuer)
    assert authorities["coordinator"] != authorities["participant"]


def test_participants_can_verify_the_coordinators_envelopes_and_checkpoints(folder: Path) -> None:
    coordinator, participant = NodeFolder(folder / A), NodeFolder(folder / B)
    envelope = sign("text/x", b"start", load_p256_key(coordinator.signing_key))
    trusted = parse_public_key(participant.coordinator_signing_key.read_bytes())
    assert verify(envelope, trusted, "text/x") == b"start"


def test_private_keys_are_readable_by_their_owner_alone(folder: Path) -> None:
    keys = list(folder.rglob("*.key"))
    assert len(keys) == 2 + 4 * 2 + 1 + 2
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key


def test_the_folder_says_that_its_keys_are_for_development(folder: Path) -> None:
    assert "development keys" in (folder / MARKER).read_text()
    authority = x509.load_pem_x509_certificate((folder / "coordinator-ca.crt").read_bytes())
    assert "development keys" in authority.subject.rfc4514_string()
    assert authority.public_bytes(Encoding.PEM) == (folder / "coordinator-ca.crt").read_bytes()


def test_asking_again_changes_nothing(folder: Path) -> None:
    before = content(folder)
    nodes = create_development_keys(folder, WANTED, now=NOW + timedelta(days=1))
    assert list(nodes) == [A, B, C, OPERATOR]
    assert nodes[B].folder == folder / B
    assert content(folder) == before


def test_keys_of_another_federation_are_not_overwritten(folder: Path) -> None:
    before = content(folder)
    for change in ({"coordinator": NodeId("x")}, {"participants": {B: Enrolment(1)}}):
        with pytest.raises(ConfigurationError, match="another federation"):
            create_development_keys(folder, replace(WANTED, **change), now=NOW)
    assert content(folder) == before


def test_expired_keys_say_what_to_delete(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="delete the folder"):
        create_development_keys(folder, WANTED, now=NOW + timedelta(days=30))


def test_a_folder_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds no development keys"):
        create_development_keys(tmp_path, WANTED, now=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_creation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    too_old = datetime(1900, 1, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="1950"):
        create_development_keys(tmp_path / "keys", WANTED, now=too_old)
    assert list(tmp_path.iterdir()) == []


def test_two_nodes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="share a name"):
        create_development_keys(tmp_path / "keys", replace(WANTED, operators=(B,)), now=NOW)
