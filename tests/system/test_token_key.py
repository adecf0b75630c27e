"""A coordinator whose log's key is in a PKCS#11 token."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from matl_common.identity.pkcs11.uri import PIN_VARIABLE
from matl_common.identity.pkcs11.wrapping import create_token_key
from tests.softhsm import PIN, TokenFolder
from tests.system.federation import Federation, Material, found_federation
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
