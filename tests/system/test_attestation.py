"""Attestation between real processes. No such hardware is at hand, so all of it is SIMULATED."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.attestation.simulated import MEASUREMENT
from matl_common.identity.development import LOOPBACK_NAMES
from matl_common.identity.ephemeral import create_node_authority
from matl_common.identity.held_keys import KeyKind, generate_key
from tests.system.federation import (
    COORDINATOR,
    COORDINATOR_NAME,
    HOSPITALS,
    OPERATOR,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.story import charges, finish, of

pytestmark = [pytest.mark.system, pytest.mark.attestation]
A, B, C = HOSPITALS


def attested(federation: Federation, *, compliance: str = "none") -> Federation:
    """The same federation with a SIMULATED attester, and policies in its folder."""
    for name, is_allowed in (("development", "true"), ("genuine", "false")):
        (federation.folder / f"{name}.toml").write_text(
            f'allow_simulated = {is_allowed}\n[sev_snp]\nmeasurements = ["{MEASUREMENT}"]\n'
            "minimum_tcb = {}\n"
        )
    attestation = {"attester": "SIMULATED", "policy": str(federation.folder / "development.toml")}
    return replace(
        federation, log={"compliance": compliance}, sections={"attestation": attestation}
    )


def test_simulated_evidence_is_accepted_where_it_is_asked_for_and_nowhere_else(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    two = {"quorum": 2, "minimum_participants": 2, "maximum_participants": 2}
    federation = attested(found_federation(tmp_path, material, study={"rounds": 1}, rounds=two))
    with_own_authority(federation)
    coordinator = running.enter_context(federation.start_coordinator())
    held = coordinator.wait_for("key", use="tls_key")["holder"]
    assert str(held).startswith("ephemeral TLS key")
    coordinator.wait_for("coordinator_attested_SIMULATED")
    coordinator.wait_for("coordinator_ready")
    with federation.operator() as operator:
        status = operator.status()
    assert "MODE2 (SIMULATED attestation, proves nothing)" in status.claim
    assert status.mode == "mode2-SIMULATED"
    strict = running.enter_context(federation.start_scripted(C, policy="genuine"))
    refused = strict.wait_for("participant.retrying", action="attest")
    assert "is SIMULATED: software signed it, and it proves nothing" in refused["error"]
    hospitals = {
        node: running.enter_context(federation.start_scripted(node, policy="development"))
        for node in (A, B)
    }
    for hospital in hospitals.values():
        hospital.wait_for("participant.coordinator_attested_SIMULATED")
    finish(federation, coordinator, hospitals)
    assert federation.trainings(C) == []
    assert charges(federation, C) == []
    strict.kill()
    events = logged_events(federation)
    (started,) = of(events, "coordinator_started")
    assert started["mode"] == "mode2-SIMULATED"
    attestation = started["attestation"]
    assert isinstance(attestation, dict)
    assert (attestation["technology"], attestation["simulated"]) == ("SIMULATED", True)
    shown = of(events, "evidence_shown")
    assert {each["node"] for each in shown} == set(HOSPITALS)
    assert all(each["simulated"] and each["technology"] == "SIMULATED" for each in shown)
    assert {each["config_digest"] for each in shown} == {started["config_digest"]}


def with_own_authority(federation: Federation) -> None:
    """Have the coordinator certify TLS keys in its memory, and everybody else trust that."""
    authority = federation.keys[COORDINATOR].folder / "node.key"
    generate_key(authority, KeyKind.P256)
    now = datetime.now(UTC)
    certificate = create_node_authority(
        authority,
        COORDINATOR_NAME,
        not_before=now - timedelta(minutes=5),
        not_after=now + timedelta(days=30),
        server_names=LOOPBACK_NAMES,
    )
    path = authority.with_suffix(".crt")
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    federation.identities[COORDINATOR] = {"tls_key": str(authority), "tls_certificate": str(path)}
    for node in (*HOSPITALS, OPERATOR):
        federation.keys[node].tls.trusted_authority.write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("attester", "compliance", "tls_key", "why"),
    [
        ("SIMULATED", "hipaa", "in a file", "SIMULATED proves nothing"),
        ("sev-guest", "hipaa", "in a file", "tls.key is a TLS key in a file"),
        ("configfs-tsm", "none", "in a file", "tls.key is a TLS key in a file"),
        ("sev-guest", "none", "in memory", "configured as attested (MODE2), and is not"),
    ],
)
def test_a_coordinator_that_is_not_what_it_is_configured_as_does_not_start(
    tmp_path: Path,
    material: Material,
    running: ExitStack,
    *,
    attester: str,
    compliance: str,
    tls_key: str,
    why: str,
) -> None:
    federation = attested(found_federation(tmp_path, material), compliance=compliance)
    policy = str(tmp_path / "genuine.toml")
    if attester == "SIMULATED":
        policy = str(tmp_path / "development.toml")
    attestation = {"attester": attester, "policy": policy}
    federation = replace(federation, sections={"attestation": attestation})
    if tls_key == "in memory":
        with_own_authority(federation)
    coordinator = running.enter_context(federation.start_coordinator())
    assert coordinator.wait() == 2
    assert why in coordinator.output
