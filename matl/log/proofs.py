"""Single entries proved: made of what a coordinator or a database gives, and never unverified.

A proof is an entry with its salt and leaf, and the leaf's path under a signed checkpoint. Whoever
makes one here gets it verified, so that nobody finds out years later that it proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any

from matl.log.sources import CoordinatorSource, LogSource
from matl.log.told import facts_of
from matl.log.verification import Believed
from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.tlog.checkpoint import SignedCheckpoint, verify_checkpoint
from matl_common.tlog.disclosure import Disclosure
from matl_common.tlog.leaf import check_disclosure, parse_leaf
from matl_common.tlog.merkle import inclusion_proof, leaf_hash, verify_inclusion
from matl_common.tlog.note import parse_note
from matl_common.tlog.policy import NO_QUORUM, assess, require_quorum
from matl_common.tlog.proof import TlogProof, verify_proof
from matl_coordinator.breakglass import decrypt_entries
from matl_coordinator.config import Config


@dataclass(frozen=True, slots=True)
class ProvenEntry:
    """An entry that a checkpoint's tree holds, and whether a quorum of witnesses has seen it."""

    index: int
    facts: Mapping[str, Any]
    signed: SignedCheckpoint
    has_quorum: bool


def check_entry(shown: Disclosure, proof: TlogProof, believed: Believed) -> ProvenEntry:
    """Check that a log holds an entry at the place that the proof names.

    Raises:
        InvalidInputError: a part of it is not what it should be.
        IntegrityError: a signature, the quorum, the path or the entry does not hold.
    """
    leaf, hashed = parse_leaf(shown.leaf), leaf_hash(shown.leaf)
    if believed.policy is not None:
        signed = verify_proof(proof, hashed, believed.policy)
    else:
        signed = verify_checkpoint(proof.checkpoint, [believed.log])
        verify_inclusion(
            index=proof.index,
            size=signed.checkpoint.size,
            leaf=hashed,
            proof=proof.path,
            root=signed.checkpoint.root,
        )
    if (leaf.origin, leaf.index) != (signed.checkpoint.origin, proof.index):
        raise IntegrityError(
            f"leaf {proof.index} of {signed.checkpoint.origin} calls itself leaf {leaf.index} of "
            f"{leaf.origin}"
        )
    check_disclosure(leaf, salt=shown.salt, plaintext=shown.entry)
    return ProvenEntry(
        proof.index,
        facts_of(leaf, shown.entry),
        signed,
        has_quorum=believed.policy is not None and believed.policy.quorum != NO_QUORUM,
    )


def proof_from_coordinator(
    source: CoordinatorSource, index: int, believed: Believed
) -> tuple[Disclosure, TlogProof]:
    """Ask a coordinator for an entry and its proof, and verify them.

    Raises:
        ConfigurationError: the entry is not under a checkpoint yet, or cannot be read.
        OperationsError: the coordinator does not answer.
        InvalidInputError, IntegrityError: what it answers proves nothing.
    """
    signed = _checkpoint_over(index, source.notes(), believed)
    found = source.client.inclusion(index, size=signed.checkpoint.size)
    if found.damaged:
        raise IntegrityError(f"entry {index} is damaged: {found.damaged}")
    if not found.entry:
        raise ConfigurationError(
            f"the coordinator does not tell what entry {index} says: its key was erased, or this "
            "certificate may not read it"
        )
    shown = Disclosure(found.leaf, found.salt, found.entry)
    proof = TlogProof(index, found.path, signed.note)
    check_entry(shown, proof, believed)
    return shown, proof


def proof_from_database(
    source: LogSource,
    config: Config,
    index: int,
    believed: Believed,
    *,
    reason: str,
    insists: bool,
) -> tuple[Disclosure, TlogProof]:
    """Break the glass for an entry, which is logged first, and prove it from a database.

    Under the newest checkpoint with the policy's quorum; without one, unless the caller
    ``insists``, under the newest there is.

    Raises:
        ConfigurationError: the coordinator is running, no reason is given, or the entry is not
            under a checkpoint yet or cannot be read.
        StoreError: the database cannot be reached, or did not confirm.
        InvalidInputError, IntegrityError: what it holds proves nothing.
    """
    notes = source.notes()
    if not notes:
        raise ConfigurationError("the log has signed no checkpoint yet")
    # Before anything is read and logged: a proof that nobody can use is not worth it.
    signed = _checkpoint_over(index, notes, believed, insists=insists)
    found = list(decrypt_entries(config, first=index, last=index, reason=reason))
    if found and found[0].damage is not None:
        raise IntegrityError(f"entry {index} is damaged: {found[0].damage}")
    if not found or found[0].data is None or found[0].salt is None:
        raise ConfigurationError(f"entry {index} was dropped, or its key erased")
    shown = Disclosure(found[0].leaf, found[0].salt, found[0].data)
    path = tuple(inclusion_proof(index, signed.checkpoint.size, source.node))
    proof = TlogProof(index, path, signed.note)
    check_entry(shown, proof, believed if insists else Believed(believed.log))
    return shown, proof


def cosigners_told(proof: TlogProof, believed: Believed) -> str:
    """Who stands behind a proof's checkpoint beside the log, in words."""
    signed, policy = verify_checkpoint(proof.checkpoint, [believed.log]), believed.policy
    what = f"its checkpoint of {signed.checkpoint.size} entries"
    names = [each.name for each in signed.note.signatures if each.name != believed.log.name]
    if not names:
        return f"{what} is cosigned by nobody"
    if policy is None:
        return f"{what} carries cosignatures, unverified without a policy: {', '.join(names)}"
    found = assess(signed, policy)
    if found.quorum_met and policy.quorum != NO_QUORUM:
        return f"a quorum of its witnesses has cosigned {what}"
    return f"{what} lacks the quorum of its witnesses"


def _checkpoint_over(
    index: int, notes: Sequence[bytes], believed: Believed, *, insists: bool = True
) -> SignedCheckpoint:
    """The newest checkpoint over an entry that has its quorum, or without one the most cosigned.

    Args:
        index: the entry.
        notes: signed checkpoints, the smallest first.
        believed: the log's key, and the policy with the quorum, if any.
        insists: whether a policy's quorum must be there.

    Raises:
        ConfigurationError: the entry is under none yet.
        InvalidInputError, IntegrityError: the newest is not signed by the log, or none that it is
            under has the quorum.
    """
    newest = verify_checkpoint(parse_note(notes[-1]), [believed.log])
    if index >= newest.checkpoint.size:
        raise ConfigurationError(
            f"the newest checkpoint is of {newest.checkpoint.size} entries; entry {index} is not "
            "under it yet"
        )
    earlier = (verify_checkpoint(parse_note(note), [believed.log]) for note in notes[-2::-1])
    over = chain([newest], takewhile(lambda each: each.checkpoint.size > index, earlier))
    policy = believed.policy
    if policy is None:
        return max(over, key=lambda each: len(each.note.signatures))
    if with_quorum := next((each for each in over if assess(each, policy).quorum_met), None):
        return with_quorum
    if insists:
        require_quorum(newest, policy)
    return newest
