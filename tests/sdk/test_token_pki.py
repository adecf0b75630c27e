"""A node whose keys are in a token is enrolled from the command line, and no key leaves it."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner

from matl.cli import app
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.ephemeral import coordinator_of
from matl_common.identity.held_keys import load_ed25519_key, load_p256_key
from matl_common.identity.keys import spki_pin
from matl_common.identity.tls import TokenTls, channel_credentials
from matl_common.ids import NodeId
from tests.softhsm import PIN, TokenFolder

pytestmark = pytest.mark.hsm

NODE = ("--federation", "dr-study", "--node", "hospital_b")


def matl(*arguments: str, expect: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == expect, result.output
    assert PIN not in result.output
    return result.output


def told(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(matl(*arguments, "--json"))
    return found


def test_a_hospital_joins_with_three_keys_in_its_token(tmp_path: Path, tokens: TokenFolder) -> None:
    federation, mine = tmp_path / "federation", tmp_path / "hospital_b"
    matl("pki", "init", "--folder", str(federation), "--federation", "dr-study")
    uris = {use: tokens.uri_text("hsm", use) for use in ("tls", "signing", "witness")}
    for use, uri in uris.items():
        kind = "ed25519" if use == "witness" else "p256"
        made = told("keygen", uri, "--kind", kind)
        assert made["held"].startswith("PKCS#11 token 'hsm'")
    keys = [part for use, uri in uris.items() for part in (f"--{use}-key", uri)]
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    asked = told("pki", "request", "--folder", str(mine), *NODE, *keys, "--out", str(request))
    assert asked["keys"].startswith("PKCS#11 token 'hsm'")
    approve = ("--folder", str(federation), "--patients", "100", "--yes", "--out", str(answer))
    matl("pki", "approve", str(request), *approve)
    install = ("pki", "install", str(answer), "--folder", str(mine), "--yes")
    assert "is for another key" in matl(*install, "--tls-key", uris["signing"], expect=2)
    matl(*install, "--tls-key", uris["tls"])
    assert list(mine.glob("*.key")) == []
    enrolled = load_allowlist(federation / "coordinator" / "allowlist.toml").lookup(
        NodeId("hospital_b")
    )
    assert enrolled is not None
    assert enrolled.pins == {load_p256_key(tokens.uri("hsm", "tls")).keyid}
    assert enrolled.signing_keyid == load_p256_key(tokens.uri("hsm", "signing")).keyid
    assert enrolled.witness_key is not None
    witness = load_ed25519_key(tokens.uri("hsm", "witness")).public_key
    assert enrolled.witness_key.public_key == witness.public_bytes_raw()
    place = TokenTls(tokens.uri("hsm", "tls"), mine / "tls.crt", mine / "trusted-ca.crt")
    assert channel_credentials(place)


def test_a_coordinators_key_in_a_token_becomes_its_authority(
    tmp_path: Path, tokens: TokenFolder
) -> None:
    uri, out = tokens.uri_text("hsm", "node"), tmp_path / "coordinator-ca.crt"
    made = told("keygen", uri)
    names = ("--federation", "dr-study", "--server-name", "matl.example.org")
    matl("pki", "authority", "--key", uri, *names, "--out", str(out))
    certificate = x509.load_pem_x509_certificate(out.read_bytes())
    node, served = coordinator_of(certificate)
    assert str(node) == "spiffe://dr-study/coordinator/coordinator"
    assert "matl.example.org" in served
    assert spki_pin(certificate) == made["pin"]


def test_what_a_token_cannot_do_is_said_in_one_line(tmp_path: Path, tokens: TokenFolder) -> None:
    uri = tokens.uri_text("hsm", "node")
    assert "p256 or ed25519" in matl("keygen", uri, "--kind", "p384", expect=2)
    matl("keygen", uri)
    assert "never replaced" in matl("keygen", uri, expect=2)
    asked = ("pki", "request", "--folder", str(tmp_path), *NODE, "--tls-key", uri)
    assert "--signing-key" in matl(*asked, expect=2)
