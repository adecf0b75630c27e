"""Keys that sign in a real token: what they sign, and what is said when they cannot."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pkcs11
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

from matl_common.identity.held_keys import (
    KeyKind,
    generate_key,
    load_ed25519_key,
    load_p256_key,
    refuse_shared_keys,
)
from matl_common.identity.pkcs11.session import TokenError
from matl_common.identity.pkcs11.uri import PIN_VARIABLE
from matl_common.signing import sign, verify
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint, verify_checkpoint
from tests.common.test_pkcs11_wrapping import refusal
from tests.softhsm import PIN, TokenFolder

pytestmark = pytest.mark.hsm

P256_PARAMETERS = bytes.fromhex("06082a8648ce3d030107")
P384_PARAMETERS = bytes.fromhex("06052b81040022")
DATA = b"what a hospital sends"


def make_pair(
    tokens: TokenFolder,
    label: str,
    *,
    curve: bytes = P256_PARAMETERS,
    id: bytes = b"\x01",
    public_id: bytes | None = None,
    more: Mapping[Attribute, object] | None = None,
    capabilities: MechanismFlag = MechanismFlag.SIGN | MechanismFlag.VERIFY,
) -> None:
    """A pair such as a vendor's tools may have made."""
    with tokens.session("hsm") as session:
        domain = session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: curve}, local=True
        )
        domain.generate_keypair(
            id=id,
            label=label,
            store=True,
            mechanism=Mechanism.EC_KEY_PAIR_GEN,
            capabilities=capabilities,
            public_template={} if public_id is None else {Attribute.ID: public_id},
            private_template={
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                **(more or {}),
            },
        )


def destroy(tokens: TokenFolder, label: str, kind: ObjectClass | None = None) -> None:
    wanted = {Attribute.LABEL: label, **({} if kind is None else {Attribute.CLASS: kind})}
    with tokens.session("hsm") as session:
        for each in list(session.get_objects(wanted)):
            each.destroy()


# Keys that work.


def test_a_p256_key_made_in_a_token_signs_envelopes_and_never_leaves_it(
    tokens: TokenFolder,
) -> None:
    made = generate_key(tokens.uri("hsm", "sign"), KeyKind.P256)
    key = load_p256_key(tokens.uri("hsm", "sign"))
    assert key.keyid == made.keyid
    assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
    assert verify(sign("text/x", DATA, key), key.public_key, "text/x") == DATA
    assert key.holder.startswith("PKCS#11 token 'hsm' (SoftHSM v2, serial ")
    (only,) = key.weaknesses
    assert "hardware" in only
    with tokens.session("hsm") as session:
        private = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="sign")
        assert private[Attribute.NEVER_EXTRACTABLE]
        assert private[Attribute.ALWAYS_SENSITIVE]
        assert not private[Attribute.DERIVE]
        with pytest.raises(pkcs11.AttributeSensitive):
            _ = private[Attribute.VALUE]


def test_an_ed25519_key_made_in_a_token_signs_checkpoints(tokens: TokenFolder) -> None:
    generate_key(tokens.uri("hsm", "log"), KeyKind.ED25519)
    key = load_ed25519_key(tokens.uri("hsm", "log"))
    assert isinstance(key.public_key, Ed25519PublicKey)
    known = log_key("dr-study.matl.internal/log", key.public_key)
    checkpoint = Checkpoint(known.name, 3, bytes(32))
    signed = sign_checkpoint(checkpoint, known, key)
    assert verify_checkpoint(signed.note, [known]).checkpoint == checkpoint


def test_every_signature_is_good_as_der(tokens: TokenFolder) -> None:
    # Halves with leading zeros and high bits are where conversions from r‖s go wrong.
    generate_key(tokens.uri("hsm", "sign"), KeyKind.P256)
    key = load_p256_key(tokens.uri("hsm", "sign"))
    lengths = set()
    for number in range(200):
        signature = key.sign(number.to_bytes(2))
        key.public_key.verify(signature, number.to_bytes(2), ec.ECDSA(SHA256()))
        lengths.add(len(signature))
    assert len(lengths) > 1


def test_a_key_made_by_other_tools_serves_whichever_attribute_binds_its_halves(
    tokens: TokenFolder,
) -> None:
    make_pair(tokens, "by id", id=b"\x07")
    make_pair(tokens, "by label", id=b"")
    for label in ("by id", "by label"):
        key = load_p256_key(tokens.uri("hsm", label))
        assert verify(sign("text/x", DATA, key), key.public_key, "text/x") == DATA


@pytest.mark.parametrize("kind", KeyKind)
def test_a_key_in_a_file_is_called_software_held(tmp_path: Path, kind: KeyKind) -> None:
    key = generate_key(tmp_path / "sign.key", kind)
    assert key.holder == "software-held"
    assert not key.weaknesses
    (tmp_path / "sign.key").chmod(0o644)
    assert "chmod 600" in key.weaknesses[0]


@pytest.mark.parametrize("kind", [KeyKind.P256, KeyKind.ED25519])
def test_a_key_that_may_be_in_use_is_never_replaced(
    tokens: TokenFolder, tmp_path: Path, kind: KeyKind
) -> None:
    for place in (tokens.uri("hsm", "sign"), tmp_path / "sign.key"):
        first = generate_key(place, kind)
        said = refusal(lambda place=place: generate_key(place, kind))  # type: ignore[misc]
        assert "never replaced" in said
        load = load_p256_key if kind is KeyKind.P256 else load_ed25519_key
        assert load(place).keyid == first.keyid


# Keys that do not.


def test_a_key_of_another_type_is_refused_by_name(tokens: TokenFolder) -> None:
    make_pair(tokens, "p384", curve=P384_PARAMETERS, id=b"\x02")
    generate_key(tokens.uri("hsm", "ed"), KeyKind.ED25519)
    generate_key(tokens.uri("hsm", "p256"), KeyKind.P256)
    for label in ("p384", "ed"):
        uri = tokens.uri("hsm", label)
        assert refusal(lambda uri=uri: load_p256_key(uri)) == (  # type: ignore[misc]
            f"{uri} is not a P-256 key; make one for this use"
        )
    uri = tokens.uri("hsm", "p256")
    assert refusal(lambda: load_ed25519_key(uri)) == (
        f"{uri} is not an Ed25519 key; make one for this use"
    )


def test_a_key_that_may_not_sign_is_refused(tokens: TokenFolder) -> None:
    make_pair(tokens, "derives", capabilities=MechanismFlag.DERIVE)
    assert "CKA_SIGN" in refusal(lambda: load_p256_key(tokens.uri("hsm", "derives")))


def test_a_key_that_wants_its_pin_each_time_is_refused(tokens: TokenFolder) -> None:
    make_pair(tokens, "strict", more={Attribute.ALWAYS_AUTHENTICATE: True})
    said = refusal(lambda: load_p256_key(tokens.uri("hsm", "strict")))
    assert "CKA_ALWAYS_AUTHENTICATE" in said


def test_a_key_without_its_public_half_is_refused(tokens: TokenFolder) -> None:
    make_pair(tokens, "half")
    destroy(tokens, "half", ObjectClass.PUBLIC_KEY)
    said = refusal(lambda: load_p256_key(tokens.uri("hsm", "half")))
    assert "has 0 public keys" in said


def test_a_public_key_of_another_pair_is_seen_to_be_one(tokens: TokenFolder) -> None:
    make_pair(tokens, "one", id=b"\x01", public_id=b"\x02")
    make_pair(tokens, "two", id=b"\x03", public_id=b"\x01")
    said = refusal(lambda: load_p256_key(tokens.uri("hsm", "one")))
    assert "is another key's" in said


def test_a_key_that_can_leave_its_token_is_a_weakness(tokens: TokenFolder) -> None:
    make_pair(tokens, "loose", id=b"\x05", more={Attribute.EXTRACTABLE: True})
    first = load_p256_key(tokens.uri("hsm", "loose")).weaknesses[0]
    assert "can be taken out of its token" in first


def test_one_key_for_two_uses_is_refused(tokens: TokenFolder, tmp_path: Path) -> None:
    for place, other in (
        (tokens.uri("hsm", "one"), tokens.uri("hsm", "two")),
        (tmp_path / "one.key", tmp_path / "two.key"),
    ):
        one, two = generate_key(place, KeyKind.P256), generate_key(other, KeyKind.P256)
        again = load_p256_key(place)
        keys = {"identity.tls_key": load_p256_key(place), "identity.signing_key": again}
        said = refusal(lambda keys=keys: refuse_shared_keys(keys))  # type: ignore[misc]
        assert "identity.tls_key and identity.signing_key are the same key" in said
        assert one.keyid != two.keyid
        refuse_shared_keys({**keys, "identity.signing_key": load_p256_key(other)})


# Tokens that come and go.


def test_a_token_that_was_away_signs_again_when_it_is_back(tokens: TokenFolder) -> None:
    generate_key(tokens.uri("hsm", "sign"), KeyKind.P256)
    key = load_p256_key(tokens.uri("hsm", "sign"))
    with tokens.taken_away():
        tokens.restart()
        assert "is not there" in refusal(lambda: key.sign(DATA), TokenError)
    key.public_key.verify(key.sign(DATA), DATA, ec.ECDSA(SHA256()))


def test_a_module_whose_own_folder_is_gone_is_not_called_missing(
    tokens: TokenFolder, tmp_path: Path
) -> None:
    settings = tmp_path / "softhsm2.conf"
    settings.write_text(f"directories.tokendir = {tmp_path / 'gone'}\n")
    program = (
        "import sys\n"
        "from matl_common.identity.held_keys import load_p256_key\n"
        "from matl_common.identity.pkcs11.uri import parse_token_uri\n"
        "load_p256_key(parse_token_uri(sys.argv[1]))\n"
    )
    # Of its own, because a module is loaded once in a process.
    finished = subprocess.run(
        (sys.executable, "-c", program, tokens.uri_text("hsm")),
        env={**os.environ, "SOFTHSM2_CONF": str(settings)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = finished.stderr.splitlines()[-1]
    assert f"the PKCS#11 module {tokens.module} does not start" in said
    assert "directories.tokendir" in said
    assert "see that it is installed" not in said


def test_another_key_under_the_same_name_signs_nothing(tokens: TokenFolder) -> None:
    uri = tokens.uri("hsm", "sign")
    generate_key(uri, KeyKind.P256)
    key = load_p256_key(uri)
    before = key.sign(DATA)
    destroy(tokens, "sign")
    generate_key(uri, KeyKind.P256)
    tokens.restart()
    # Not ConfigurationError: whoever waits for a token waits for this, too.
    assert "restore the key" in refusal(lambda: key.sign(DATA), TokenError)
    with pytest.raises(InvalidSignature):
        load_p256_key(uri).public_key.verify(before, DATA, ec.ECDSA(SHA256()))


def test_a_handle_that_means_another_key_by_now_is_found_out(tokens: TokenFolder) -> None:
    # Handles are given anew once a token was reset; SoftHSM counts them from the beginning.
    make_pair(tokens, "first", id=b"\x01")
    make_pair(tokens, "second", id=b"\x02")
    key = load_p256_key(tokens.uri("hsm", "first"))
    held = key._key._held  # type: ignore[attr-defined]
    assert held is not None
    # Ends with every other one when the token is opened again.
    session = pkcs11.lib(str(tokens.module)).get_token(token_label="hsm").open()
    other = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="second")
    key._key._held = (held[0], type(held[1])(session, other))  # type: ignore[attr-defined]
    key.public_key.verify(key.sign(DATA), DATA, ec.ECDSA(SHA256()))


def test_a_refused_pin_is_tried_once_for_all_keys_of_a_token(
    tokens: TokenFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_key(tokens.uri("hsm", "one"), KeyKind.P256)
    generate_key(tokens.uri("hsm", "two"), KeyKind.P256)
    tokens.restart()
    monkeypatch.setenv(PIN_VARIABLE, f"not-{PIN}")
    loads: list[Callable[[], object]] = [
        lambda: load_p256_key(tokens.uri("hsm", "one")),
        lambda: load_p256_key(tokens.uri("hsm", "two")),
    ]
    assert "refuses the PIN" in refusal(loads[0])
    assert "is not tried again" in refusal(loads[1])
    monkeypatch.setenv(PIN_VARIABLE, PIN)
    loads[1]()


def test_the_pin_is_in_no_representation(tokens: TokenFolder) -> None:
    key = generate_key(tokens.uri("hsm", "sign"), KeyKind.P256)
    assert PIN not in f"{key!r}{key.holder}{key.weaknesses}{key.keyid}"
    shutil.rmtree(tokens.folder)
    tokens.folder.mkdir()
    tokens.restart()
    assert "is not there" in refusal(lambda: key.sign(DATA), TokenError)
