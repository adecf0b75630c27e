"""Attestation between real processes. No such hardware is at hand, so all of it is SIMULATED."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from matl_common.attestation.simulated import MEASUREMENT
from tests.system.federation import HOSPITALS, Federation, Material, found_federation, logged_events
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
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_attested_SIMULATED")
    coordinator.wait_for("coordinator_ready")
    with federation.operator() as operator:
        assert "MODE2 (SIMULATED attestation, proves nothing)" in operator.status().claim
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
    attestation = started["attestation"]
    assert isinstance(attestation, dict)
    assert (attestation["technology"], attestation["simulated"]) == ("SIMULATED", True)
    shown = of(events, "evidence_shown")
    assert {each["node"] for each in shown} == set(HOSPITALS)
    assert all(each["simulated"] and each["technology"] == "SIMULATED" for each in shown)
    assert {each["config_digest"] for each in shown} == {started["config_digest"]}


@pytest.mark.parametrize("compliance", ["hipaa", "none"])
def test_a_coordinator_that_is_not_what_it_is_configured_as_does_not_start(
    tmp_path: Path, material: Material, running: ExitStack, compliance: str
) -> None:
    federation = attested(found_federation(tmp_path, material), compliance=compliance)
    if compliance == "none":
        genuine = {"attester": "sev-guest", "policy": str(tmp_path / "genuine.toml")}
        federation = replace(federation, sections={"attestation": genuine})
    coordinator = running.enter_context(federation.start_coordinator())
    assert coordinator.wait() == 2
    why = "SIMULATED proves nothing" if compliance == "hipaa" else "configured as attested (MODE2)"
    assert why in coordinator.output
