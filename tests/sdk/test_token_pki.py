"""A node whose keys are in a token is enrolled from the command line, and no key leaves it."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner

from matl.cli import app
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.enrolling import parse_answer
from matl_common.identity.ephemeral import coordinator_of
from matl_common.identity.held_keys import load_ed25519_key, load_p256_key
from matl_common.identity.keys import spki_pin
from matl_common.identity.pkcs11.uri import parse_token_uri
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


def coordinators_keys(tokens: TokenFolder) -> dict[str, str]:
    uris = {use: tokens.uri_text("hsm", f"c {use}") for use in ("tls", "signing", "log")}
    for use, uri in uris.items():
        matl("keygen", uri, "--kind", "ed25519" if use == "log" else "p256")
    return uris


def options(uris: dict[str, str]) -> list[str]:
    return [part for use, uri in uris.items() for part in (f"--{use}-key", uri)]


def test_hospitals_are_given_the_public_keys_of_a_coordinator_whose_keys_are_in_a_token(
    tmp_path: Path, tokens: TokenFolder
) -> None:
    folder, answer = tmp_path / "federation", tmp_path / "answer.json"
    uris = coordinators_keys(tokens)
    init = ("pki", "init", "--folder", str(folder), "--federation", "dr-study")
    made = told(*init, *options(uris), "--server-name", "matl.example.org")
    assert all(
        uri in made["keys"][use] for use, uri in zip(made["keys"], uris.values(), strict=True)
    )
    assert {each.name for each in folder.rglob("*.key")} == {"participant-ca.key"}
    request = tmp_path / "request.json"
    matl("pki", "request", "--folder", str(tmp_path / "b"), *NODE, "--out", str(request))
    approve = ("--folder", str(folder), "--patients", "9", "--yes", "--out", str(answer))
    matl("pki", "approve", str(request), *approve)
    found = parse_answer(answer.read_bytes())
    assert (
        spki_pin(found.coordinator_authority) == load_p256_key(parse_token_uri(uris["tls"])).keyid
    )
    signing = load_p256_key(parse_token_uri(uris["signing"]))
    assert spki_pin(found.coordinator_signing_key) == signing.keyid
    log = load_ed25519_key(parse_token_uri(uris["log"]))
    assert found.log_key.public_key == log.public_key.public_bytes_raw()
    node, served = coordinator_of(found.coordinator_authority)
    assert node == found.coordinator
    assert "matl.example.org" in served


def test_an_authority_in_a_token_is_certified_anew_and_stays_the_same_key(
    tmp_path: Path, tokens: TokenFolder
) -> None:
    folder, uris = tmp_path / "federation", coordinators_keys(tokens)
    init = ("pki", "init", "--folder", str(folder), "--federation", "dr-study")
    matl(*init, *options(uris), "--days", "30", "--server-name", "matl.example.org")
    before = x509.load_pem_x509_certificate((folder / "coordinator-ca.crt").read_bytes())
    renew = ("pki", "renew", "--folder", str(folder))
    assert "--tls-key" in matl(*renew, expect=2)
    assert "leave it out" in matl(*renew, "--tls-key", uris["tls"], "--new-key", expect=2)
    assert "another key" in matl(*renew, "--tls-key", uris["signing"], expect=2)
    unchanged = (folder / "coordinator-ca.crt").read_bytes()
    assert x509.load_pem_x509_certificate(unchanged) == before
    matl(*renew, "--tls-key", uris["tls"])
    after = x509.load_pem_x509_certificate((folder / "coordinator-ca.crt").read_bytes())
    assert spki_pin(after) == spki_pin(before)
    assert coordinator_of(after) == coordinator_of(before)
    assert after.not_valid_after_utc - before.not_valid_after_utc > timedelta(days=1000)
    mine = folder / "coordinator" / "tls.crt"
    assert mine.read_bytes() == (folder / "coordinator-ca.crt").read_bytes()
    # As after a crash between the two files.
    mine.write_bytes(unchanged)
    matl(*renew, "--tls-key", uris["tls"])
    matl("pki", "list", "--folder", str(folder))


def test_a_federation_is_not_founded_where_a_key_of_the_coordinator_is_missing_or_shared(
    tmp_path: Path, tokens: TokenFolder
) -> None:
    folder, uris = tmp_path / "federation", coordinators_keys(tokens)
    init = ("pki", "init", "--folder", str(folder), "--federation", "dr-study")
    shared = options({**uris, "signing": uris["tls"]})
    assert "are the same key" in matl(*init, *shared, expect=2)
    missing = options({**uris, "log": tokens.uri_text("hsm", "none")})
    assert "there is no private" in matl(*init, *missing, expect=2)
    wrong = options({**uris, "log": uris["tls"]})
    assert "is not an Ed25519 key" in matl(*init, *wrong, expect=2)
    assert not folder.exists()


def test_what_a_token_cannot_do_is_said_in_one_line(tmp_path: Path, tokens: TokenFolder) -> None:
    uri = tokens.uri_text("hsm", "node")
    assert "p256 or ed25519" in matl("keygen", uri, "--kind", "p384", expect=2)
    matl("keygen", uri)
    assert "never replaced" in matl("keygen", uri, expect=2)
    asked = ("pki", "request", "--folder", str(tmp_path), *NODE, "--tls-key", uri)
    assert "--signing-key" in matl(*asked, expect=2)
