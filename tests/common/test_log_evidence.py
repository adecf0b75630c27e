"""Evidence against a log, as a third party checks it: what it proves, and what it does not."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from matl.cli import app
from matl_common import signing
from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.identity.keys import public_key_pem
from matl_common.ids import Digest, NodeId, RoundId, digest_of
from matl_common.log_evidence import (
    MAX_EVIDENCE_BYTES,
    SHOWS,
    Kind,
    LogEvidence,
    Weight,
    check_evidence,
    encode_evidence,
    parse_evidence,
)
from matl_common.protocol import PayloadType, Receipt
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.entry import entry_of
from matl_common.tlog.merkle import consistency_proof, inclusion_proof, leaf_hash, merkle_root
from matl_common.tlog.note import Note
from matl_common.tlog.sealing import data_key, seal
from matl_common.tlog.submission import Shown
from matl_common.wire.documents import format_receipt
from tests.logs import MOMENT
from tests.signers import SoftwareSigner

ORIGIN = "dr-study.matl.internal/log"
LOG_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
LOG_KEY = log_key(ORIGIN, LOG_SIGNER.public_key())
COORDINATOR = SoftwareSigner(ec.derive_private_key(7, ec.SECP256R1()))
NODE, UPDATE, INDEX, SIZE = NodeId("hospital_b"), digest_of(b"update"), 3, 6
FACTS = {"event": "update_admitted", "at": MOMENT, "node": NODE, "round": 1, "update": UPDATE}
ENTRY = entry_of(FACTS)
SEALED = seal(
    ENTRY, origin=ORIGIN, index=INDEX, key=data_key("2026-11", bytes(32)), random=bytes(44)
)
HASHES = [leaf_hash(bytes([number])) for number in range(SIZE)]
HASHES[INDEX] = leaf_hash(SEALED.leaf)
OTHERS = [leaf_hash(bytes([number, number])) for number in range(SIZE)]


def note(size: int, hashes: list[bytes] = HASHES) -> Note:
    checkpoint = Checkpoint(ORIGIN, size, merkle_root(hashes[:size]))
    return sign_checkpoint(checkpoint, LOG_KEY, LOG_SIGNER).note


def proof(old: int, new: int, hashes: list[bytes] = HASHES) -> tuple[bytes, ...]:
    return tuple(
        consistency_proof(
            old, new, lambda level, at: merkle_root(hashes[at << level : (at + 1) << level])
        )
    )


def shown(**changes: object) -> Shown:
    path = inclusion_proof(
        INDEX, SIZE, lambda level, at: merkle_root(HASHES[at << level : (at + 1) << level])
    )
    found = Shown(SEALED.leaf, tuple(path), SEALED.salt, ENTRY.data)
    return replace(found, **changes)  # type: ignore[arg-type]  # tests replace any field


def receipt(**changes: object) -> signing.Envelope:
    promised = Receipt(
        federation_id="dr-study",
        study_id="study-1",
        round_id=RoundId(1),
        node_id=NODE,
        update_digest=UPDATE,
        log_index=INDEX,
        log_leaf_hash=Digest(HASHES[INDEX].hex()),
        admitted_at=datetime(2026, 11, 28, tzinfo=UTC),
    )
    payload = format_receipt(replace(promised, **changes))  # type: ignore[arg-type]  # as above
    return signing.sign(PayloadType.RECEIPT, payload, COORDINATOR)


def evidence(kind: Kind, *checkpoints: Note, **more: object) -> LogEvidence:
    found = LogEvidence(
        kind, "as it was", NODE, datetime(2026, 11, 28, tzinfo=UTC), tuple(checkpoints)
    )
    return replace(found, **more)  # type: ignore[arg-type]  # as above


ELSEWHERE = receipt(log_leaf_hash=digest_of(b"another leaf"))
FORK = evidence(Kind.FORK, note(5), note(5, OTHERS))
ROLLBACK = evidence(Kind.ROLLBACK, note(5), note(4))
INCONSISTENT = evidence(Kind.INCONSISTENT, note(4), note(5, OTHERS), proof=proof(4, 5))
CONTRADICTED = evidence(Kind.CONTRADICTED, note(SIZE), receipt=ELSEWHERE, shown=shown())
REFUSED = evidence(Kind.UNPROVED, note(SIZE), receipt=receipt())
WITHHELD = replace(REFUSED, shown=shown(entry=b"", salt=b""))
BROKEN = replace(REFUSED, shown=shown(path=shown().path[::-1]))
ALL = {
    "fork": (FORK, Weight.PROVEN),
    "rollback": (ROLLBACK, Weight.TESTIMONY),
    "inconsistent": (INCONSISTENT, Weight.TESTIMONY),
    "contradicted": (CONTRADICTED, Weight.PROVEN),
    "refused": (REFUSED, Weight.TESTIMONY),
    "withheld": (WITHHELD, Weight.TESTIMONY),
    "broken": (BROKEN, Weight.TESTIMONY),
}


@pytest.mark.parametrize("name", ALL)
def test_evidence_survives_its_file_and_carries_as_far_as_it_says(name: str) -> None:
    found, weight = ALL[name]
    written = encode_evidence(found)
    assert parse_evidence(written) == found
    told = json.loads(written)
    assert SHOWS[found.kind] in told["README"]
    finding = check_evidence(found, log_key=LOG_KEY, coordinator_key=COORDINATOR.public_key)
    assert finding.weight is weight
    # Whose word it rests on is in the README, too.
    assert ("word" in told["README"]) is (weight is Weight.TESTIMONY)


@pytest.mark.parametrize(
    "harmless",
    [
        evidence(Kind.FORK, note(5), note(5)),
        evidence(Kind.FORK, note(5), note(4, OTHERS)),
        evidence(Kind.ROLLBACK, note(5), note(5)),
        evidence(Kind.ROLLBACK, note(4), note(5)),
        evidence(Kind.INCONSISTENT, note(4), note(5), proof=proof(4, 5)),
        evidence(Kind.CONTRADICTED, note(SIZE), receipt=receipt(), shown=shown()),
        evidence(Kind.UNPROVED, note(SIZE), receipt=receipt(), shown=shown()),
        evidence(Kind.CONTRADICTED, note(SIZE), receipt=receipt()),
        replace(WITHHELD, kind=Kind.CONTRADICTED),
        replace(BROKEN, kind=Kind.CONTRADICTED),
    ],
)
def test_what_an_honest_log_does_is_refuted(harmless: LogEvidence) -> None:
    with pytest.raises(IntegrityError):
        check_evidence(harmless, log_key=LOG_KEY, coordinator_key=COORDINATOR.public_key)


def test_whoever_makes_documents_up_proves_nothing() -> None:
    forger = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
    key = log_key(ORIGIN, forger.public_key())
    made_up = sign_checkpoint(Checkpoint(ORIGIN, 5, bytes(32)), key, forger).note
    with pytest.raises(IntegrityError):
        check_evidence(evidence(Kind.FORK, note(5), made_up), log_key=LOG_KEY)
    other = SoftwareSigner(ec.derive_private_key(8, ec.SECP256R1())).public_key
    for found in (CONTRADICTED, REFUSED):
        with pytest.raises(IntegrityError):
            check_evidence(found, log_key=LOG_KEY, coordinator_key=other)
        with pytest.raises(InvalidInputError, match="public signing key"):
            check_evidence(found, log_key=LOG_KEY)


@pytest.mark.parametrize(
    "lacking",
    [
        evidence(Kind.FORK, note(5)),
        evidence(Kind.INCONSISTENT, note(5)),
        evidence(Kind.UNPROVED, note(5)),
        evidence(Kind.CONTRADICTED, note(5), note(4), receipt=ELSEWHERE, shown=shown()),
    ],
)
def test_evidence_that_lacks_a_document_is_none(lacking: LogEvidence) -> None:
    with pytest.raises(InvalidInputError, match="lacks"):
        check_evidence(lacking, log_key=LOG_KEY, coordinator_key=COORDINATOR.public_key)


@given(st.binary(max_size=2000))
def test_no_bytes_make_the_parser_fail_in_another_way(data: bytes) -> None:
    with pytest.raises(MatlError):
        parse_evidence(data)


@given(st.data())
def test_neither_does_changed_evidence(data: st.DataObject) -> None:
    written = bytearray(encode_evidence(CONTRADICTED))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(written) - 1))
        written[at] = data.draw(st.integers(0, 255))
    try:
        found = parse_evidence(bytes(written))
        check_evidence(found, log_key=LOG_KEY, coordinator_key=COORDINATOR.public_key)
    except MatlError:
        pass


def test_a_text_that_is_not_unicode_is_refused() -> None:
    lone = encode_evidence(FORK).replace(b"as it was", b"\\ud800")
    for written in (
        lone,
        lone.replace(b'"checkpoints": [\n    "', b'"checkpoints": [\n    "\\ud800'),
    ):
        with pytest.raises(InvalidInputError):
            parse_evidence(written)


def test_evidence_of_any_length_is_not_read() -> None:
    with pytest.raises(InvalidInputError, match="more than"):
        parse_evidence(b" " * (MAX_EVIDENCE_BYTES + 1))


# The command.


def run(folder: Path, data: bytes, *arguments: str) -> Result:
    (folder / "evidence.json").write_bytes(data)
    (folder / "log.vkey").write_text(LOG_KEY.vkey + "\n")
    (folder / "coordinator.pub").write_bytes(public_key_pem(COORDINATOR.public_key))
    command = ["audit", "evidence", str(folder / "evidence.json")]
    return CliRunner().invoke(app, [*command, "--log-key", str(folder / "log.vkey"), *arguments])


def test_the_command_says_what_evidence_is_worth_in_its_exit_status_too(tmp_path: Path) -> None:
    key = ("--coordinator-key", str(tmp_path / "coordinator.pub"))
    proven = run(tmp_path, encode_evidence(FORK))
    assert (proven.exit_code, proven.stdout[:7]) == (0, "PROVEN:")
    assert "Found by hospital_b at 2026-11-28" in proven.stdout
    told = run(tmp_path, encode_evidence(ROLLBACK), "--json")
    assert told.exit_code == 3
    assert json.loads(told.stdout)["weight"] == "testimony"
    harmless = encode_evidence(evidence(Kind.FORK, note(5), note(5)))
    refuted = run(tmp_path, harmless)
    assert (refuted.exit_code, "REFUTED" in refuted.stderr) == (1, True)
    assert run(tmp_path, encode_evidence(CONTRADICTED), *key).exit_code == 0
    assert run(tmp_path, encode_evidence(CONTRADICTED)).exit_code == 2
    assert run(tmp_path, b"no evidence").exit_code == 2
