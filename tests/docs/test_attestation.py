"""The policies and commands in the documentation of attestation do what it says."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from matl.cli import app
from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import Technology
from matl_common.attestation.policy import load_policy
from matl_common.attestation.simulated import MEASUREMENT, simulate
from matl_common.attestation.snp_chain import AMD_ROOTS
from matl_common.identity.tls import ServerIdentity, TlsFiles
from matl_common.ids import digest_of
from matl_coordinator.service.evidence_record import endorsements_facts, shown_facts

PAGE = (Path(__file__).parents[2] / "docs" / "attestation.md").read_text("utf-8")


def test_the_policy_to_try_it_with_accepts_what_simulation_shows(tmp_path: Path) -> None:
    (block,) = re.findall(r"To try it:\n\n((?:    .*\n)+)", PAGE)
    path = tmp_path / "attestation.toml"
    path.write_text(textwrap.dedent(block))
    policy = load_policy(path)
    assert Technology.SIMULATED in policy.technologies
    assert policy.sev_snp is not None
    assert policy.sev_snp.measurements == (MEASUREMENT,)


def test_the_policy_shown_is_one_once_its_measurements_are_filled_in(tmp_path: Path) -> None:
    (block,) = re.findall(r"may use the same file:\n\n((?:    .*\n|\n(?=    ))+)", PAGE)
    filled = textwrap.dedent(block).replace("<96 hexadecimal digits>", "ab" * 48)
    path = tmp_path / "attestation.toml"
    path.write_text(filled)
    assert load_policy(path).technologies == (Technology.SEV_SNP, Technology.TDX)


def test_the_commands_shown_make_an_authority_that_certifies_a_key_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"or in a file\.\n\n((?:    .*\n)+)", PAGE)
    for line in textwrap.dedent(block).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "matl"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    # Any certificate will do for the authority of participants.
    files = TlsFiles(Path("node.key"), Path("coordinator-ca.crt"), Path("coordinator-ca.crt"))
    identity = ServerIdentity(files, only_in_memory=True)
    identity.certificate.verify_directly_issued_by(identity.lasting)


def test_the_products_named_are_those_whose_roots_are_pinned() -> None:
    assert f"({', '.join(AMD_ROOTS.values())})" in PAGE


def test_the_auditors_program_comes_to_the_verdict_from_the_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (policy,) = re.findall(r"To try it:\n\n((?:    .*\n)+)", PAGE)
    (tmp_path / "attestation.toml").write_text(textwrap.dedent(policy))
    (program,) = re.findall(r"beside `attestation.toml`:\n\n((?:    .*\n|\n+(?=    ))+)", PAGE)
    at = datetime.now(UTC)
    binding = Binding(b"key", bytes(32), "dr-study", digest_of(b"configuration"))
    evidence = simulate(at).evidence(binding.report_data)
    for file, facts in (
        ("shown", {**shown_facts(evidence, binding), "node": "hospital_a"}),
        ("endorsements", endorsements_facts(evidence)),
    ):
        line = json.dumps({**facts, "index": 7, "at": at.isoformat()})
        (tmp_path / f"{file}.jsonl").write_text(line + "\n")
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(program), {})
    assert capsys.readouterr().out.startswith("7 hospital_a SIMULATED, proves nothing: ")
