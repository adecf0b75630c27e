"""A coordinator whose log's key is in a PKCS#11 token."""

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from matl.cli import app
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.enrolling import Keys, make_request, parse_request
from matl_common.identity.federation_folder import Facts, FederationFolder
from matl_common.identity.held_keys import (
    KeyKind,
    generate_key,
    load_ed25519_key,
    load_p256_key,
)
from matl_common.identity.node_folder import NodeFolder
from matl_common.identity.pkcs11.certifying import TokenPrivateKey
from matl_common.identity.pkcs11.signing import P256, TokenSigningKey
from matl_common.identity.pkcs11.uri import PIN_VARIABLE
from matl_common.identity.pkcs11.wrapping import create_token_key
from matl_common.ids import NodeId
from matl_common.tlog.cosignature import witness_key
from matl_common.tlog.names import witness_name
from matl_participant.core.account import AttemptState
from tests.softhsm import PIN, TokenFolder
from tests.system.federation import (
    COORDINATOR,
    FEDERATION,
    OPERATOR,
    PATIENTS,
    Federation,
    Material,
    Scalar,
    found_federation,
    logged_events,
)
from tests.system.processes import ROOT

pytestmark = [pytest.mark.system, pytest.mark.hsm]


@pytest.fixture
def federation(tmp_path: Path, material: Material, tokens: TokenFolder) -> Federation:
    create_token_key(tokens.uri("hsm"))
    log = {"encryption_key": tokens.uri_text("hsm")}
    return found_federation(tmp_path / "federation", material, log=log)


def audit(federation: Federation, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What an operator gets from ``matl audit`` on the coordinator's machine."""
    config = ("--coordinator-config", str(federation.coordinator_config))
    return subprocess.run(
        [sys.executable, "-c", "from matl.cli import app; app()", "audit", *arguments, *config],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_coordinator_logs_under_a_tokens_key_and_an_operator_reads_it(
    federation: Federation, running: ExitStack
) -> None:
    first = running.enter_context(federation.start_coordinator())
    told = first.wait_for("log_encryption_key")
    assert told["holder"].startswith("PKCS#11 token 'hsm' (SoftHSM v2")
    first.wait_for("coordinator_ready")
    assert PIN_VARIABLE in psutil.Process(first.pid).environ()
    assert first.workers()
    assert all(PIN_VARIABLE not in each.environ() for each in first.workers())
    first.kill()
    second = running.enter_context(federation.start_coordinator())
    second.wait_for("coordinator_ready")
    assert second.drain() == 0
    assert PIN not in first.output + second.output
    assert not (federation.coordinator_state / "log-encryption.key").exists()
    verified = audit(federation, "verify", "--json")
    assert verified.returncode == 0, verified.stderr
    report = json.loads(verified.stdout)
    assert report["opened"] == report["tally"]["size"]
    read = audit(federation, "decrypt", "--from", "0", "--to", "5", "--reason", "drill")
    assert read.returncode == 0, read.stderr
    events = [json.loads(line) for line in read.stdout.splitlines()]
    assert "study_founded" in [each["event"] for each in events]


def test_a_coordinator_without_its_token_or_pin_says_so_and_ends(
    federation: Federation,
    tokens: TokenFolder,
    running: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PIN_VARIABLE, f"not-{PIN}")
    refused = running.enter_context(federation.start_coordinator())
    told = refused.wait_for("configuration_does_not_work")
    assert "refuses the PIN" in told["reason"]
    # systemd does not start it again, which would lock the token.
    assert refused.wait() == 2
    assert PIN not in refused.output
    monkeypatch.setenv(PIN_VARIABLE, PIN)
    with tokens.taken_away():
        alone = running.enter_context(federation.start_coordinator())
        assert "is not there" in alone.wait_for("coordinator_failed")["reason"]
        assert alone.wait() == 1


def enrol_in_token(federation: Federation, tokens: TokenFolder, node: NodeId) -> None:
    """Give a hospital three new keys in the token, by a request that each of them signed."""
    spiffe_id = SpiffeId(FEDERATION, Role.PARTICIPANT, node)
    places = {use: tokens.uri("hsm", f"{node} {use}") for use in ("tls", "signing", "witness")}
    generate_key(places["tls"], KeyKind.P256)
    generate_key(places["signing"], KeyKind.P256)
    generate_key(places["witness"], KeyKind.ED25519)
    witness = load_ed25519_key(places["witness"])
    name = witness_key(witness_name(FEDERATION, node), witness.public_key)
    keys = Keys(
        tls=TokenPrivateKey(TokenSigningKey(places["tls"], P256)),
        signing=load_p256_key(places["signing"]),
        witness=(name, witness),
    )
    answer = FederationFolder(federation.keys[COORDINATOR].folder.parent).approve(
        parse_request(make_request(spiffe_id, keys)),
        Facts(PATIENTS),
        now=datetime.now(UTC),
        replace_keys=True,
    )
    chain = federation.folder / f"{node}.crt"
    chain.write_bytes(answer.certificate.public_bytes(Encoding.PEM))
    uses = {f"{use}_key": str(place) for use, place in places.items()}
    federation.identities[node] = {**uses, "tls_certificate": str(chain)}


def test_a_hospital_takes_part_with_three_keys_that_never_leave_its_token(
    tmp_path: Path, material: Material, tokens: TokenFolder, running: ExitStack
) -> None:
    federation = found_federation(tmp_path / "federation", material)
    node, *others = federation.hospitals
    enrol_in_token(federation, tokens, node)
    for use in (federation.keys[node].tls.private_key, federation.keys[node].signing_key):
        use.unlink()
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    ours = running.enter_context(federation.start_scripted(node))
    daemons = [running.enter_context(federation.start_scripted(each)) for each in others]
    uses = ("tls_key", "signing_key", "witness_key")
    holders = [ours.wait_for("participant.key", use=use)["holder"] for use in uses]
    assert all(each.startswith("PKCS#11 token 'hsm'") for each in holders)
    assert daemons[0].wait_for("participant.key")["holder"] == "software-held"
    for each in (ours, *daemons):
        assert each.wait() == 0
        assert PIN not in each.output
    # Its updates counted and its cosignatures stand in the log.
    states = [attempt.state for attempt in federation.account(node).attempts]
    assert states == [AttemptState.ACKNOWLEDGED] * 2
    assert list((federation.folder / node).rglob("*.tlog-proof"))


def test_one_key_for_tls_and_signing_is_refused_in_one_line(
    tmp_path: Path, material: Material, tokens: TokenFolder, running: ExitStack
) -> None:
    federation = found_federation(tmp_path / "federation", material)
    node = federation.hospitals[0]
    enrol_in_token(federation, tokens, node)
    mine = federation.identities[node]
    federation.identities[node] = {**mine, "signing_key": mine["tls_key"]}
    alone = running.enter_context(federation.start_participant(node))
    assert alone.wait() == 2
    assert "identity.tls_key and identity.signing_key are the same key" in alone.output


def matl(*arguments: str | Path) -> None:
    """Run a command as people type it."""
    finished = CliRunner().invoke(app, list(map(str, arguments)))
    assert finished.exit_code == 0, finished.output
    assert PIN not in finished.output


def found_in_token(folder: Path, material: Material, tokens: TokenFolder) -> Federation:
    """Found a federation whose coordinator has all its keys in the token, by commands alone."""
    uris = {use: tokens.uri_text("hsm", f"c {use}") for use in ("tls", "signing", "log")}
    for use, uri in uris.items():
        matl("keygen", uri, "--kind", "ed25519" if use == "log" else "p256")
    federation = found_federation(folder, material)
    operators = folder / "operators"
    named = [part for use, uri in uris.items() for part in (f"--{use}-key", uri)]
    matl("pki", "init", "--folder", operators, "--federation", FEDERATION, *named)
    assert not list((operators / COORDINATOR).glob("*.key"))
    keys = {COORDINATOR: NodeFolder(operators / COORDINATOR)}
    for node in (*federation.hospitals, OPERATOR):
        mine, request, answer = folder / f"{node} keys", folder / "request", folder / "answer"
        role = "operator" if node == OPERATOR else "participant"
        ask = ("--folder", mine, "--federation", FEDERATION, "--node", node, "--role", role)
        matl("pki", "request", *ask, "--out", request)
        facts = () if node == OPERATOR else ("--patients", PATIENTS)
        matl("pki", "approve", request, "--folder", operators, *facts, "--out", answer, "--yes")
        matl("pki", "install", answer, "--folder", mine, "--yes")
        keys[node] = NodeFolder(mine)
    identities: dict[NodeId, Mapping[str, Scalar]] = {
        COORDINATOR: {f"{use}_key": uri for use, uri in uris.items()}
    }
    return replace(federation, keys=keys, identities=identities)


def test_a_federation_is_founded_and_run_with_all_keys_of_its_coordinator_in_a_token(
    tmp_path: Path, material: Material, tokens: TokenFolder, running: ExitStack
) -> None:
    federation = found_in_token(tmp_path / "federation", material, tokens)
    coordinator = running.enter_context(federation.start_coordinator())
    uses = ("tls_key", "signing_key", "log_key")
    holders = {use: coordinator.wait_for("key", use=use)["holder"] for use in uses}
    assert holders["tls_key"].startswith("HSM-rooted, ephemeral TLS key: PKCS#11 token 'hsm'")
    assert holders["signing_key"].startswith("PKCS#11 token 'hsm'")
    assert holders["log_key"].startswith("PKCS#11 token 'hsm'")
    coordinator.wait_for("coordinator_ready")
    hospitals = [
        running.enter_context(federation.start_scripted(each)) for each in federation.hospitals
    ]
    for each in hospitals:
        assert each.wait() == 0
    with federation.operator() as operator:
        assert operator.status().rounds_released == 2
    assert coordinator.drain() == 0
    assert PIN not in coordinator.output
    started = [each for each in logged_events(federation) if each["event"] == "coordinator_started"]
    assert [each["tls_key_holder"] for each in started] == [holders["tls_key"]]
