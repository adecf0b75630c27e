"""Signed checkpoints."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.tlog.checkpoint import (
    MAX_NOTE_BYTES,
    Checkpoint,
    LogKey,
    parse_verifier_key,
    sign_checkpoint,
    verify_checkpoint,
)
from matl_common.tlog.merkle import leaf_hash

ORIGIN = "dr-study.matl.internal/log"
PRIVATE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY = LogKey(ORIGIN, PRIVATE_KEY.public_key())
CHECKPOINT = Checkpoint(ORIGIN, 42, leaf_hash(b"root"))
NOTE = sign_checkpoint(CHECKPOINT, PRIVATE_KEY)
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")


def signed_text(text: str) -> bytes:
    """A note over any text at all, properly signed."""
    signature = KEY.key_id + PRIVATE_KEY.sign(text.encode())
    return f"{text}\n\N{EM DASH} {ORIGIN} {base64.b64encode(signature).decode()}\n".encode()


def test_a_checkpoint_is_laid_out_as_specified() -> None:
    lines = NOTE.decode().split("\n")
    assert lines[:2] == [ORIGIN, "42"]
    assert base64.b64decode(lines[2]) == CHECKPOINT.root
    assert lines[3] == ""
    assert lines[4].startswith(f"\N{EM DASH} {ORIGIN} ")
    assert len(base64.b64decode(lines[4].rsplit(" ")[-1])) == 4 + 64
    assert lines[5:] == [""]


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_is_read_back_as_it_was_signed(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(ORIGIN, size, root)
    assert verify_checkpoint(sign_checkpoint(checkpoint, PRIVATE_KEY), KEY) == checkpoint


@pytest.mark.hostile
@given(st.integers(0, len(NOTE) * 8 - 1))
def test_a_note_with_any_bit_flipped_is_refused(position: int) -> None:
    changed = bytearray(NOTE)
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(MatlError):
        verify_checkpoint(bytes(changed), KEY)


@pytest.mark.hostile
@given(st.binary(max_size=300))
def test_arbitrary_bytes_fail_as_project_errors_only(data: bytes) -> None:
    with pytest.raises(MatlError):
        verify_checkpoint(data, KEY)


def test_signatures_by_unknown_keys_are_passed_over() -> None:
    witness = base64.b64encode(b"abcd" + bytes(72)).decode()
    cosigned = NOTE + f"\N{EM DASH} witness.example {witness}\n".encode()
    assert verify_checkpoint(cosigned, KEY) == CHECKPOINT


@pytest.mark.hostile
def test_a_strangers_signature_under_the_logs_name_is_refused() -> None:
    forged = sign_checkpoint(CHECKPOINT, STRANGER)
    with pytest.raises(IntegrityError, match="not signed"):
        verify_checkpoint(forged, KEY)


@pytest.mark.hostile
def test_a_checkpoint_of_another_log_is_refused_though_the_key_signed_it() -> None:
    root = base64.b64encode(CHECKPOINT.root).decode()
    with pytest.raises(IntegrityError, match="another log"):
        verify_checkpoint(signed_text(f"other.example/log\n42\n{root}\n"), KEY)


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
    ],
)
def test_a_signed_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    root = base64.b64encode(CHECKPOINT.root).decode()
    assert verify_checkpoint(signed_text(f"{ORIGIN}\n42\n{root}\n"), KEY) == CHECKPOINT
    with pytest.raises(InvalidInputError):
        verify_checkpoint(signed_text(text.replace("ROOT", root)), KEY)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "extra",
    [
        "x\n",
        "\N{EM DASH} a b c\n",
        "\N{EM DASH} a AAAA\n",
        "\N{EM DASH} a ?\n",
        "\n",
        "- a AAAAAAAA\n",
    ],
)
def test_a_malformed_signature_line_spoils_the_note(extra: str) -> None:
    with pytest.raises(MatlError):
        verify_checkpoint(NOTE + extra.encode(), KEY)


@pytest.mark.hostile
def test_a_signature_has_one_encoding_only() -> None:
    # Of the last character before the padding, two bits say nothing.
    assert NOTE.endswith(b"=\n")
    respelt = NOTE[:-3] + bytes([NOTE[-3] + 1]) + NOTE[-2:]
    with pytest.raises(InvalidInputError, match="canonical"):
        verify_checkpoint(respelt, KEY)


@pytest.mark.hostile
def test_the_size_of_a_note_is_bounded() -> None:
    with pytest.raises(InvalidInputError, match="bytes"):
        verify_checkpoint(NOTE + b"x" * MAX_NOTE_BYTES, KEY)


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "a\u200bb", "a" * 201])
def test_an_origin_that_would_break_the_format_is_not_signed(origin: str) -> None:
    with pytest.raises(InvalidInputError):
        sign_checkpoint(Checkpoint(origin, 1, bytes(32)), PRIVATE_KEY)


def test_a_verifier_key_is_read_back_as_it_was_written() -> None:
    assert verify_checkpoint(NOTE, parse_verifier_key(KEY.verifier_key)) == CHECKPOINT


def test_the_key_id_is_the_one_of_the_specifications_example() -> None:
    # C2SP signed-note and Go's sumdb/note publish keys whose ids anyone can recompute.
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert parse_verifier_key(vkey).key_id.hex() == "c74f20a3"


def test_a_note_signed_by_another_implementation_verifies() -> None:
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    line = (
        "\N{EM DASH} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZ"
        "SNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    # The signature holds; the text is merely not a checkpoint.
    with pytest.raises(InvalidInputError, match="three lines"):
        verify_checkpoint(f"{text}\n{line}".encode(), parse_verifier_key(vkey))


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000+AAAA",
        KEY.verifier_key.replace("log+", "lob+"),
        KEY.verifier_key[:-4],
        KEY.verifier_key + "AAAA",
    ],
)
def test_a_text_that_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_verifier_key(text)
