"""Hospitals as witnesses of a real coordinator: quorums, forks, and a database that went back."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from matl.cli import app
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.tls import channel_credentials, channel_options
from matl_common.ids import NodeId, RoundId
from matl_common.log_evidence import Kind, LogEvidence, Weight, check_evidence, parse_evidence
from matl_common.tlog.checkpoint import open_checkpoint
from matl_common.tlog.note import VerifierKey, parse_verifier_key
from matl_common.tlog.policy import Policy, assess, open_witnessed
from matl_common.tlog.proof import parse_proof
from matl_common.tlog.submission import Proven, open_submission_proof
from matl_common.wire import audit_pb2 as pb
from matl_common.wire.audit_pb2_grpc import AuditServiceStub
from matl_coordinator.service.checkpoints import witness_policy
from matl_participant.files import StateFolder
from tests.postgres import free_port
from tests.system.federation import (
    COORDINATOR,
    COORDINATOR_NAME,
    HOSPITALS,
    OPERATOR,
    STUDY,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.processes import Daemon
from tests.system.story import finish, of, start_hospitals, wait_for_the_end

pytestmark = pytest.mark.system
A, B, C = HOSPITALS


def policy_of(federation: Federation) -> Policy:
    """As anyone can write it down who has the enrolment."""
    allowlist = load_allowlist(federation.keys[COORDINATOR].allowlist)
    return witness_policy(allowlist, log_key_of(federation), f=1)


def log_key_of(federation: Federation) -> VerifierKey:
    return parse_verifier_key(federation.keys[A].log_verifier_key.read_text().strip())


def newest_checkpoint(federation: Federation) -> bytes:
    """The note that the coordinator offers now."""
    channel = grpc.secure_channel(
        federation.address,
        channel_credentials(federation.keys[OPERATOR].tls),
        options=channel_options(COORDINATOR_NAME),
    )
    with channel:
        answer = AuditServiceStub(channel).GetCheckpoint(pb.GetCheckpointRequest(), timeout=60)
    return bytes(answer.note)


def proven(federation: Federation, node: NodeId, number: int, policy: Policy) -> Proven:
    """What a hospital's stored proof of its update proves, to somebody without a connection."""
    study = StateFolder(federation.folder / node).study_as_it_is(STUDY)
    proof = parse_proof(study.proof(RoundId(number)).read_bytes())
    return open_submission_proof(proof, policy)


def evidence_of(federation: Federation, node: NodeId) -> tuple[Path, LogEvidence]:
    (file,) = (federation.folder / node / "log-evidence").glob("*.json")
    return file, parse_evidence(file.read_bytes())


def check_as_third_party(federation: Federation, file: Path) -> int:
    """The exit status of the command, which has the evidence and a public key."""
    key = federation.keys[A].log_verifier_key
    return (
        CliRunner().invoke(app, ["audit", "evidence", str(file), "--log-key", str(key)]).exit_code
    )


def test_hospitals_cosign_the_whole_study_until_a_quorum_and_prove_their_updates(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material)
    policy = policy_of(federation)
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    hospitals = start_hospitals(federation, running)
    wait_for_the_end(federation)
    leave(hospitals)
    # That the last model was published is on record too, perhaps after everybody had left.
    coordinator.wait_for("model_published", round=2)
    leave(start_hospitals(federation, running))
    signed = open_witnessed(newest_checkpoint(federation), policy)
    assert sorted(assess(signed, policy).cosigned) == sorted(HOSPITALS)
    # Whoever comes back has its proofs completed by the others' cosignatures.
    for node in HOSPITALS:
        again = running.enter_context(federation.start_scripted(node))
        assert again.wait() == 0, again.output[-3000:]
        assert again.events("participant.log_lacks_update") == []
        for number in (1, 2):
            found = proven(federation, node, number, policy)
            assert (found.facts["node"], found.facts["round"]) == (node, number)
    finish(federation, coordinator, {})
    events = logged_events(federation)
    last = max(index for index, each in enumerate(events) if each["event"] == "model_released")
    assert signed.checkpoint.size > last
    admitted = {
        (each["node"], each["round"]): each["update"] for each in of(events, "update_admitted")
    }
    assert proven(federation, A, 2, policy).facts["update"] == admitted[A, 2]


def leave(hospitals: dict[NodeId, Daemon]) -> None:
    """Wait until each has cosigned what there is, and ended by itself."""
    for hospital in hospitals.values():
        assert hospital.wait() == 0, hospital.output[-3000:]


def restarted(federation: Federation, running: ExitStack) -> Daemon:
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    return coordinator


def cosign_once(
    federation: Federation, node: NodeId, running: ExitStack, *, address: str = ""
) -> int:
    """Let a hospital cosign what the coordinator has; returns the size."""
    hospital = running.enter_context(federation.start_scripted(node, address=address))
    size = hospital.wait_for("participant.log_cosigned")["size"]
    assert hospital.drain() == 0, hospital.output[-3000:]
    return int(size)


@pytest.mark.hostile
def test_two_histories_shown_to_two_hospitals_are_proven_once_one_sees_both(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material)
    coordinator = restarted(federation, running)
    common = {cosign_once(federation, node, running) for node in (A, B)}
    assert coordinator.drain() == 0
    # The same keys on a copied database.
    forked = replace(
        federation, folder=tmp_path / "forked", port=free_port(), metrics_port=free_port()
    )
    shutil.copytree(federation.coordinator_state, forked.coordinator_state)
    one, other = restarted(federation, running), restarted(forked, running)
    size = cosign_once(federation, A, running)
    assert size > max(common)
    # Each hospital for itself sees a sound log.
    assert cosign_once(federation, B, running, address=forked.address) == size
    hospital = running.enter_context(federation.start_scripted(A, address=forked.address))
    assert hospital.wait() == 3
    hospital.wait_for("participant.log_forked")
    file, found = evidence_of(federation, A)
    assert found.kind is Kind.FORK
    assert check_evidence(found, log_key=log_key_of(federation)).weight is Weight.PROVEN
    assert check_as_third_party(federation, file) == 0
    # The two last checkpoints, laid side by side, prove it as well.
    last = [federation.folder / node / "log-checkpoint.txt" for node in (A, B)]
    notes = tuple(
        open_checkpoint(each.read_bytes(), [log_key_of(federation)]).note for each in last
    )
    side_by_side = LogEvidence(Kind.FORK, "compared", C, datetime.now(UTC), notes)
    assert check_evidence(side_by_side, log_key=log_key_of(federation)).weight is Weight.PROVEN
    # It stays stopped, at its honest coordinator, too, until somebody has dealt with it.
    again = running.enter_context(federation.start_scripted(A))
    assert again.wait() == 3
    assert again.events("participant.connected") == []
    settled = file.parent / "settled"
    settled.mkdir()
    file.rename(settled / file.name)
    assert cosign_once(federation, A, running) >= size
    assert (one.drain(), other.drain()) == (0, 0)


@pytest.mark.hostile
def test_a_database_restored_with_all_traces_removed_is_noticed_by_its_witnesses(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material)
    database = federation.coordinator_state / "coordinator.db"
    assert restarted(federation, running).drain() == 0
    shutil.copyfile(database, tmp_path / "yesterday.db")
    coordinator = restarted(federation, running)
    with federation.operator() as operator:
        operator.pause("so that the log grows")
        operator.resume("again")
    size = cosign_once(federation, A, running)
    assert coordinator.drain() == 0
    shutil.copyfile(tmp_path / "yesterday.db", database)
    (federation.coordinator_state / "log-checkpoint.txt").unlink()
    coordinator = restarted(federation, running)
    hospital = running.enter_context(federation.start_scripted(A))
    assert hospital.wait() == 3
    hospital.wait_for("participant.log_rolled_back")
    file, found = evidence_of(federation, A)
    assert found.kind is Kind.ROLLBACK
    assert f"from {size} leaves back to" in found.why
    assert check_as_third_party(federation, file) == 3
    assert coordinator.drain() == 0
