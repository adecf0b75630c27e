"""A log gone over, read, and proved, for a report: from a coordinator, its database, or a bundle.

What is read is what was verified: the hashes of the leaves that were read give the root that was
gone over, and every entry is what its leaf commits to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from matl.log.proofs import check_entry
from matl.log.sources import CoordinatorSource, LogSource
from matl.log.told import facts_of, leaf_of
from matl.log.verification import AuditReport, Believed, verify_log
from matl.report.study import Logged
from matl_common.errors import IntegrityError
from matl_common.tlog.checkpoint import SignedCheckpoint, open_checkpoint
from matl_common.tlog.disclosure import Disclosure, encode_disclosure
from matl_common.tlog.leaf import check_disclosure, parse_leaf
from matl_common.tlog.merkle import inclusion_proof, merkle_root
from matl_common.tlog.proof import TlogProof, encode_proof
from matl_coordinator.ports import LoggedEntry

RELEASE: Final = "model_released"


@dataclass(frozen=True, slots=True)
class ProvenRelease:
    """A release's entry in the log, proved when the report was made.

    ``entry`` and ``proof`` are the two files that ``matl audit check`` takes. ``has_quorum`` tells
    whether the checkpoint was cosigned by the policy's quorum.
    """

    index: int
    checkpoint_size: int
    has_quorum: bool
    cosigners: tuple[str, ...]
    entry: str
    proof: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """A log that is sound, and what it says.

    Attributes:
        origin: the log's name.
        audit: what was gone over.
        entries: opened, oldest first, without those whose key was erased; of a bundle, what the
            leaves tell.
        unread: entries that could not be opened.
        releases: by index of the entry.
    """

    origin: str
    audit: AuditReport
    entries: tuple[Logged, ...]
    unread: int
    releases: Mapping[int, ProvenRelease]


@dataclass(slots=True)
class _Reading:
    """What was read of a log so far."""

    hashes: list[bytes] = field(default_factory=list)
    entries: list[Logged] = field(default_factory=list)
    releases: dict[int, Disclosure] = field(default_factory=dict)
    unread: int = 0

    def add(self, index: int, leaf: bytes | None, hashed: bytes, shown: Disclosure | None) -> None:
        """Take an entry that was checked against its leaf, or one that cannot be opened."""
        self.hashes.append(hashed)
        if shown is None or leaf is None:
            self.unread += 1
            return
        parsed = parse_leaf(leaf)
        self.entries.append(Logged(index, facts_of(parsed, shown.entry)))
        if parsed.event == RELEASE:
            self.releases[index] = shown


def evidence_from_coordinator(
    source: CoordinatorSource,
    believed: Believed,
    *,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Evidence:
    """Go over a coordinator's log and read it.

    Raises:
        MatlError: as ``verify_log``; or what is read is not what was gone over.
    """
    audit = verify_log(source, believed, on_progress=on_progress)
    reading = _Reading()
    for page in source.pages(end=audit.tally.size):
        for stored in page:
            leaf = leaf_of(stored)
            shown = None
            if leaf is not None and stored.leaf is not None:
                said = source.disclosed(leaf)
                if said is not None:
                    shown = Disclosure(stored.leaf, source.salt(stored.index), said)
            reading.add(stored.index, stored.leaf, stored.hash, shown)

    def path(index: int, size: int) -> tuple[bytes, ...]:
        return source.client.inclusion(index, size=size).path

    return _evidence(source, believed, audit, reading, path)


def evidence_from_database(
    source: LogSource,
    believed: Believed,
    read: Callable[[int], Iterable[LoggedEntry]],
    *,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Evidence:
    """Go over a log where it lies, and read it.

    Args:
        source: the database.
        believed: whose signatures count, with the data keys.
        read: decrypts the first so many entries, once it is on record that somebody does.
        on_progress: told of leaves as they are gone over.

    Raises:
        MatlError: as ``verify_log``; or what is read is not what was gone over.
    """
    audit = verify_log(source, believed, on_progress=on_progress)
    reading = _Reading()
    for each in read(audit.tally.size):
        _pass_over(reading, source, until=each.index)
        if each.damage is not None:
            raise IntegrityError(f"entry {each.index} is damaged: {each.damage.value}")
        shown = None
        if each.data is not None and each.salt is not None:
            check_disclosure(parse_leaf(each.leaf), salt=each.salt, plaintext=each.data)
            shown = Disclosure(each.leaf, each.salt, each.data)
        reading.add(each.index, each.leaf, bytes.fromhex(each.leaf_hash), shown)
    _pass_over(reading, source, until=audit.tally.size)

    def path(index: int, size: int) -> tuple[bytes, ...]:
        return tuple(inclusion_proof(index, size, source.node))

    return _evidence(source, believed, audit, reading, path)


def evidence_from_bundle(
    source: LogSource,
    believed: Believed,
    *,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Evidence:
    """Go over an exported log, whose entries stay encrypted: what is told is what leaves tell.

    Raises:
        MatlError: as ``verify_log``.
    """
    audit = verify_log(source, believed, on_progress=on_progress)
    told = []
    for page in source.pages(end=audit.tally.size):
        for stored in page:
            leaf = leaf_of(stored)
            if leaf is not None:
                facts = {"event": leaf.event, "at": leaf.at, "node": leaf.node, "round": leaf.round}
                told.append(Logged(stored.index, facts))
    return Evidence(believed.log.name, audit, tuple(told), audit.tally.size, {})


def _pass_over(reading: _Reading, source: LogSource, *, until: int) -> None:
    """Take the hashes alone of what was dropped by order."""
    for index in range(len(reading.hashes), until):
        reading.add(index, None, source.node(0, index), None)


def _evidence(
    source: LogSource,
    believed: Believed,
    audit: AuditReport,
    reading: _Reading,
    path: Callable[[int, int], tuple[bytes, ...]],
) -> Evidence:
    if merkle_root(reading.hashes) != audit.tally.root:
        raise IntegrityError(
            "the entries that were read are not those that were gone over: the log was changed "
            "meanwhile; make the report again"
        )
    signed = [open_checkpoint(note, [believed.log]) for note in source.notes()]
    proven = {
        index: _proven(index, shown, signed, believed, path)
        for index, shown in reading.releases.items()
    }
    return Evidence(
        believed.log.name,
        audit,
        tuple(reading.entries),
        reading.unread,
        {index: each for index, each in proven.items() if each is not None},
    )


def _proven(
    index: int,
    shown: Disclosure,
    signed: Iterable[SignedCheckpoint],
    believed: Believed,
    path: Callable[[int, int], tuple[bytes, ...]],
) -> ProvenRelease | None:
    """A release proved under the smallest witnessed checkpoint over it, else under any; ``None``
    where there is none yet."""
    over = sorted(
        (each for each in signed if each.checkpoint.size > index),
        key=lambda each: (not believed.has_quorum(each), each.checkpoint.size),
    )
    if not over:
        return None
    best = over[0]
    proof = TlogProof(index, path(index, best.checkpoint.size), best.note)
    check_entry(shown, proof, Believed(believed.log))
    return ProvenRelease(
        index,
        best.checkpoint.size,
        believed.has_quorum(best),
        believed.cosigners(best),
        encode_disclosure(shown).decode(),
        encode_proof(proof).decode(),
    )
