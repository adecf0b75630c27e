"""What a log's answer about a hospital's update is worth."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.ids import Digest, digest_of
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.entry import entry_of
from matl_common.tlog.leaf import encode_leaf, parse_leaf, plaintext_digest
from matl_common.tlog.merkle import leaf_hash, merkle_root
from matl_common.tlog.policy import NO_QUORUM, Policy
from matl_common.tlog.proof import TlogProof, encode_proof, parse_proof
from matl_common.tlog.submission import (
    Claim,
    Shown,
    Worth,
    encode_shown,
    judge,
    open_submission_proof,
    shown_in,
)
from tests.common.test_log_evidence import FACTS, LOG_KEY, LOG_SIGNER, NODE, ORIGIN, SEALED, UPDATE

ENTRY = entry_of(FACTS).data
LEAF = parse_leaf(SEALED.leaf)
FIRST = leaf_hash(b"before")


def answered(leaf: bytes, **changes: object) -> tuple[Claim, Shown, Checkpoint]:
    """A log of two leaves that holds just what its receipt promises."""
    hashed = leaf_hash(leaf)
    claim = Claim(1, Digest(hashed.hex()), NODE, 1, UPDATE)
    shown = Shown(leaf, (FIRST,), SEALED.salt, ENTRY)
    checkpoint = Checkpoint(ORIGIN, 2, merkle_root([FIRST, hashed]))
    return claim, replace(shown, **changes), checkpoint  # type: ignore[arg-type]  # any field


def leaf_with(**changes: object) -> bytes:
    return encode_leaf(replace(LEAF, index=1, **changes))  # type: ignore[arg-type]  # any field


def worth(leaf: bytes, **changes: object) -> Worth:
    return judge(*answered(leaf, **changes)).worth


def test_the_promised_leaf_with_its_entry_holds() -> None:
    assert worth(leaf_with()) is Worth.HOLDS


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "another.matl.internal/log"},
        {"event": "update_refused"},
        {"node": "hospital_z"},
        {"node": None},
        {"round": 2},
    ],
)
def test_a_promised_leaf_about_something_else_is_no_admission_whatever_its_entry_says(
    changes: dict[str, object],
) -> None:
    assert worth(leaf_with(**changes)) is Worth.CONTRADICTED
    assert worth(leaf_with(**changes), entry=b"", salt=b"") is Worth.CONTRADICTED


def test_a_promised_leaf_of_another_place_or_of_no_form_is_no_admission() -> None:
    assert worth(encode_leaf(replace(LEAF, index=2))) is Worth.CONTRADICTED
    assert worth(b"no leaf") is Worth.CONTRADICTED


def test_an_entry_is_withheld_or_not_the_leafs() -> None:
    assert worth(leaf_with(), entry=b"") is Worth.WITHHELD
    assert worth(leaf_with(), salt=bytes(31)) is Worth.BROKEN
    assert worth(leaf_with(), salt=bytes([1]) * 32) is Worth.BROKEN
    # It names the update, but it is not what the leaf commits to.
    assert worth(leaf_with(), entry=entry_of({**FACTS, "norm": 1.0}).data) is Worth.BROKEN


def test_an_entry_that_the_leaf_commits_to_must_name_the_update() -> None:
    for entry in (entry_of({**FACTS, "update": digest_of(b"another")}).data, b"no entry"):
        leaf = leaf_with(plaintext=plaintext_digest(SEALED.salt, entry))
        assert worth(leaf, entry=entry) is Worth.CONTRADICTED


def test_a_stored_proof_is_opened_with_public_keys_and_not_if_anything_in_it_was_changed() -> None:
    _, shown, checkpoint = answered(leaf_with())
    note = sign_checkpoint(checkpoint, LOG_KEY, LOG_SIGNER).note
    proof = TlogProof(1, shown.path, note, encode_shown(shown))
    stored = parse_proof(encode_proof(proof))
    assert shown_in(stored) == shown
    policy = Policy((LOG_KEY,), {}, (), NO_QUORUM)
    assert open_submission_proof(stored, policy).facts == FACTS
    other = log_key("other.matl.internal/log", LOG_SIGNER.public_key())
    with pytest.raises(IntegrityError):
        open_submission_proof(stored, replace(policy, logs=(other,)))
    for changed in (
        replace(shown, entry=entry_of({**FACTS, "round": 2}).data),
        replace(shown, salt=bytes([1]) * 32),
        replace(shown, leaf=leaf_with(round=2)),
    ):
        with pytest.raises(IntegrityError):
            open_submission_proof(replace(proof, extra=encode_shown(changed)), policy)
    with pytest.raises(IntegrityError):
        open_submission_proof(replace(proof, path=(bytes(32),)), policy)


@given(st.binary(max_size=300) | st.none())
def test_no_extra_bytes_make_the_parser_fail_in_another_way(extra: bytes | None) -> None:
    _, _, checkpoint = answered(leaf_with())
    note = sign_checkpoint(checkpoint, LOG_KEY, LOG_SIGNER).note
    with pytest.raises(InvalidInputError):
        shown_in(TlogProof(1, (), note, extra))
