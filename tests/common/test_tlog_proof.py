"""Proofs that are verified offline."""

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.cosignature import cosign, witness_key
from matl_common.tlog.merkle import Frontier, grow, inclusion_proof, leaf_hash
from matl_common.tlog.note import Note
from matl_common.tlog.policy import threshold_policy
from matl_common.tlog.proof import (
    MAX_EXTRA_BYTES,
    MAX_PROOF_BYTES,
    TlogProof,
    encode_proof,
    parse_proof,
    verify_proof,
)

ORIGIN = "dr-study.matl.internal/log"
LOG_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
LOG_KEY = log_key(ORIGIN, LOG_SIGNER.public_key())
SIGNERS = [Ed25519PrivateKey.from_private_bytes(bytes([each]) * 32) for each in (1, 2, 3)]
WITNESSES = {
    name: witness_key(f"{name}.example", signer.public_key())
    for name, signer in zip("bcd", SIGNERS, strict=True)
}
POLICY = threshold_policy([LOG_KEY], WITNESSES, threshold=2)
NOW = 1_679_315_147

SIZE, INDEX = 21, 13
LEAVES = [leaf_hash(bytes([number])) for number in range(SIZE)]
FRONTIER, RUNS = grow(Frontier(), LEAVES)
NODES = {
    (run.level, index): value for run in RUNS for index, value in enumerate(run.hashes, run.first)
}
CHECKPOINT = Checkpoint(ORIGIN, SIZE, FRONTIER.root())
SIGNED = sign_checkpoint(CHECKPOINT, LOG_KEY, LOG_SIGNER)
COSIGNATURES = tuple(
    cosign(CHECKPOINT, key, signer, unix_seconds=NOW)
    for key, signer in zip(WITNESSES.values(), SIGNERS, strict=True)
)
NOTE = Note(SIGNED.note.text, (*SIGNED.note.signatures, *COSIGNATURES[:2]))
PATH = tuple(inclusion_proof(INDEX, SIZE, lambda level, index: NODES[level, index]))
PROOF = TlogProof(INDEX, PATH, NOTE)
ENCODED = encode_proof(PROOF)


def test_a_proof_verifies_with_nothing_but_the_leaf_and_a_policy() -> None:
    verified = verify_proof(parse_proof(ENCODED), LEAVES[INDEX], POLICY)
    assert verified.checkpoint == CHECKPOINT


def test_a_proof_is_laid_out_as_specified() -> None:
    lines = encode_proof(replace(PROOF, extra=b"extra data")).decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == f"extra {base64.b64encode(b'extra data').decode()}"
    assert lines[2] == f"index {INDEX}"
    end = 3 + len(PATH)
    assert [base64.b64decode(line) for line in lines[3:end]] == list(PATH)
    assert lines[end] == ""
    assert "\n".join(lines[end + 1 :]).encode() == NOTE.encode()


@given(
    st.integers(0, 2**63 - 2),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.none() | st.binary(max_size=100),
)
def test_a_proof_is_read_back_as_it_was_written(
    index: int, path: list[bytes], extra: bytes | None
) -> None:
    proof = TlogProof(index, tuple(path), NOTE, extra)
    assert parse_proof(encode_proof(proof)) == proof


@pytest.mark.hostile
@given(st.integers(0, len(ENCODED) * 8 - 1))
def test_no_bit_of_a_proof_can_be_flipped(position: int) -> None:
    changed = bytearray(ENCODED)
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(MatlError):
        verify_proof(parse_proof(bytes(changed)), LEAVES[INDEX], POLICY)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("proof", "why"),
    [
        (replace(PROOF, index=12), "does not show"),
        (replace(PROOF, index=SIZE), "no leaf"),
        (replace(PROOF, path=PATH[:-1]), "does not show"),
        (replace(PROOF, path=(*PATH, PATH[0])), "too long"),
        (replace(PROOF, checkpoint=Note(NOTE.text, NOTE.signatures[1:])), "known log"),
        (replace(PROOF, checkpoint=Note(NOTE.text, NOTE.signatures[:2])), "lacks the quorum"),
    ],
)
def test_a_proof_that_misses_one_thing_is_refused_for_it(proof: TlogProof, why: str) -> None:
    with pytest.raises(IntegrityError, match=why):
        verify_proof(proof, LEAVES[INDEX], POLICY)


@pytest.mark.hostile
def test_a_proof_of_one_leaf_proves_no_other() -> None:
    for index, leaf in enumerate(LEAVES):
        if index != INDEX:
            with pytest.raises(IntegrityError, match="does not show"):
                verify_proof(PROOF, leaf, POLICY)
    with pytest.raises(IntegrityError, match="32 bytes"):
        verify_proof(PROOF, b"no hash", POLICY)


@pytest.mark.hostile
@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda data: ENCODED[:120] + data))
def test_arbitrary_bytes_are_refused_as_a_proof_in_one_way_only(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_proof(data)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "change",
    [
        ("proof@v1", "proof@v2"),
        (f"index {INDEX}\n", ""),
        (f"index {INDEX}", f"index 0{INDEX}"),
        (f"index {INDEX}", "index -1"),
        (f"index {INDEX}", "index 9223372036854775807"),
        (f"index {INDEX}", "index \u0661"),
        (f"index {INDEX}", f"index {INDEX}\nextra AAAA"),
        (f"index {INDEX}", f"extra ?\nindex {INDEX}"),
        (f"index {INDEX}", f"index {INDEX}\nAAAA"),
        (f"index {INDEX}\n", f"index {INDEX}\r\n"),
        (f"index {INDEX}", f"index {INDEX}\n" + "\n".join(["A" * 43 + "="] * 63)),
        ("\n\n", "\n"),
    ],
)
def test_a_text_that_is_no_proof_is_refused(change: tuple[str, str]) -> None:
    assert change[0] in ENCODED.decode()
    with pytest.raises(InvalidInputError):
        parse_proof(ENCODED.decode().replace(*change, 1).encode())


def test_values_that_cannot_stand_in_a_proof_are_refused() -> None:
    for index in (-1, 1 << 63):
        with pytest.raises(InvalidInputError):
            replace(PROOF, index=index)
    for path in ((bytes(31),), (bytes(32),) * 64):
        with pytest.raises(InvalidInputError):
            replace(PROOF, path=path)
    with pytest.raises(InvalidInputError):
        replace(PROOF, extra=bytes(MAX_EXTRA_BYTES + 1))


@pytest.mark.hostile
def test_the_size_of_a_proof_is_bounded() -> None:
    parse_proof(encode_proof(replace(PROOF, extra=bytes(MAX_EXTRA_BYTES))))
    with pytest.raises(InvalidInputError, match=f"the proof has more than {MAX_PROOF_BYTES}"):
        parse_proof(ENCODED + b"x" * MAX_PROOF_BYTES)
