"""``verify_hipaa.py`` as it is typed, as far as it needs no federation."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from matl.compliance import commands
from matl.compliance.commands import app
from matl.compliance.control import Level, Status
from matl.compliance.signed import signed_page
from matl_common.identity.keys import generate_private_key, private_key_pem
from matl_common.ids import digest_of
from tests.compliance.test_control import a_finding, a_report
from tests.signers import SoftwareSigner

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "coordinator.toml"
SIGNER = SoftwareSigner(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def checking(tmp_path: Path) -> tuple[str, ...]:
    """Return what checks a page that was signed by a known key."""
    page, key = tmp_path / "page.html", tmp_path / "key.pem"
    page.write_bytes(signed_page(a_report(a_finding(Level.OWN, Status.PASS)), SIGNER))
    pem = SIGNER.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key.write_bytes(pem)
    return ("--check", str(page), "--signing-key", str(key))


def test_the_database_that_was_named_is_the_one_a_page_is_looked_for_in(
    checking: tuple[str, ...], tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["-c", str(EXAMPLE), *checking, "--audit-db", "no url"])
    assert done.exit_code == 2
    assert "--audit-db" in done.output
    nowhere = f"sqlite:///{tmp_path / 'none.db'}"
    # A researcher's own log is in the variable, and no coordinator's.
    environment = {"MATL_AUDIT_DB": "no url"}
    given = ["-c", str(EXAMPLE), *checking, "--audit-db", nowhere]
    done = CliRunner().invoke(app, given, env=environment)
    assert "there is no database yet" in done.output
    found = CliRunner().invoke(app, ["-c", str(EXAMPLE), *checking], env=environment)
    assert "--audit-db" not in found.output


def test_the_database_that_was_named_is_the_one_a_review_is_recorded_in() -> None:
    review = ("--record-review", "the refusals", "--audit-db", "no url")
    done = CliRunner().invoke(app, ["-c", str(EXAMPLE), *review])
    assert done.exit_code == 2
    assert "--audit-db" in done.output


@pytest.mark.parametrize("part", [["--audit-trail"], ["--phi-check"], ["--control", "audit.roles"]])
def test_a_part_is_neither_called_a_full_audit_nor_reported(
    part: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    for flags in (["--full-audit"], ["--report", str(page)]):
        done = CliRunner().invoke(app, ["-c", str(EXAMPLE), *part, *flags])
        assert done.exit_code == 2
        assert "leave out" in done.output
    assert not page.exists()


def test_a_page_that_cannot_be_put_on_record_is_told_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key, page = (tmp_path / name for name in ("c.toml", "signing.key", "page.html"))
    file.write_text(EXAMPLE.read_text().replace("/var/lib/matl-coordinator", str(tmp_path / "no")))
    key.write_bytes(private_key_pem(generate_private_key()))
    key.chmod(0o600)
    sound = a_report(a_finding(Level.OWN, Status.PASS))
    monkeypatch.setattr(commands, "audit", lambda *_, **__: sound)
    done = CliRunner().invoke(app, ["-c", str(file), "--json", "--report", str(page)])
    said = json.loads(done.stdout)
    assert said["exit_status"] == 0
    assert done.exit_code == 1
    assert said["recorded"] is None
    assert digest_of(page.read_bytes()) in said["record_error"]
