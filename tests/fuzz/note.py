"""Signed notes, checkpoints and keys of the log."""

from __future__ import annotations

from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from matl_common.errors import MatlError
from matl_common.tlog.checkpoint import (
    Checkpoint,
    log_key,
    open_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
)
from matl_common.tlog.cosignature import cosign, witness_key
from matl_common.tlog.merkle import leaf_hash
from matl_common.tlog.note import Note, parse_note, parse_verifier_key
from tests.fuzz.target import Target

ORIGIN = "dr-study.matl.internal/log"
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY = log_key(ORIGIN, SIGNER.public_key())
LEAF = leaf_hash(b"leaf")
CHECKPOINT = Checkpoint(ORIGIN, 1, LEAF)
SIGNED = sign_checkpoint(CHECKPOINT, KEY, SIGNER)
WITNESS = witness_key("b.example", SIGNER.public_key())
NOTE = Note(
    SIGNED.note.text,
    (*SIGNED.note.signatures, cosign(CHECKPOINT, WITNESS, SIGNER, unix_seconds=1_679_315_147)),
)


def _run(data: bytes) -> None:
    for parse in (parse_checkpoint, lambda each: open_checkpoint(each, [KEY])):
        with suppress(MatlError):
            parse(data)
    with suppress(MatlError, UnicodeDecodeError):
        parse_verifier_key(data.decode())
    assert parse_note(data).encode() == data


TARGET = Target(run=_run, seeds=[SIGNED.note.encode(), NOTE.encode()])
