"""The folder of the coordinator's operator: who gets in, stays in, and never comes back."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.enrolling import Answer, Request, make_request, parse_request
from matl_common.identity.federation_folder import Facts, FederationFolder
from matl_common.identity.installing import install
from matl_common.identity.keys import (
    load_private_key,
    parse_public_key,
    permission_warning,
    spki_pin,
)
from matl_common.identity.node_folder import (
    NodeFolder,
    keys_in,
    make_keys_anew,
    make_missing_keys,
    write_private_key,
)
from matl_common.ids import FederationId, NodeId

pytestmark = pytest.mark.certificates
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FEDERATION = FederationId("dr-study")
COORDINATOR = SpiffeId(FEDERATION, Role.COORDINATOR, NodeId("coordinator"))
B, C = NodeId("hospital_b"), NodeId("hospital_c")


@pytest.fixture
def federation(tmp_path: Path) -> FederationFolder:
    return FederationFolder.found(tmp_path / "federation", COORDINATOR, now=NOW)


def request_of(folder: Path, node: NodeId, *, new_key: bool = False) -> Request:
    name = SpiffeId(FEDERATION, Role.PARTICIPANT, node)
    mine = NodeFolder(folder / node)
    make_missing_keys(mine, name.role)
    if new_key:
        write_private_key(mine.next_tls_key)
    return parse_request(make_request(name, keys_in(mine, name, next_tls_key=new_key)))


def request_with_new_keys(folder: Path, node: NodeId) -> Request:
    name = SpiffeId(FEDERATION, Role.PARTICIPANT, node)
    make_keys_anew(NodeFolder(folder / node), name.role)
    return parse_request(make_request(name, keys_in(NodeFolder(folder / node).next, name)))


def enrol(federation: FederationFolder, folder: Path, node: NodeId) -> Answer:
    return federation.approve(request_of(folder, node), Facts(100), now=NOW)


def test_every_private_key_is_its_owners_alone(
    federation: FederationFolder, tmp_path: Path
) -> None:
    enrol(federation, tmp_path, B)
    keys = list(tmp_path.rglob("*.key"))
    assert len(keys) == 2 + 3 + 3
    assert not [path for path in keys if permission_warning(path)]
    assert not list((federation.folder / B).glob("*"))


def test_approving_leaves_the_other_entries_as_they_are(
    federation: FederationFolder, tmp_path: Path
) -> None:
    enrol(federation, tmp_path, B)
    before = federation.allowlist().nodes[B]
    enrol(federation, tmp_path, C)
    assert federation.allowlist().nodes[B] == before
    assert set(federation.allowlist().nodes) == {B, C}


def test_a_new_key_is_listed_beside_the_old_until_that_is_revoked(
    federation: FederationFolder, tmp_path: Path
) -> None:
    first = enrol(federation, tmp_path, B)
    mine = NodeFolder(tmp_path / B)
    install(mine, first, now=NOW)
    second = federation.approve(request_of(tmp_path, B, new_key=True), Facts(), now=NOW)
    assert federation.allowlist().nodes[B].pins == {first.node.pin, second.node.pin}
    assert federation.allowlist().nodes[B].enrolled_patients == 100
    install(mine, second, now=NOW)
    assert spki_pin(load_private_key(mine.tls.private_key)) == second.node.pin
    assert not mine.next_tls_key.exists()
    federation.revoke(B, pin=first.node.pin, reason="replaced", now=NOW)
    assert federation.allowlist().nodes[B].pins == {second.node.pin}
    with pytest.raises(ConfigurationError, match="only pin"):
        federation.revoke(B, pin=second.node.pin, reason="lost", now=NOW)


@pytest.mark.parametrize("node", [B, C])
@pytest.mark.parametrize(
    ("stolen", "use"),
    [("tls.key", "TLS key"), ("signing.key", "signing key"), ("witness.key", "witness key")],
)
def test_no_key_of_a_revoked_node_is_enrolled_again_under_any_name(
    federation: FederationFolder, tmp_path: Path, stolen: str, use: str, node: NodeId
) -> None:
    enrol(federation, tmp_path, B)
    federation.revoke(B, reason="laptop stolen", now=NOW)
    thief = tmp_path / "thief"
    (thief / node).mkdir(parents=True)
    (tmp_path / B / stolen).rename(thief / node / stolen)
    said = rf"^{use} [0-9a-f]{{16}} was revoked on 2026-01-01 with hospital_b \(laptop stolen\); a"
    with pytest.raises(ConfigurationError, match=said):
        enrol(federation, thief, node)
    assert not federation.allowlist().nodes


def test_a_revoked_signing_key_is_enrolled_for_no_other_use(
    federation: FederationFolder, tmp_path: Path
) -> None:
    enrol(federation, tmp_path, B)
    federation.revoke(B, reason="laptop stolen", now=NOW)
    (tmp_path / C).mkdir()
    (tmp_path / B / "signing.key").rename(tmp_path / C / "tls.key")
    with pytest.raises(ConfigurationError, match=r"^TLS key .* with hospital_b"):
        enrol(federation, tmp_path, C)


def test_a_revoked_node_comes_back_with_new_keys_alone(
    federation: FederationFolder, tmp_path: Path
) -> None:
    enrol(federation, tmp_path, B)
    enrol(federation, tmp_path, C)
    federation.revoke(B, reason="laptop stolen", now=NOW)
    assert set(federation.allowlist().nodes) == {C}
    with pytest.raises(ConfigurationError, match=r"TLS key.*; signing key.*; witness key"):
        enrol(federation, tmp_path, B)
    with pytest.raises(ConfigurationError, match=r"^signing key"):
        federation.approve(request_of(tmp_path, B, new_key=True), Facts(100), now=NOW)
    with pytest.raises(ConfigurationError, match="not enrolled"):
        federation.revoke(B, reason="again", now=NOW)
    answer = federation.approve(request_with_new_keys(tmp_path, B), Facts(100), now=NOW)
    assert set(federation.allowlist().nodes) == {B, C}
    mine = NodeFolder(tmp_path / B)
    install(mine, answer, now=NOW)
    # The key that was made before the theft is gone with those it was to follow.
    assert {each.name for each in mine.folder.glob("*.key")} == {
        "tls.key",
        "signing.key",
        "witness.key",
    }
    name = SpiffeId(FEDERATION, Role.PARTICIPANT, B)
    again = parse_request(make_request(name, keys_in(mine, name)))
    enrolled = federation.allowlist().nodes[B]
    assert set(again.keyids.values()) == {
        *enrolled.pins,
        enrolled.signing_keyid,
        enrolled.witness_keyid,
    }
    assert spki_pin(parse_public_key(mine.signing_public_key.read_bytes())) == (
        enrolled.signing_keyid
    )


def test_new_keys_whose_installation_was_cut_short_are_installed_by_the_next(
    federation: FederationFolder, tmp_path: Path
) -> None:
    mine = NodeFolder(tmp_path / B)
    install(mine, enrol(federation, tmp_path, B), now=NOW)
    request = request_with_new_keys(tmp_path, B)
    answer = federation.approve(request, Facts(), now=NOW, replace_keys=True)
    mine.next.signing_key.replace(mine.signing_key)
    install(mine, answer, now=NOW)
    assert spki_pin(load_private_key(mine.signing_key)) == spki_pin(request.signing_key)
    assert spki_pin(load_private_key(mine.tls.private_key)) == answer.node.pin


def test_each_request_with_new_keys_makes_them_again(
    federation: FederationFolder, tmp_path: Path
) -> None:
    install(NodeFolder(tmp_path / B), enrol(federation, tmp_path, B), now=NOW)
    first, second = (request_with_new_keys(tmp_path, B) for _ in range(2))
    assert not set(first.keyids.values()) & set(second.keyids.values())
    answer = federation.approve(first, Facts(), now=NOW, replace_keys=True)
    with pytest.raises(ConfigurationError, match="an earlier request"):
        install(NodeFolder(tmp_path / B), answer, now=NOW)


def test_what_was_revoked_before_signing_keys_were_remembered_stays_revoked(
    federation: FederationFolder, tmp_path: Path
) -> None:
    pin = enrol(federation, tmp_path, B).node.pin
    federation.revoke(B, reason="laptop stolen", now=NOW)
    file = federation.folder / "revoked.jsonl"
    line = {"at": NOW.isoformat(), "node": B, "pins": [pin], "whole": True, "reason": "lost"}
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigurationError, match=r"^TLS key [0-9a-f]+ [^;]* \(lost\); a revoked"):
        enrol(federation, tmp_path, B)
    federation.approve(request_of(tmp_path, B, new_key=True), Facts(100), now=NOW)
    federation.revoke(B, reason="laptop stolen", now=NOW)
    assert [each.signing_key is None for each in federation.revoked()] == [True, False]


def test_the_coordinators_own_key_is_not_one_that_was_revoked(
    federation: FederationFolder, tmp_path: Path
) -> None:
    enrol(federation, tmp_path, B)
    federation.revoke(B, reason="laptop stolen", now=NOW)
    (tmp_path / B / "tls.key").rename(federation.coordinator.tls.private_key)
    with pytest.raises(ConfigurationError, match="laptop stolen"):
        federation.renew(now=NOW)


def test_who_approves_and_who_revokes_at_once_undo_nothing_of_each_other(
    federation: FederationFolder, tmp_path: Path
) -> None:
    enrol(federation, tmp_path, B)
    request = request_of(tmp_path, C)
    for number in range(10):
        folder = FederationFolder(federation.folder)
        with ThreadPoolExecutor() as pool:
            revoking = pool.submit(federation.revoke, B, reason=f"stolen {number}", now=NOW)
            approving = pool.submit(folder.approve, request, Facts(100), now=NOW)
            revoking.result()
            approving.result()
        assert set(federation.allowlist().nodes) == {C}
        again = request_with_new_keys(tmp_path, B)
        install(NodeFolder(tmp_path / B), federation.approve(again, Facts(100), now=NOW), now=NOW)


def test_other_signing_keys_need_to_be_meant(federation: FederationFolder, tmp_path: Path) -> None:
    enrol(federation, tmp_path, B)
    (tmp_path / B / "signing.key").unlink()
    again = request_of(tmp_path, B)
    with pytest.raises(ConfigurationError, match="signing_key"):
        federation.approve(again, Facts(), now=NOW)
    federation.approve(again, Facts(), now=NOW, replace_keys=True)
    assert federation.allowlist().nodes[B].signing_key == again.signing_key


def test_a_signing_or_witness_key_that_was_replaced_does_not_come_back(
    federation: FederationFolder, tmp_path: Path
) -> None:
    enrol(federation, tmp_path, B)
    before = request_of(tmp_path, B)
    new = request_with_new_keys(tmp_path, B)
    federation.approve(new, Facts(), now=NOW, replace_keys=True)
    (record,) = federation.revoked()
    assert record.keyids == {before.keyids["signing key"], before.keyids["witness key"]}
    with pytest.raises(ConfigurationError, match=r"^signing key .* \(replaced\); witness key"):
        federation.approve(before, Facts(), now=NOW, replace_keys=True)


def test_a_witness_key_that_was_left_out_may_come_back(
    federation: FederationFolder, tmp_path: Path
) -> None:
    enrol(federation, tmp_path, B)
    whole = request_of(tmp_path, B)
    without = replace(whole, witness_key=None)
    federation.approve(without, Facts(), now=NOW, replace_keys=True)
    federation.approve(whole, Facts(), now=NOW, replace_keys=True)
    assert federation.allowlist().nodes[B].witness_key == whole.witness_key
    assert federation.revoked() == ()


def test_a_request_for_another_federation_or_without_patients_is_refused(
    federation: FederationFolder, tmp_path: Path
) -> None:
    name = SpiffeId(FederationId("other"), Role.PARTICIPANT, B)
    make_missing_keys(NodeFolder(tmp_path / B), name.role)
    foreign = parse_request(make_request(name, keys_in(NodeFolder(tmp_path / B), name)))
    with pytest.raises(ConfigurationError, match="federation other"):
        federation.approve(foreign, Facts(100), now=NOW)
    with pytest.raises(ConfigurationError, match="--patients"):
        federation.approve(request_of(tmp_path, C), Facts(), now=NOW)
    assert not federation.allowlist().nodes


def test_an_answer_is_refused_by_a_folder_without_its_key(
    federation: FederationFolder, tmp_path: Path
) -> None:
    answer = enrol(federation, tmp_path, B)
    request_of(tmp_path, C)
    with pytest.raises(ConfigurationError, match=r"no tls\.key"):
        install(NodeFolder(tmp_path / C), answer, now=NOW)
    with pytest.raises(ConfigurationError, match="clock"):
        install(NodeFolder(tmp_path / B), answer, now=NOW + timedelta(days=366))
    assert not (tmp_path / B / "tls.crt").exists()


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    federation = FederationFolder.found(
        tmp_path / "f", COORDINATOR, now=NOW, authority_validity=timedelta(days=10)
    )
    answer = enrol(federation, tmp_path, B)
    assert answer.node.not_after == NOW + timedelta(days=10)
    with pytest.raises(ConfigurationError, match="expired"):
        federation.approve(request_of(tmp_path, C), Facts(100), now=NOW + timedelta(days=11))


def test_the_coordinators_certificate_is_renewed_with_its_names(tmp_path: Path) -> None:
    federation = FederationFolder.found(
        tmp_path / "f", COORDINATOR, now=NOW, server_names=("matl.example.org", "192.0.2.1")
    )
    old = spki_pin(load_private_key(federation.coordinator.tls.private_key))
    later = NOW + timedelta(days=300)
    same = federation.renew(now=later)
    assert spki_pin(same) == old
    assert same.not_valid_after_utc == later + timedelta(days=365)
    new = federation.renew(now=later, new_key=True)
    assert (
        spki_pin(load_private_key(federation.coordinator.tls.private_key)) == spki_pin(new) != old
    )
    assert "matl.example.org" in str(new.extensions)
    assert "192.0.2.1" in str(new.extensions)


def test_a_folder_in_use_is_not_founded_over(federation: FederationFolder) -> None:
    with pytest.raises(ConfigurationError, match="not empty"):
        FederationFolder.found(federation.folder, COORDINATOR, now=NOW)
    with pytest.raises(ConfigurationError, match="pki init"):
        FederationFolder(federation.folder / "coordinator")
