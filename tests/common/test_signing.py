"""DSSE envelopes."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import private_key_pem
from matl_common.protocol import PayloadType
from matl_common.signing import (
    MAX_ENVELOPE_BYTES,
    Envelope,
    encode_envelope,
    keyid_of,
    parse_envelope,
    pre_authentication_encoding,
    sign,
    verify,
)
from tests.signers import SoftwareSigner

# Shared by all tests of this module; keys are never changed.
SIGNER = SoftwareSigner(ec.generate_private_key(ec.SECP256R1()))
OTHER = SoftwareSigner(ec.generate_private_key(ec.SECP256R1()))
TYPE = "application/vnd.matl.test.v1"

# The test vector of DSSE's protocol.md: a key, and a signature as r followed by s.
VECTOR_X = 46950820868899156662930047687818585632848591499744589407958293238635476079160
VECTOR_Y = 5640078356564379163099075877009565129882514886557779369047442380624545832820
VECTOR_SIGNATURE = (
    "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="
)
VECTOR_TYPE = "http://example.com/HelloWorld"


def test_the_pre_authentication_encoding_is_that_of_the_protocol() -> None:
    encoded = pre_authentication_encoding(VECTOR_TYPE, b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_the_pre_authentication_encoding_counts_bytes_not_characters() -> None:
    assert pre_authentication_encoding("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_the_signature_of_the_protocols_test_vector_verifies() -> None:
    key = ec.EllipticCurvePublicNumbers(VECTOR_X, VECTOR_Y, ec.SECP256R1()).public_key()
    raw = base64.b64decode(VECTOR_SIGNATURE)
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    envelope = Envelope(VECTOR_TYPE, b"hello world", "", encode_dss_signature(r, s))
    assert verify(envelope, key, VECTOR_TYPE) == b"hello world"


@given(st.binary(max_size=300))
def test_what_was_signed_is_returned_after_a_journey(payload: bytes) -> None:
    envelope = parse_envelope(encode_envelope(sign(TYPE, payload, SIGNER)))
    assert envelope.keyid == keyid_of(SIGNER.public_key)
    assert verify(envelope, SIGNER.public_key, TYPE) == payload


@pytest.mark.hostile
@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_payload_with_any_bit_flipped_is_refused(payload: bytes, data: st.DataObject) -> None:
    envelope = sign(TYPE, payload, SIGNER)
    position = data.draw(st.integers(0, len(payload) * 8 - 1))
    changed = bytearray(payload)
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(IntegrityError):
        verify(replace(envelope, payload=bytes(changed)), SIGNER.public_key, TYPE)


@pytest.mark.hostile
def test_another_nodes_signature_is_refused_whatever_its_keyid_says() -> None:
    forged = replace(sign(TYPE, b"update", OTHER), keyid=SIGNER.keyid)
    with pytest.raises(IntegrityError, match="does not verify"):
        verify(forged, SIGNER.public_key, TYPE)


@pytest.mark.hostile
def test_an_envelope_of_another_type_is_refused_though_it_was_signed() -> None:
    with pytest.raises(IntegrityError, match="expected"):
        verify(sign("text/other", b"update", SIGNER), SIGNER.public_key, TYPE)


@pytest.mark.hostile
def test_a_type_changed_after_signing_is_refused() -> None:
    relabelled = replace(sign("text/other", b"update", SIGNER), payload_type=TYPE)
    with pytest.raises(IntegrityError, match="does not verify"):
        verify(relabelled, SIGNER.public_key, TYPE)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "change",
    [
        {"payload": "%%%"},
        {"payload": 1},
        {"payloadType": None},
        {"signatures": []},
        {"signatures": [{"keyid": "a", "sig": "AA=="}] * 2},
        {"signatures": [{"keyid": "a", "sig": "AA==", "more": 1}]},
        {"signatures": [{"sig": "AA=="}]},
        {"more": 1},
        {"payloadType": "t" * 201},
        {"signatures": [{"keyid": "a", "sig": base64.b64encode(bytes(513)).decode()}]},
    ],
)
def test_an_envelope_that_is_not_as_specified_is_refused(change: dict[str, object]) -> None:
    document = json.loads(encode_envelope(sign(TYPE, b"x", SIGNER))) | change
    with pytest.raises(InvalidInputError):
        parse_envelope(json.dumps(document).encode())


@pytest.mark.hostile
def test_an_envelope_that_repeats_a_key_is_refused() -> None:
    encoded = encode_envelope(sign(TYPE, b"x", SIGNER))
    with pytest.raises(InvalidInputError, match="repeats"):
        parse_envelope(encoded[:-1] + b',"payload":"eQ=="}')


@pytest.mark.hostile
@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b" " * MAX_ENVELOPE_BYTES])
def test_bytes_that_are_no_envelope_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_envelope(data)


@pytest.mark.hostile
def test_an_oversized_envelope_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidInputError, match="exceeds"):
        parse_envelope(b" " * (MAX_ENVELOPE_BYTES + 1))


def test_a_signer_is_loaded_from_its_file(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "signing.key"
    path.write_bytes(private_key_pem(key))
    signer = load_p256_key(path)
    assert verify(sign(TYPE, b"x", signer), key.public_key(), TYPE) == b"x"


@pytest.mark.parametrize("content", [b"", b"not a key"])
def test_a_file_that_is_no_key_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="openssl pkcs8"):
        load_p256_key(path)


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(private_key_pem(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigurationError, match="P-256"):
        load_p256_key(path)
    path.write_bytes(private_key_pem(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(ConfigurationError, match="P-256"):
        load_p256_key(path)


def test_refusals_call_a_type_by_its_name_on_the_wire() -> None:
    envelope = sign(PayloadType.RECEIPT, b"x", SIGNER)
    for key, payload_type in ((OTHER.public_key, PayloadType.RECEIPT), (SIGNER.public_key, "t")):
        with pytest.raises(IntegrityError, match=f"'{PayloadType.RECEIPT.value}'"):
            verify(envelope, key, payload_type)
    with pytest.raises(IntegrityError, match=f"expected '{PayloadType.RECEIPT.value}'"):
        verify(replace(envelope, payload_type="t"), SIGNER.public_key, PayloadType.RECEIPT)
