"""Witnesses' timestamped cosignatures."""

import base64
from collections.abc import Callable
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.identity.keys import generate_private_key
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.cosignature import (
    COSIGNATURE_TYPES,
    ECDSA_P256_COSIGNATURE,
    ED25519_COSIGNATURE,
    MAX_TIME,
    ML_DSA_44_COSIGNATURE,
    Cosignature,
    cosign,
    verified_cosignatures,
    witness_key,
)
from matl_common.tlog.merkle import leaf_hash
from matl_common.tlog.note import (
    Note,
    NoteSignature,
    Signer,
    VerifierKey,
    parse_verifier_key,
    sign_note,
)
from tests.signers import SoftwareSigner

ORIGIN = "dr-study.matl.internal/log"
LOG_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
LOG_KEY = log_key(ORIGIN, LOG_SIGNER.public_key())
CHECKPOINT = Checkpoint(ORIGIN, 42, leaf_hash(b"root"))
SIGNED = sign_checkpoint(CHECKPOINT, LOG_KEY, LOG_SIGNER)
TEXT = SIGNED.note.text
NOW = 1_679_315_147


class Witness(NamedTuple):
    key: VerifierKey
    signer: Signer


def ed25519_witness() -> Witness:
    signer = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    return Witness(witness_key("b.example/w", signer.public_key()), signer)


def p256_witness() -> Witness:
    signer = SoftwareSigner(generate_private_key())
    return Witness(witness_key("c.example/w", signer.public_key), signer)


def ml_dsa_witness() -> Witness:
    signer = MLDSA44PrivateKey.from_seed_bytes(bytes(32))
    public = signer.public_key().public_bytes_raw()
    return Witness(VerifierKey("d.example/w", ML_DSA_44_COSIGNATURE, public), signer)


WITNESSES = [ed25519_witness(), p256_witness(), ml_dsa_witness()]
# ECDSA signatures differ in length from one to the next; tests that index into them share these.
LINES = {each: cosign(CHECKPOINT, each.key, each.signer, unix_seconds=NOW) for each in WITNESSES}
each_witness = pytest.mark.parametrize("witness", WITNESSES, ids=lambda each: each.key.name)


def noted(*lines: NoteSignature) -> Note:
    return Note(TEXT, (*SIGNED.note.signatures, *lines))


@each_witness
@given(st.integers(1, 2**63 - 1))
def test_a_cosignature_is_verified_with_its_time(witness: Witness, unix_seconds: int) -> None:
    line = cosign(CHECKPOINT, witness.key, witness.signer, unix_seconds=unix_seconds)
    expected = (Cosignature(witness.key, unix_seconds),)
    assert verified_cosignatures(noted(line), [each.key for each in WITNESSES]) == expected


def test_the_ed25519_message_is_the_one_of_the_specification() -> None:
    key, signer = WITNESSES[0]
    line = cosign(CHECKPOINT, key, signer, unix_seconds=NOW)
    assert line.signature[:8] == NOW.to_bytes(8)
    root = base64.b64encode(CHECKPOINT.root).decode()
    message = f"cosignature/v1\ntime {NOW}\n{ORIGIN}\n42\n{root}\n".encode()
    Ed25519PublicKey.from_public_bytes(key.public_key).verify(line.signature[8:], message)


def test_the_ml_dsa_message_is_the_one_of_the_specification() -> None:
    key, signer = WITNESSES[2]
    line = cosign(CHECKPOINT, key, signer, unix_seconds=NOW)
    message = b"".join(
        (
            b"subtree/v1\n\0",
            bytes([len(key.name)]) + key.name.encode(),
            NOW.to_bytes(8),
            bytes([len(ORIGIN)]) + ORIGIN.encode(),
            (0).to_bytes(8),
            (42).to_bytes(8),
            CHECKPOINT.root,
        )
    )
    assert isinstance(signer, MLDSA44PrivateKey)
    signer.public_key().verify(line.signature[8:], message)
    assert len(line.signature) == 8 + 2420


@each_witness
def test_a_witness_key_is_read_back_as_it_was_written(witness: Witness) -> None:
    assert parse_verifier_key(witness.key.vkey, COSIGNATURE_TYPES) == witness.key
    with pytest.raises(InvalidInputError, match="type accepted here"):
        parse_verifier_key(witness.key.vkey)


def test_signature_types_are_those_assigned_or_private_by_the_specification() -> None:
    assert ED25519_COSIGNATURE.identifier == b"\x04"
    assert ML_DSA_44_COSIGNATURE.identifier == b"\x06"
    assert ECDSA_P256_COSIGNATURE.identifier[0] == 0xFF
    assert len(ECDSA_P256_COSIGNATURE.identifier) > 16


def test_cosigning_and_signing_with_one_key_have_different_key_ids() -> None:
    for public_key in (LOG_SIGNER.public_key(), generate_private_key().public_key()):
        assert witness_key(ORIGIN, public_key).key_id != log_key(ORIGIN, public_key).key_id


@pytest.mark.hostile
@each_witness
@given(st.data())
def test_no_bit_of_a_cosignature_can_be_flipped(witness: Witness, data: st.DataObject) -> None:
    changed = bytearray(LINES[witness].signature)
    position = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(IntegrityError):
        witness.key.verify(TEXT, bytes(changed))


@pytest.mark.hostile
@each_witness
@given(st.binary(max_size=100) | st.binary(max_size=20).map(lambda data: b"\xff" * 8 + data))
def test_an_arbitrary_cosignature_fails_as_a_signature(witness: Witness, data: bytes) -> None:
    with pytest.raises(IntegrityError):
        witness.key.verify(TEXT, data)


@pytest.mark.hostile
@each_witness
@pytest.mark.parametrize(
    "other",
    [
        Checkpoint("other.example/log", CHECKPOINT.size, CHECKPOINT.root),
        Checkpoint(ORIGIN, 43, CHECKPOINT.root),
        Checkpoint(ORIGIN, 42, leaf_hash(b"other")),
    ],
    ids=["origin", "size", "root"],
)
def test_a_cosignature_covers_the_whole_checkpoint(witness: Witness, other: Checkpoint) -> None:
    line = cosign(other, witness.key, witness.signer, unix_seconds=NOW)
    with pytest.raises(IntegrityError, match=witness.key.name):
        verified_cosignatures(noted(line), [witness.key])


@pytest.mark.hostile
def test_a_plain_signature_is_no_cosignature_and_the_reverse() -> None:
    plain = log_key("b.example/w", LOG_SIGNER.public_key())
    timed = witness_key("b.example/w", LOG_SIGNER.public_key())
    with pytest.raises(IntegrityError):
        timed.verify(TEXT, bytes(8) + sign_note(TEXT, plain, LOG_SIGNER).signature)
    with pytest.raises(IntegrityError):
        plain.verify(TEXT, cosign(CHECKPOINT, timed, LOG_SIGNER, unix_seconds=NOW).signature[8:])


@pytest.mark.hostile
@each_witness
def test_a_time_out_of_range_is_refused_though_it_is_signed(witness: Witness) -> None:
    key, signer = witness
    for unix_seconds in (MAX_TIME, MAX_TIME + 1):
        # What is signed is laid out here, as the product refuses to.
        time = unix_seconds.to_bytes(8)
        in_range, _ = key.signature_type.statement(key.name, TEXT, bytes(8))
        message = in_range.replace(b"time 0\n", b"time %d\n" % unix_seconds)
        if message == in_range:
            label = 12 + 1 + len(key.name)
            message = message[:label] + time + message[label + 8 :]
        signature = time + signer.sign(message)
        if unix_seconds == MAX_TIME:
            key.verify(TEXT, signature)
        else:
            with pytest.raises(IntegrityError):
                key.verify(TEXT, signature)


@pytest.mark.hostile
@pytest.mark.parametrize("make", [ed25519_witness, p256_witness])
def test_only_checkpoints_are_cosigned(make: Callable[[], Witness]) -> None:
    key, signer = make()
    text = b"no checkpoint\n"
    signature = NOW.to_bytes(8) + signer.sign(b"cosignature/v1\ntime %d\n%b" % (NOW, text))
    with pytest.raises(IntegrityError):
        key.verify(text, signature)


@pytest.mark.parametrize("unix_seconds", [-1, 0, 1 << 63])
def test_a_time_out_of_range_is_not_signed(unix_seconds: int) -> None:
    key, signer = WITNESSES[0]
    with pytest.raises(InvalidInputError, match="time"):
        cosign(CHECKPOINT, key, signer, unix_seconds=unix_seconds)


def test_cosigning_with_another_key_than_the_named_one_is_noticed() -> None:
    with pytest.raises(IntegrityError):
        cosign(CHECKPOINT, WITNESSES[0].key, LOG_SIGNER, unix_seconds=NOW)


def test_a_name_too_long_for_the_ml_dsa_message_is_refused() -> None:
    # Two hundred characters may be more bytes than the message's length prefix counts.
    key = VerifierKey("é" * 200, ML_DSA_44_COSIGNATURE, WITNESSES[2].key.public_key)
    with pytest.raises(InvalidInputError, match="255"):
        cosign(CHECKPOINT, key, WITNESSES[2].signer, unix_seconds=NOW)
