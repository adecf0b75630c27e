"""Requests and answers: what cannot be put into them by anybody but the keys' holder."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.enrolling import Keys, make_request, parse_answer, parse_request
from matl_common.identity.keys import generate_private_key, spki_pin
from matl_common.ids import FederationId, NodeId
from matl_common.tlog.cosignature import witness_key
from matl_common.tlog.names import witness_name
from tests.signers import SoftwareSigner

pytestmark = pytest.mark.certificates
FEDERATION = FederationId("dr-study")
HOSPITAL = SpiffeId(FEDERATION, Role.PARTICIPANT, NodeId("hospital_b"))


def new_keys(
    spiffe_id: SpiffeId = HOSPITAL, *, curve: type[ec.EllipticCurve] = ec.SECP256R1
) -> Keys:
    private_key = Ed25519PrivateKey.generate()
    name = witness_name(spiffe_id.federation, spiffe_id.node_id)
    return Keys(
        tls=generate_private_key(curve),
        signing=SoftwareSigner(generate_private_key()),
        witness=(witness_key(name, private_key.public_key()), private_key),
    )


KEYS = new_keys()
REQUEST = make_request(HOSPITAL, KEYS)
OTHER = json.loads(make_request(HOSPITAL, new_keys()))


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(REQUEST)
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1])
def test_a_request_names_the_keys_it_was_made_with(curve: type[ec.EllipticCurve]) -> None:
    keys = new_keys(curve=curve)
    found = parse_request(make_request(HOSPITAL, keys))
    assert found.spiffe_id == HOSPITAL
    assert spki_pin(found.tls_key) == spki_pin(keys.tls)
    assert found.signing_key == keys.signing.public_key
    assert keys.witness is not None
    assert found.witness_key == keys.witness[0]


def test_the_fingerprint_is_of_every_key_and_the_name() -> None:
    prints = {parse_request(REQUEST).fingerprint}
    for name in (HOSPITAL, SpiffeId(FEDERATION, Role.PARTICIPANT, NodeId("hospital_c"))):
        prints.add(parse_request(make_request(name, new_keys(name))).fingerprint)
    assert len(prints) == 3


def test_whoever_reads_a_private_key_out_of_a_request_finds_none() -> None:
    assert b"PRIVATE" not in REQUEST


@pytest.mark.hostile
@pytest.mark.parametrize("key", ["csr", "signing_key", "witness_key"])
def test_a_key_of_another_request_is_noticed_even_with_its_proof(key: str) -> None:
    proof = {"csr": "tls", "signing_key": "signing", "witness_key": "witness"}[key]

    def exchange(document: dict[str, Any]) -> None:
        document[key] = OTHER[key]
        document["proofs"][proof] = OTHER["proofs"][proof]

    with pytest.raises(IntegrityError, match="does not prove"):
        parse_request(changed(exchange))


@pytest.mark.hostile
@pytest.mark.parametrize("proof", ["tls", "signing", "witness"])
@pytest.mark.parametrize("value", ["", "AAAA", "not base64!", "another's"])
def test_every_proof_is_needed(proof: str, value: str) -> None:
    if value == "another's":
        value = OTHER["proofs"][proof]
    with pytest.raises(MatlError):
        parse_request(changed(lambda document: document["proofs"].update({proof: value})))


@pytest.mark.hostile
def test_another_name_than_the_keys_proved_is_refused() -> None:
    name = "spiffe://dr-study/participant/hospital_c"
    with pytest.raises(InvalidInputError, match="not for"):
        parse_request(changed(lambda document: document.update(spiffe_id=name)))


@pytest.mark.hostile
def test_nobody_asks_to_be_the_coordinator() -> None:
    name = SpiffeId(FEDERATION, Role.COORDINATOR, NodeId("coordinator"))
    keys = Keys(KEYS.tls, KEYS.signing)
    with pytest.raises(InvalidInputError, match="participant, an operator or a front end"):
        parse_request(make_request(name, keys))


@pytest.mark.hostile
def test_one_key_for_two_uses_is_refused() -> None:
    keys = Keys(KEYS.tls, SoftwareSigner(KEYS.tls))
    with pytest.raises(InvalidInputError, match="two uses"):
        parse_request(make_request(HOSPITAL, keys))


@pytest.mark.hostile
def test_an_operator_is_no_witness() -> None:
    name = SpiffeId(FEDERATION, Role.OPERATOR, NodeId("hospital_b"))
    with pytest.raises(InvalidInputError, match="witness"):
        parse_request(make_request(name, KEYS))


@pytest.mark.hostile
def test_a_tls_key_on_another_curve_is_refused() -> None:
    unusual = generate_private_key(ec.SECP521R1)
    with pytest.raises(InvalidInputError, match="secp521r1"):
        parse_request(make_request(HOSPITAL, Keys(unusual, KEYS.signing)))


@pytest.mark.hostile
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(data=st.data())
def test_a_request_with_one_character_changed_proves_nothing(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(["csr", "signing_key", "witness_key", "tls", "signing"]))
    document = json.loads(REQUEST)
    holder = document["proofs"] if field in document["proofs"] else document
    text = holder[field]
    at = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.sampled_from("AZaz09+/=é\n"))
    holder[field] = text[:at] + put + text[at + 1 :]
    if holder[field] == text:
        return
    try:
        found = parse_request(json.dumps(document).encode())
    except MatlError:
        return
    # Base64 has several spellings of one value, and PEM of one line.
    assert found.fingerprint == parse_request(REQUEST).fingerprint


@pytest.mark.hostile
@given(data=st.binary(max_size=300) | st.integers(0, len(REQUEST)).map(lambda end: REQUEST[:end]))
def test_anything_else_is_refused_as_input(data: bytes) -> None:
    for parse in (parse_request, parse_answer):
        if data.strip() != REQUEST.strip():
            with pytest.raises(MatlError):
                parse(data)
