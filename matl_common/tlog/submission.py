"""Whether a log shows what a receipt promises: that it took in a hospital's own update.

A receipt names a place in the log and the hash of the leaf there. The log shows the leaf, its
path under a checkpoint's root, and the entry behind the leaf. Here is decided what that is
worth; nothing here asks anybody, or verifies the receipt's signature.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.ids import Digest
from matl_common.tlog.checkpoint import Checkpoint, SignedCheckpoint
from matl_common.tlog.entry import encode_entry, parse_entry
from matl_common.tlog.leaf import check_disclosure, parse_leaf
from matl_common.tlog.merkle import leaf_hash, verify_inclusion
from matl_common.tlog.note import decode_base64
from matl_common.tlog.policy import Policy
from matl_common.tlog.proof import TlogProof, verify_proof

ADMITTED = "update_admitted"
_SHOWN = {"leaf", "salt", "entry"}


@dataclass(frozen=True, slots=True)
class Claim:
    """What a receipt says of the log: this update was admitted, and this leaf says so."""

    index: int
    leaf_hash: Digest
    node: str
    round: int
    update: Digest


@dataclass(frozen=True, slots=True)
class Shown:
    """What the log shows for a claim. An empty ``entry`` was withheld."""

    leaf: bytes
    path: tuple[bytes, ...]
    salt: bytes
    entry: bytes


class Worth(Enum):
    """What an answer is worth, from best to worst.

    ``CONTRADICTED`` is proven to anyone by the signed receipt, with the signed checkpoint where
    another leaf stands at the index. ``BROKEN`` rests on the word of who was answered.
    """

    HOLDS = "holds"
    WITHHELD = "withheld"  # the entry was not shown
    BROKEN = "broken"  # it proves nothing, which no honest log would answer
    CONTRADICTED = "contradicted"  # it proves that the receipt was not kept


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an answer is worth, and why."""

    worth: Worth
    reason: str


def judge(claim: Claim, shown: Shown, checkpoint: Checkpoint) -> Judgement:
    """Judge a log's answer.

    Args:
        claim: of a receipt whose signature was verified.
        shown: what the log answered.
        checkpoint: of a size above the claim's index, its signature verified.
    """
    hashed = leaf_hash(shown.leaf)
    try:
        verify_inclusion(
            index=claim.index,
            size=checkpoint.size,
            leaf=hashed,
            proof=shown.path,
            root=checkpoint.root,
        )
    except IntegrityError as error:
        return Judgement(Worth.BROKEN, f"leaf {claim.index} is not shown to be there: {error}")
    if hashed.hex() != claim.leaf_hash:
        return Judgement(
            Worth.CONTRADICTED, f"the log has another leaf {claim.index} than the receipt promises"
        )
    return _judge_content(claim, shown, checkpoint.origin)


def _judge_content(claim: Claim, shown: Shown, origin: str) -> Judgement:
    """The leaf is the promised one; whether it says what it should."""
    try:
        leaf = parse_leaf(shown.leaf)
    except InvalidInputError as error:
        return Judgement(Worth.CONTRADICTED, f"the promised leaf is none: {error}")
    found = (leaf.origin, leaf.index, leaf.event, leaf.node, leaf.round)
    if found != (origin, claim.index, ADMITTED, claim.node, claim.round):
        return Judgement(
            Worth.CONTRADICTED,
            f"the promised leaf {claim.index} is not about an update of {claim.node} admitted to "
            f"round {claim.round}",
        )
    if not shown.entry:
        return Judgement(Worth.WITHHELD, f"the entry of leaf {claim.index} is not shown")
    try:
        check_disclosure(leaf, salt=shown.salt, plaintext=shown.entry)
    except IntegrityError as error:
        return Judgement(Worth.BROKEN, str(error))
    if not _says(claim, shown.entry):
        return Judgement(
            Worth.CONTRADICTED,
            f"the entry of leaf {claim.index} does not name update {claim.update[:12]}…",
        )
    return Judgement(Worth.HOLDS, f"leaf {claim.index} is in the log and names the update")


def _says(claim: Claim, entry: bytes) -> bool:
    try:
        facts = parse_entry(entry)
    except InvalidInputError:
        return False
    found = tuple(facts.get(name) for name in ("event", "node", "round", "update"))
    return found == (ADMITTED, claim.node, claim.round, claim.update)


def encode_shown(shown: Shown) -> bytes:
    """Leaf and entry as the ``extra`` of a ``.tlog-proof``, whose path is the other part."""
    values = {"leaf": shown.leaf, "salt": shown.salt, "entry": shown.entry}
    return encode_entry({name: base64.b64encode(each).decode() for name, each in values.items()})


def shown_in(proof: TlogProof) -> Shown:
    """What ``encode_shown`` and a proof's path hold.

    Raises:
        InvalidInputError: the proof holds no leaf and entry.
    """
    facts = parse_entry(proof.extra or b"")
    match facts:
        case {"leaf": str(leaf), "salt": str(salt), "entry": str(entry)} if set(facts) == _SHOWN:
            return Shown(
                leaf=decode_base64(leaf, what="leaf"),
                path=proof.path,
                salt=decode_base64(salt, what="salt"),
                entry=decode_base64(entry, what="entry"),
            )
    raise InvalidInputError("the proof does not hold the leaf and the entry that it is of")


@dataclass(frozen=True, slots=True)
class Proven:
    """What a stored proof proves: an entry, and the checkpoint whose tree holds it."""

    facts: Mapping[str, object]
    checkpoint: SignedCheckpoint


def open_submission_proof(proof: TlogProof, policy: Policy) -> Proven:
    """Verify offline the ``.tlog-proof`` that a hospital keeps of its update.

    Raises:
        InvalidInputError: it holds no leaf and entry, or its note is not a checkpoint.
        IntegrityError: a signature, the quorum, the path or the entry does not hold.
    """
    shown = shown_in(proof)
    signed = verify_proof(proof, leaf_hash(shown.leaf), policy)
    leaf = parse_leaf(shown.leaf)
    check_disclosure(leaf, salt=shown.salt, plaintext=shown.entry)
    return Proven(parse_entry(shown.entry), signed)
