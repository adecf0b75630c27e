"""``matl pki`` as people and scripts type it; what it does is tested with the folder."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from matl.cli import app
from matl_common.identity.keys import load_private_key, permission_warning

pytestmark = pytest.mark.certificates
RUNNER = CliRunner()
ASK = ("pki", "request", "-f", "b", "--federation", "dr-study", "--node", "hospital_b")
RENEW = ("pki", "renew", "-f", "fed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    call("pki", "init", "-f", "fed", "--federation", "dr-study")
    call(*ASK)
    return tmp_path


def call(*arguments: str, answer: str = "", status: int = 0) -> str:
    result = RUNNER.invoke(app, arguments, input=answer)
    assert result.exit_code == status, result.output
    return result.output


def test_json_tells_what_was_done(folder: Path) -> None:
    approve = ("pki", "approve", "hospital_b.request.json", "-f", "fed", "--patients", "9")
    approved = json.loads(call(*approve, "--yes", "--json"))
    (row,) = json.loads(call("pki", "list", "-f", "fed", "--json"))["enrolled"]
    assert row["pin"] == approved["pin"]
    assert (row["node"], row["role"], row["patients"]) == ("hospital_b", "participant", 9)
    installed = call("pki", "install", approved["answer"], "-f", "b", "--yes", "--json")
    assert json.loads(installed)["pin"] == row["pin"]
    assert not list((folder / "fed").rglob("signing.key"))[1:]


@pytest.mark.parametrize("answer", ["n\n", "", "\n"])
def test_nobody_is_enrolled_whose_fingerprint_was_not_compared(folder: Path, answer: str) -> None:
    approve = ("pki", "approve", "hospital_b.request.json", "-f", "fed", "--patients", "9")
    assert RUNNER.invoke(app, approve, input=answer).exit_code != 0
    assert json.loads(call("pki", "list", "-f", "fed", "--json"))["enrolled"] == []
    assert not (folder / "hospital_b.answer.json").exists()


def test_errors_are_one_line_that_says_what_to_do(folder: Path) -> None:
    (folder / "damaged.json").write_text("{}")
    for arguments, text in (
        (("pki", "approve", "nothing.json", "-f", "fed"), "cannot read nothing.json"),
        (("pki", "approve", "damaged.json", "-f", "fed"), "not an enrolment request"),
        (("pki", "list", "-f", "b"), "matl pki init makes one"),
        (("pki", "revoke", "hospital_z", "-f", "fed", "--reason", "r"), "not enrolled"),
        (("pki", "revoke", "coordinator", "-f", "fed", "--reason", "r"), "--new-authority"),
        ((*RENEW, "--tls-key", "pkcs11:object=x", "--new-authority"), "leave it out"),
        (("pki", "init", "-f", "fed", "--federation", "dr-study"), "not empty"),
        ((*ASK, "--new-key", "--replace-keys"), "leave out --new-key"),
        ((*ASK, "--tls-key", "pkcs11:object=x", "--new-key"), "matl keygen"),
    ):
        said = call(*arguments, status=2)
        assert text in said
        assert len(said.splitlines()) == 1
        assert "\N{REPLACEMENT CHARACTER}" not in said


def test_nothing_is_done_whose_result_would_have_no_folder(folder: Path) -> None:
    assert "mkdir -p -m 700 nodir" in call("keygen", "nodir/x.key", status=2)
    approve = ("pki", "approve", "hospital_b.request.json", "-f", "fed", "--patients", "9", "--yes")
    for command in (approve, (*ASK[:3], "new", *ASK[4:])):
        assert "no folder nodir" in call(*command, "--out", "nodir/x.json", status=2)
    assert json.loads(call("pki", "list", "-f", "fed", "--json"))["enrolled"] == []
    assert not (folder / "new").exists()


def test_an_error_of_the_system_names_the_file_and_no_number(folder: Path) -> None:
    (folder / "file").write_text("")
    ask = (*ASK[:3], "file", *ASK[4:])
    assert call(*ask, status=1) == "matl: file: File exists\n"


def test_a_revoked_nodes_keys_are_listed_and_refused(folder: Path) -> None:
    approve = ("pki", "approve", "hospital_b.request.json", "-f", "fed", "--patients", "9", "--yes")
    call(*approve)
    (row,) = json.loads(call("pki", "list", "-f", "fed", "--json"))["enrolled"]
    call("pki", "revoke", "hospital_b", "-f", "fed", "--reason", "stolen")
    (gone,) = json.loads(call("pki", "list", "-f", "fed", "--json"))["revoked"]
    assert (gone["pins"], gone["signing_key"]) == ([row["pin"]], row["signing_key"])
    assert gone["witness_key"][:16] in call("pki", "list", "-f", "fed")
    call(*ASK, "--new-key")
    assert f"signing key {row['signing_key'][:16]} was revoked" in call(*approve, status=2)
    call(*ASK, "--replace-keys")
    call(*approve)


def test_one_node_is_listed_without_the_others(folder: Path) -> None:
    ask = ("pki", "request", "-f", "a", "--federation", "dr-study", "--node", "hospital_a")
    call(*ask)
    for node in ("hospital_a", "hospital_b"):
        approve = ("pki", "approve", f"{node}.request.json", "-f", "fed", "--patients", "9")
        call(*approve, "--yes")
    listing = ("pki", "list", "hospital_b", "-f", "fed")
    (row,) = json.loads(call(*listing, "--json"))["enrolled"]
    assert row["node"] == "hospital_b"
    call("pki", "revoke", "hospital_a", "-f", "fed", "--reason", "stolen")
    assert json.loads(call(*listing, "--json"))["revoked"] == []
    assert "hospital_a" not in call(*listing)
    (gone,) = json.loads(call("pki", "list", "hospital_a", "-f", "fed", "--json"))["revoked"]
    assert gone["node"] == "hospital_a"
    assert "is not enrolled" in call("pki", "list", "hospital_z", "-f", "fed", status=2)


def test_a_key_is_made_once_and_called_software_held(folder: Path) -> None:
    path = folder / "tls.key"
    assert "software-held" in call("keygen", str(path), "--kind", "p384")
    assert permission_warning(path) is None
    assert load_private_key(path, curves=[ec.SECP384R1]).curve.name == "secp384r1"
    before = path.read_bytes()
    assert "never replaced" in call("keygen", str(path), status=2)
    assert path.read_bytes() == before
