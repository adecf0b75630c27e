"""Evidence that a log misbehaved: a file that a third party can check with public keys alone.

A hospital writes one before it stops. Some evidence proves what it says to anyone; other
evidence shows signed documents, and that the log gave this answer rests on the hospital's word.
``check_evidence`` says which. Nothing here keeps files or asks a log.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matl_common import signing
from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.ids import NodeId, parse_node_id
from matl_common.protocol import PayloadType, Receipt
from matl_common.signing import Envelope, encode_envelope, parse_envelope
from matl_common.tlog.checkpoint import Checkpoint, verify_checkpoint
from matl_common.tlog.merkle import verify_consistency
from matl_common.tlog.note import Note, VerifierKey, decode_base64, parse_note
from matl_common.tlog.submission import Claim, Shown, Worth, judge
from matl_common.validation import problems_in
from matl_common.wire.documents import parse_receipt

MAX_EVIDENCE_BYTES = 4 << 20


class Kind(StrEnum):
    """What a log did."""

    FORK = "fork"
    ROLLBACK = "rollback"
    INCONSISTENT = "inconsistent"
    CONTRADICTED = "contradicted"
    UNPROVED = "unproved"


SHOWS = {
    Kind.FORK: (
        "The log's key signed two different histories of one size: `checkpoints` holds both. The "
        "two signatures alone prove it."
    ),
    Kind.ROLLBACK: (
        "The log signed the first checkpoint and then offered the second, which is of fewer "
        "leaves. Both signatures can be verified; that the second was offered after the first "
        "rests on the hospital's word."
    ),
    Kind.INCONSISTENT: (
        "The log signed both checkpoints, and `proof`, which it gave for it, does not show that "
        "the second extends the first. Both signatures can be verified; that the log gave this "
        "proof rests on the hospital's word. A log that kept its leaves can give a right one to "
        "anybody who asks."
    ),
    Kind.CONTRADICTED: (
        "The coordinator signed `receipt`, and `shown` proves that the log does not hold what it "
        "promises. The signatures and the path prove it."
    ),
    Kind.UNPROVED: (
        "The coordinator signed `receipt`, and did not show, when it was asked again and again, "
        "that the log holds what it promises. The signatures can be verified; what was answered "
        "rests on the hospital's word. A log that holds the leaf can show it to anybody who asks."
    ),
}


@dataclass(frozen=True, slots=True)
class LogEvidence:
    """One finding, with the documents it rests on.

    Attributes:
        kind: what the log did.
        why: the same in the words of the check that failed.
        node_id: the hospital that found it.
        found_at: when, by its clock.
        checkpoints: signed by the log. Of two, the hospital had cosigned the first; a single
            one is what a receipt's leaf was looked for in.
        proof: the consistency proof that was given from the first to the second.
        receipt: signed by the coordinator.
        shown: what the log showed for the receipt, if anything.
    """

    kind: Kind
    why: str
    node_id: NodeId
    found_at: datetime
    checkpoints: tuple[Note, ...]
    proof: tuple[bytes, ...] = ()
    receipt: Envelope | None = None
    shown: Shown | None = None


class Weight(Enum):
    """How far evidence carries."""

    PROVEN = "proven"
    TESTIMONY = "testimony"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a third party may conclude."""

    weight: Weight
    says: str


def claim_of(receipt: Receipt) -> Claim:
    """What a receipt promises of the log."""
    return Claim(
        index=receipt.log_index,
        leaf_hash=receipt.log_leaf_hash,
        node=receipt.node_id,
        round=receipt.round_id,
        update=receipt.update_digest,
    )


def check_evidence(
    evidence: LogEvidence,
    *,
    log_key: VerifierKey,
    coordinator_key: EllipticCurvePublicKey | None = None,
) -> Finding:
    """Check evidence as somebody does who trusts neither the hospital nor the coordinator.

    Args:
        evidence: as read from the file.
        log_key: the log's, from elsewhere.
        coordinator_key: the public key of the coordinator's receipts, from elsewhere; needed
            where there is one in the evidence.

    Raises:
        IntegrityError: it does not show what it says, or a signature does not hold.
        InvalidInputError: a document in it is malformed, or a key is missing.
    """
    signed = [verify_checkpoint(each, [log_key]).checkpoint for each in evidence.checkpoints]
    match evidence.kind, signed:
        case Kind.FORK, [first, second]:
            return _check_fork(first, second)
        case Kind.ROLLBACK, [first, second]:
            return _check_rollback(first, second)
        case Kind.INCONSISTENT, [first, second]:
            return _check_inconsistent(first, second, evidence.proof)
        case ((Kind.CONTRADICTED | Kind.UNPROVED), [checkpoint]) if evidence.receipt is not None:
            if coordinator_key is None:
                raise InvalidInputError(
                    "the evidence rests on a receipt; give the coordinator's public signing key"
                )
            payload = signing.verify(evidence.receipt, coordinator_key, PayloadType.RECEIPT)
            return _check_receipt(evidence, parse_receipt(payload), checkpoint)
    raise InvalidInputError(f"evidence of kind {evidence.kind.value!r} lacks what it rests on")


def _check_fork(first: Checkpoint, second: Checkpoint) -> Finding:
    if first.size != second.size or first.root == second.root:
        raise IntegrityError("the two checkpoints are not of two histories of one size")
    return Finding(
        Weight.PROVEN,
        f"the key of {first.origin} signed two different histories of {first.size} leaves",
    )


def _check_rollback(first: Checkpoint, second: Checkpoint) -> Finding:
    if second.size >= first.size:
        raise IntegrityError("the second checkpoint is not of fewer leaves than the first")
    return Finding(
        Weight.TESTIMONY,
        f"{first.origin} signed {first.size} leaves and {second.size}; the hospital says that it "
        "was offered the smaller after the larger",
    )


def _check_inconsistent(first: Checkpoint, second: Checkpoint, proof: Sequence[bytes]) -> Finding:
    try:
        verify_consistency(
            old_size=first.size,
            new_size=second.size,
            old_root=first.root,
            new_root=second.root,
            proof=proof,
        )
    except IntegrityError as error:
        return Finding(
            Weight.TESTIMONY,
            f"{first.origin} signed {first.size} and {second.size} leaves; the hospital says that "
            f"it was given this proof, which does not hold: {error}. Ask the log for a proof "
            "yourself: one that holds clears it",
        )
    raise IntegrityError("the proof shows that the second checkpoint extends the first")


def _check_receipt(evidence: LogEvidence, receipt: Receipt, checkpoint: Checkpoint) -> Finding:
    claim = claim_of(receipt)
    of_update = f"the update of {claim.node} to round {claim.round}"
    if evidence.shown is not None:
        judgement = judge(claim, evidence.shown, checkpoint)
        if judgement.worth is Worth.HOLDS:
            raise IntegrityError("what the log showed proves what the receipt promises")
        if judgement.worth is Worth.CONTRADICTED:
            return Finding(
                Weight.PROVEN,
                f"the coordinator signed a receipt for {of_update} that its log does not keep: "
                f"{judgement.reason}",
            )
    if evidence.kind is Kind.CONTRADICTED:
        raise IntegrityError("nothing that the log showed contradicts the receipt")
    return Finding(
        Weight.TESTIMONY,
        f"the coordinator signed a receipt for {of_update}, leaf {claim.index}; the hospital says "
        f"that it was not shown it: {evidence.why}. Ask the log for it yourself: a proof clears it",
    )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _ShownDocument(_Strict):
    leaf: str
    path: Annotated[list[str], Field(max_length=1000)]
    salt: str
    entry: str


class _Document(_Strict):
    README: str
    version: Literal[1]
    kind: Kind
    why: str
    node_id: str
    found_at: datetime
    checkpoints: Annotated[list[str], Field(min_length=1, max_length=2)]
    proof: Annotated[list[str], Field(max_length=1000)] = []
    receipt: str | None = None
    shown: _ShownDocument | None = None


def encode_evidence(evidence: LogEvidence) -> bytes:
    """The evidence as an indented JSON document, hashes in base64, that says what it is."""
    shown = evidence.shown
    document = _Document(
        README=(
            f"Found by {evidence.node_id} of a transparency log. {SHOWS[evidence.kind]} Check it "
            "with `matl audit evidence FILE --log-key LOG.VKEY`, with keys that come from "
            "elsewhere than from this file or the one who gave it to you."
        ),
        version=1,
        kind=evidence.kind,
        why=evidence.why,
        node_id=evidence.node_id,
        found_at=evidence.found_at,
        checkpoints=[note.encode().decode() for note in evidence.checkpoints],
        proof=[_encoded(each) for each in evidence.proof],
        receipt=None if evidence.receipt is None else encode_envelope(evidence.receipt).decode(),
        shown=None
        if shown is None
        else _ShownDocument(
            leaf=_encoded(shown.leaf),
            path=[_encoded(each) for each in shown.path],
            salt=_encoded(shown.salt),
            entry=_encoded(shown.entry),
        ),
    )
    written = document.model_dump(mode="json", exclude_none=True)
    return json.dumps(written, indent=2, ensure_ascii=False).encode() + b"\n"


def parse_evidence(data: bytes) -> LogEvidence:
    """Parse evidence. Nothing in it is believed before ``check_evidence``.

    Raises:
        InvalidInputError: it is not evidence.
    """
    if len(data) > MAX_EVIDENCE_BYTES:
        raise InvalidInputError(f"the evidence has more than {MAX_EVIDENCE_BYTES} bytes")
    try:
        document = _Document.model_validate_json(data)
    except ValidationError as error:
        problems = problems_in(error, whole="file")
        raise InvalidInputError(f"the file is not evidence about a log: {problems}") from error
    shown = document.shown
    return LogEvidence(
        kind=document.kind,
        why=document.why,
        node_id=parse_node_id(document.node_id),
        found_at=document.found_at,
        checkpoints=tuple(parse_note(each.encode()) for each in document.checkpoints),
        proof=tuple(_decoded(each) for each in document.proof),
        receipt=None if document.receipt is None else parse_envelope(document.receipt.encode()),
        shown=None
        if shown is None
        else Shown(
            leaf=_decoded(shown.leaf),
            path=tuple(_decoded(each) for each in shown.path),
            salt=_decoded(shown.salt),
            entry=_decoded(shown.entry),
        ),
    )


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decoded(text: str) -> bytes:
    return decode_base64(text, what="evidence")
