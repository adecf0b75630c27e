"""Single entries proved: made of what a coordinator or a database gives, and never unverified.

A proof is an entry with its salt and leaf, and the leaf's path under a signed checkpoint. Whoever
makes one here gets it verified, so that nobody finds out years later that it proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matl.audit_client import AuditClient
from matl.log_sources import LogSource
from matl.log_told import facts_of
from matl.log_verification import Believed
from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.tlog.checkpoint import SignedCheckpoint, parse_checkpoint, verify_checkpoint
from matl_common.tlog.disclosure import Disclosure
from matl_common.tlog.leaf import check_disclosure, parse_leaf
from matl_common.tlog.merkle import inclusion_proof, leaf_hash, verify_inclusion
from matl_common.tlog.note import Note, parse_note
from matl_common.tlog.policy import NO_QUORUM
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
    client: AuditClient, index: int, believed: Believed
) -> tuple[Disclosure, TlogProof]:
    """Ask a coordinator for an entry and its proof, and verify them.

    Raises:
        ConfigurationError: the entry is not under a checkpoint yet, or cannot be read.
        OperationsError: the coordinator does not answer.
        InvalidInputError, IntegrityError: what it answers proves nothing.
    """
    note = parse_note(client.checkpoint().note)
    size = _size_above(index, note)
    found = client.inclusion(index, size=size)
    if found.damaged:
        raise IntegrityError(f"entry {index} is damaged: {found.damaged}")
    if not found.entry:
        raise ConfigurationError(
            f"the coordinator does not tell what entry {index} says: its key was erased, or this "
            "certificate may not read it"
        )
    shown = Disclosure(found.leaf, found.salt, found.entry)
    proof = TlogProof(index, found.path, note)
    check_entry(shown, proof, believed)
    return shown, proof


def proof_from_database(
    source: LogSource, config: Config, index: int, believed: Believed, *, reason: str
) -> tuple[Disclosure, TlogProof]:
    """Break the glass for an entry, which is logged first, and prove it from a database.

    Raises:
        ConfigurationError: the coordinator is running, no reason is given, or the entry is not
            under a checkpoint yet or cannot be read.
        StoreError: the database cannot be reached, or did not confirm.
        InvalidInputError, IntegrityError: what it holds proves nothing.
    """
    notes = source.notes()
    if not notes:
        raise ConfigurationError("the log has signed no checkpoint yet")
    note = parse_note(notes[-1])
    size = _size_above(index, note)
    # Before anything is read and logged: a proof that nobody can use is not worth it.
    verify_checkpoint(note, [believed.log])
    found = list(decrypt_entries(config, first=index, last=index, reason=reason))
    if found and found[0].damage is not None:
        raise IntegrityError(f"entry {index} is damaged: {found[0].damage}")
    if not found or found[0].data is None or found[0].salt is None:
        raise ConfigurationError(f"entry {index} was dropped, or its key erased")
    shown = Disclosure(found[0].leaf, found[0].salt, found[0].data)
    proof = TlogProof(index, tuple(inclusion_proof(index, size, source.node)), note)
    check_entry(shown, proof, believed)
    return shown, proof


def _size_above(index: int, note: Note) -> int:
    size = parse_checkpoint(note.text).size
    if index >= size:
        raise ConfigurationError(
            f"the newest checkpoint is of {size} entries; entry {index} is not under it yet"
        )
    return size
