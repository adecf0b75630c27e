"""Signed notes, and the keys that sign them."""

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.identity.keys import generate_private_key, spki_pin
from matl_common.tlog.note import (
    ECDSA_P256,
    ED25519,
    MAX_NOTE_BYTES,
    MAX_SIGNATURES,
    NOTE_TYPES,
    Note,
    NoteSignature,
    SignatureType,
    VerifierKey,
    encode_public_key,
    load_ed25519,
    parse_note,
    parse_verifier_key,
    sign_note,
    verified_signatures,
)
from tests.signers import SoftwareSigner

# The example of C2SP signed-note.
EXAMPLE_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_NOTE = (
    "This is an example message.\n"
    "\n"
    "\N{EM DASH} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYj"
    "OBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
# The example of Go's sumdb/note.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "\N{EM DASH} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZ"
    "SNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()

TEXT = b"Ognuno sta solo\n\nsul cuor della terra\n"
ED_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
ED_KEY = VerifierKey("a.example", ED25519, encode_public_key(ED_SIGNER.public_key()))
EC_SIGNER = SoftwareSigner(generate_private_key())
EC_KEY = VerifierKey("b.example", ECDSA_P256, encode_public_key(EC_SIGNER.public_key))
KEYS = (ED_KEY, EC_KEY)
NOTE = Note(TEXT, (sign_note(TEXT, ED_KEY, ED_SIGNER), sign_note(TEXT, EC_KEY, EC_SIGNER)))
ENCODED = NOTE.encode()


@pytest.mark.parametrize(("vkey", "note"), [(EXAMPLE_VKEY, EXAMPLE_NOTE), (GO_VKEY, GO_NOTE)])
def test_published_notes_verify_with_their_published_keys(vkey: str, note: bytes) -> None:
    key = parse_verifier_key(vkey)
    assert key.vkey == vkey
    parsed = parse_note(note)
    assert verified_signatures(parsed, [key]) == ((key, parsed.signatures[0]),)
    assert parsed.encode() == note


def test_a_note_is_read_back_as_it_was_written() -> None:
    assert parse_note(ENCODED) == NOTE
    assert [key for key, _ in verified_signatures(NOTE, KEYS)] == list(KEYS)


@given(st.integers(0, len(ENCODED) * 8 - 1))
def test_no_bit_of_a_note_can_be_flipped_unnoticed(position: int) -> None:
    changed = bytearray(ENCODED)
    changed[position // 8] ^= 1 << position % 8
    try:
        found = verified_signatures(parse_note(bytes(changed)), KEYS)
    except MatlError:
        return
    # Another name or key id makes a line a stranger's, and the text is as it was signed.
    assert len(found) < len(KEYS)
    assert parse_note(bytes(changed)).text == TEXT


@pytest.mark.hostile
@given(st.binary(max_size=300) | st.binary(max_size=80).map(lambda data: ENCODED + data))
def test_arbitrary_bytes_are_refused_in_one_way_only(data: bytes) -> None:
    try:
        note = parse_note(data)
    except InvalidInputError:
        return
    assert note.encode() == data


@pytest.mark.hostile
@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda key: vkey_of(b"\x02" + key)))
def test_arbitrary_text_is_refused_as_a_verifier_key_in_one_way_only(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_verifier_key(text)


def vkey_of(typed_key: bytes) -> str:
    return f"name+00000000+{base64.b64encode(typed_key).decode()}"


def test_lines_by_unknown_keys_are_passed_over_even_under_a_known_name_or_id() -> None:
    line = NOTE.signatures[0]
    strangers = (
        replace(line, name="c.example"),
        replace(line, key_id=bytes(4)),
        NoteSignature("d.example", b"abcd", b"anything"),
    )
    assert verified_signatures(Note(b"other\n", strangers), KEYS) == ()


@pytest.mark.hostile
def test_a_failing_line_by_a_known_key_spoils_the_whole_note() -> None:
    spoilt = replace(NOTE.signatures[0], signature=bytes(64))
    with pytest.raises(IntegrityError, match=r"a\.example"):
        verified_signatures(Note(TEXT, (*NOTE.signatures, spoilt)), KEYS)


@pytest.mark.hostile
@pytest.mark.parametrize("length", [0, 1, 63, 65, 200])
@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_signature_of_any_length_fails_as_a_signature(key: VerifierKey, length: int) -> None:
    with pytest.raises(IntegrityError):
        key.verify(TEXT, bytes(length))


def test_signing_with_another_key_than_the_named_one_is_noticed() -> None:
    with pytest.raises(IntegrityError):
        sign_note(TEXT, ED_KEY, Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01"))
    with pytest.raises(IntegrityError):
        sign_note(TEXT, EC_KEY, SoftwareSigner(generate_private_key()))


def test_key_ids_are_those_of_the_specification() -> None:
    assert parse_verifier_key(EXAMPLE_VKEY).key_id.hex() == "530d903a"
    # Of ECDSA keys the id is the hash of the key alone, whatever its name.
    assert EC_KEY.key_id.hex() == spki_pin(EC_SIGNER.public_key)[:8]
    assert replace(EC_KEY, name="c.example").key_id == EC_KEY.key_id


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_verifier_key_is_read_back_as_it_was_written(key: VerifierKey) -> None:
    assert parse_verifier_key(key.vkey) == key


def test_a_type_with_a_longer_name_is_one_more_type() -> None:
    private = SignatureType(b"\xffexample/v1\n", load_ed25519)
    key = VerifierKey("a.example", private, ED_KEY.public_key)
    assert parse_verifier_key(key.vkey, (*NOTE_TYPES, private)) == key
    assert key.key_id != ED_KEY.key_id
    note = Note(TEXT, (*NOTE.signatures, sign_note(TEXT, key, ED_SIGNER)))
    assert [signer for signer, _ in verified_signatures(note, [key])] == [key]
    with pytest.raises(InvalidInputError, match="type accepted here"):
        parse_verifier_key(key.vkey)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000+AAAA",
        EXAMPLE_VKEY.replace("foo+", "fop+"),
        EXAMPLE_VKEY.replace("530d903a", "530D903A"),
        EXAMPLE_VKEY[:-4],
        EXAMPLE_VKEY + "AAAA",
        EXAMPLE_VKEY.replace("example.com", "\ud800"),
        EXAMPLE_VKEY + "\n",
    ],
)
def test_a_text_that_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_verifier_key(text)


def test_ecdsa_keys_have_one_curve_and_one_encoding() -> None:
    other_curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    compressed = EC_SIGNER.public_key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    header = EC_KEY.public_key[:-65]
    # SubjectPublicKeyInfo around a compressed point: shorter by 32 bytes, inside and outside.
    shortened = bytes([header[0], header[1] - 32, *header[2:-2], header[-2] - 32, header[-1]])
    unknown_curve = EC_KEY.public_key.replace(
        b"\x2a\x86\x48\xce\x3d\x03", b"\x2a\x86\x48\xce\x3d\x7f"
    )
    for encoded in (
        encode_public_key(other_curve),
        shortened + compressed,
        unknown_curve,
        ED_KEY.public_key,
    ):
        with pytest.raises(InvalidInputError):
            VerifierKey("b.example", ECDSA_P256, encoded)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u3000b", "a\u200bb", "a" * 201])
def test_a_name_that_would_break_the_format_names_no_key(name: str) -> None:
    with pytest.raises(InvalidInputError):
        replace(ED_KEY, name=name)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        TEXT + b"\n" + b"\xff" + ENCODED,
        ENCODED[:-1],
        ENCODED + b"x\n",
        ENCODED + b"\n",
        ENCODED + "\N{EM DASH} a b c\n".encode(),
        ENCODED + "\N{EM DASH} a AAAA\n".encode(),
        ENCODED + "\N{EM DASH} a+b AAAAAAAA\n".encode(),
        ENCODED + "\N{EM DASH} a\u3000b AAAAAAAA\n".encode(),
        ENCODED + "\N{EM DASH}  AAAAAAAA\n".encode(),
        ENCODED + "\N{EM DASH} a ?\n".encode(),
        ENCODED + b"- a AAAAAAAA\n",
        b"tab\there\n" + ENCODED,
        b"carriage return\r\n" + ENCODED,
    ],
)
def test_bytes_that_are_no_note_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_note(data)


@pytest.mark.hostile
def test_a_signature_has_one_encoding_only() -> None:
    # Of the last character before the padding, two bits say nothing.
    assert EXAMPLE_NOTE.endswith(b"=\n")
    respelt = EXAMPLE_NOTE[:-3] + bytes([EXAMPLE_NOTE[-3] + 1]) + EXAMPLE_NOTE[-2:]
    with pytest.raises(InvalidInputError, match="canonical"):
        parse_note(respelt)


@pytest.mark.hostile
def test_notes_are_bounded_in_size_and_in_signatures() -> None:
    line = NoteSignature("name", b"abcd", bytes(2420)).encode()
    parse_note(b"text\n\n" + line * 50)
    short = NoteSignature("name", b"abcd", bytes(64)).encode()
    parse_note(b"text\n\n" + short * MAX_SIGNATURES)
    with pytest.raises(InvalidInputError, match="signature lines"):
        parse_note(b"text\n\n" + short * (MAX_SIGNATURES + 1))
    with pytest.raises(InvalidInputError, match="bytes"):
        parse_note(b"x" * MAX_NOTE_BYTES + ENCODED)
