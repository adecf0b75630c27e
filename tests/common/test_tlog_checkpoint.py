"""Signed checkpoints."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.identity.keys import generate_private_key
from matl_common.tlog.checkpoint import (
    Checkpoint,
    encode_checkpoint,
    log_key,
    open_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
)
from matl_common.tlog.merkle import leaf_hash
from matl_common.tlog.note import Note, NoteSignature, sign_note
from tests.signers import SoftwareSigner

ORIGIN = "dr-study.matl.internal/log"
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY = log_key(ORIGIN, SIGNER.public_key())
CHECKPOINT = Checkpoint(ORIGIN, 42, leaf_hash(b"root"))
SIGNED = sign_checkpoint(CHECKPOINT, KEY, SIGNER)
ENCODED = SIGNED.note.encode()
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")


def signed_text(text: str) -> bytes:
    """A note over any text at all, properly signed."""
    return Note(text.encode(), (sign_note(text.encode(), KEY, SIGNER),)).encode()


def test_a_checkpoint_is_laid_out_as_specified() -> None:
    lines = ENCODED.decode().split("\n")
    assert lines[:2] == [ORIGIN, "42"]
    assert base64.b64decode(lines[2]) == CHECKPOINT.root
    assert lines[3] == ""
    assert lines[4].startswith(f"\N{EM DASH} {ORIGIN} ")
    assert len(base64.b64decode(lines[4].rsplit(" ")[-1])) == 4 + 64
    assert lines[5:] == [""]


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_is_read_back_as_it_was_signed(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(ORIGIN, size, root)
    signed = sign_checkpoint(checkpoint, KEY, SIGNER)
    assert open_checkpoint(signed.note.encode(), [KEY]) == signed
    assert signed.checkpoint == checkpoint


def test_a_log_may_sign_with_p256_and_change_its_key() -> None:
    signer = SoftwareSigner(generate_private_key())
    key = log_key(ORIGIN, signer.public_key)
    signed = sign_checkpoint(CHECKPOINT, key, signer)
    for known in ([key], [KEY, key]):
        assert open_checkpoint(signed.note.encode(), known) == signed
    with pytest.raises(IntegrityError, match="known log"):
        open_checkpoint(signed.note.encode(), [KEY])


@pytest.mark.hostile
@given(st.integers(0, len(ENCODED) * 8 - 1))
def test_a_checkpoint_with_any_bit_flipped_is_refused(position: int) -> None:
    changed = bytearray(ENCODED)
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(MatlError):
        open_checkpoint(bytes(changed), [KEY])


@pytest.mark.hostile
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_as_a_checkpoint_in_one_way_only(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        open_checkpoint(data, [KEY])
    with pytest.raises(InvalidInputError):
        parse_checkpoint(data)


def test_lines_by_unknown_keys_are_carried_and_prove_nothing() -> None:
    witness = NoteSignature("witness.example", b"abcd", bytes(72))
    cosigned = Note(SIGNED.note.text, (*SIGNED.note.signatures, witness))
    assert open_checkpoint(cosigned.encode(), [KEY]).note == cosigned
    with pytest.raises(IntegrityError, match="known log"):
        open_checkpoint(Note(SIGNED.note.text, (witness,)).encode(), [KEY])


@pytest.mark.hostile
def test_a_strangers_signature_under_the_logs_name_is_refused() -> None:
    forged = sign_checkpoint(CHECKPOINT, log_key(ORIGIN, STRANGER.public_key()), STRANGER)
    with pytest.raises(IntegrityError, match="known log"):
        open_checkpoint(forged.note.encode(), [KEY])


@pytest.mark.hostile
def test_a_checkpoint_of_another_log_is_refused_though_a_known_key_signed_it() -> None:
    root = base64.b64encode(CHECKPOINT.root).decode()
    other = signed_text(f"other.example/log\n42\n{root}\n")
    other_key = log_key("other.example/log", STRANGER.public_key())
    with pytest.raises(IntegrityError, match="another log"):
        open_checkpoint(other, [KEY, other_key])


def test_a_log_does_not_sign_anothers_checkpoints() -> None:
    with pytest.raises(IntegrityError, match="does not sign"):
        sign_checkpoint(Checkpoint("other.example/log", 1, bytes(32)), KEY, SIGNER)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n042\nROOT\n",
        f"{ORIGIN}\n-1\nROOT\n",
        f"{ORIGIN}\n٤٢\nROOT\n",
        f"{ORIGIN}\n9999999999999999999\nROOT\n",
        f"{ORIGIN}\n42\nROOT\nextension\n",
        f"{ORIGIN}\n42\n",
        f"{ORIGIN}\n42\nAAAA\n",
        f"{ORIGIN}\n42\nROOT \n",
        f"{ORIGIN}\n42\n\nROOT\n",
        "other log\n42\nROOT\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    root = base64.b64encode(CHECKPOINT.root).decode()
    assert open_checkpoint(signed_text(f"{ORIGIN}\n42\n{root}\n"), [KEY]) == SIGNED
    with pytest.raises(InvalidInputError):
        open_checkpoint(signed_text(text.replace("ROOT", root)), [KEY])


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint("a b", 1, bytes(32)),
        Checkpoint("a\nb", 1, bytes(32)),
        Checkpoint(ORIGIN, -1, bytes(32)),
        Checkpoint(ORIGIN, 1 << 63, bytes(32)),
        Checkpoint(ORIGIN, 1, bytes(31)),
    ],
    ids=repr,
)
def test_a_statement_that_would_break_the_format_is_not_encoded(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidInputError):
        encode_checkpoint(checkpoint)
