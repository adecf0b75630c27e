"""What the coordinator's core needs from outside.

Every port states durability, not shape: when a call returns, what it says has
happened survives the power cord. Implementations are in ``store`` and ``scoring``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from matl_common.attestation.evidence import Evidence
from matl_common.errors import MatlError
from matl_common.ids import Digest, NodeId, RoundId
from matl_common.signing import Envelope
from matl_common.tlog.entry import Entry
from matl_common.tlog.merkle import NodeAddress
from matl_coordinator.core.admission import RefusalCode
from matl_coordinator.core.power import ByzantinePower
from matl_coordinator.core.robust.root import BEYOND_ROW, RootRow
from matl_coordinator.core.rounds import Evaluation, Phase, Round
from matl_coordinator.core.trust_record import TrustRecord
from matl_coordinator.core.vitals import Vitals


class StoreError(MatlError):
    """The store did not confirm. What was asked may or may not be durable.

    The only safe answer is to forget what is in memory and load again.
    """


class StaleWriterError(StoreError):
    """Another coordinator wrote since this one loaded; this one must not write again."""


class StaleReaderError(StoreError):
    """Another coordinator took over; what this one reads must not be given out as current."""


class SpoolError(MatlError):
    """A chunk cannot be taken; nothing of it was kept."""


class ChunkRefusedError(SpoolError):
    """What came is not the next chunk as it was declared."""


class SpoolFullError(SpoolError):
    """The quota or the disk has no room; it may have some later."""


class SharedStoreError(SpoolError):
    """The store that workers share does not answer; what is on disk is as it was."""


class AttesterError(MatlError):
    """The machine gives no evidence of what it runs."""


class Attester(Protocol):
    """Has the machine sign what it is asked to. Blocks; one call at a time."""

    def attest(self, report_data: bytes) -> Evidence:
        """Evidence whose report contains these 64 bytes.

        Raises:
            AttesterError: there is no such hardware, or it refused.
        """


class UpdateStatus(StrEnum):
    """What became of an update that was declared with a valid signature."""

    RECEIVING = "receiving"
    ADMITTED = "admitted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """One declared update. There is at most one for a node and round."""

    round_id: RoundId
    node_id: NodeId
    update_digest: Digest
    """SHA-256 of the signed manifest's bytes."""
    manifest: Envelope
    chunk_hashes: bytes
    """RFC 6962 leaf hashes of the chunks, 32 bytes each, in order."""
    byte_count: int
    status: UpdateStatus
    code: RefusalCode | None
    """Why it was refused, and ``reason`` as a sentence."""
    reason: str
    norm: float | None
    """Euclidean norm of the update; ``None`` until it is complete."""
    decided_at: datetime | None
    log_index: int | None
    """Leaf that records the decision. Set by the store."""
    log_leaf_hash: Digest | None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model of the study, and the round that released it (0 for the first)."""

    digest: Digest
    byte_count: int
    round_id: int
    released_at: datetime
    round_model: Digest | None = None
    """That round's own model, where an average was released in place of it."""

    @property
    def base(self) -> Digest:
        """The model that the next round goes on from."""
        return self.round_model or self.digest


@dataclass(frozen=True, slots=True)
class Appeal:
    """A hospital's appeal against its trust, as an operator filed it; open without an answer."""

    node_id: NodeId
    text: str
    filed_by: NodeId
    filed_at: datetime
    granted: bool | None = None
    answer: str = ""
    answered_by: NodeId | None = None
    answered_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.granted is None


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """What the study is, and where it stands."""

    plan: Envelope
    plan_digest: Digest
    paused: bool
    pause_reason: str
    appeals: tuple[Appeal, ...] = ()
    """The newest of each hospital; all of them are in the log."""


@dataclass(frozen=True, slots=True)
class PutStudy:
    record: StudyRecord


@dataclass(frozen=True, slots=True)
class PutRound:
    round: Round


@dataclass(frozen=True, slots=True)
class PutUpdate:
    """Insert or replace the record of (round, node)."""

    record: UpdateRecord
    decided_by: int | None = None
    """Position, among the entries of this commit, of the one that decides the
    update; the store fills ``log_index`` and ``log_leaf_hash`` from it."""


@dataclass(frozen=True, slots=True)
class PutTrust:
    """The trust of every hospital after a round; history is kept."""

    round_id: RoundId
    records: tuple[TrustRecord, ...]


@dataclass(frozen=True, slots=True)
class PutModel:
    record: ModelRecord


Change = PutStudy | PutRound | PutUpdate | PutTrust | PutModel


class EntryDamage(StrEnum):
    """What is wrong with a leaf or its payload as they are stored."""

    HASH = "its leaf does not give the hash in the tree"
    LEAF = "its leaf is none that this software writes"
    MOVED = "its leaf is another entry's"
    PAYLOAD = "its payload is not what its leaf commits to"
    CLOSED = "its payload does not open to what its leaf commits to"


@dataclass(frozen=True, slots=True)
class LoggedEntry:
    """A leaf of the log, and the entry that it commits to."""

    index: int
    leaf: bytes
    """Canonical JSON, exactly the bytes that are hashed; see ``tlog.leaf``."""
    payload: bytes
    """The entry, encrypted."""
    data: bytes | None
    """The entry, canonical JSON; ``None`` where its key was erased, or it is damaged."""
    salt: bytes | None
    """With it, whoever is shown the entry can check it against the leaf."""
    leaf_hash: Digest
    """As the tree has it."""
    damage: EntryDamage | None = None


@dataclass(frozen=True, slots=True)
class LogHead:
    """The log as it stands: number of leaves and RFC 6962 root."""

    size: int
    root: Digest


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A checkpoint that was signed, and the cosignatures it has so far."""

    size: int
    note: bytes
    """As the log signed it, without cosignatures."""
    cosignatures: Mapping[NodeId, bytes]
    """Signature lines by witness."""


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """A row of the log's tables that this coordinator did not write, and does not believe."""

    table: str
    key: str
    """Which row."""
    reason: str


@dataclass(frozen=True, slots=True)
class State:
    """All that a coordinator knows when it starts."""

    study: StudyRecord | None
    round: Round | None
    """The newest round, over or not."""
    trust: tuple[TrustRecord, ...]
    updates: tuple[UpdateRecord, ...]
    """Those of the newest round."""
    rounds_released: int
    latest_model: ModelRecord | None
    """The newest model put; the next round goes on from its ``base``."""
    epoch: int = field(default=0, compare=False)
    """Counts take-overs: the fencing token of the coordinator that loaded this."""


class Store(Protocol):
    """The coordinator's durable memory. Calls block; call them from a thread.

    Once it has loaded, whatever is read of the log raises ``StaleReaderError`` after another
    coordinator has: what it would answer may be behind what that one has shown.
    """

    def load(self) -> State:
        """Read the state, the first time taking over as the only writer.

        Later calls wait for a commit of unknown end, and do not take the study back.

        Raises:
            StaleWriterError: another coordinator loaded after this one did at first.
            StoreError: the database cannot be reached.
        """
        ...

    def commit(
        self, changes: Sequence[Change], entries: Sequence[Entry]
    ) -> tuple[LoggedEntry, ...]:
        """Apply ``changes`` and append ``entries`` to the log, all or nothing.

        When this returns, both are durable. When it raises, nobody knows.

        Raises:
            StaleWriterError: another coordinator loaded after this one.
            StoreError: the database did not confirm.
        """
        ...

    def round(self, round_id: RoundId) -> Round | None: ...

    def rounds(self, *, after: int, limit: int) -> tuple[Round, ...]:
        """Rounds with a number above ``after``, oldest first."""
        ...

    def update(self, round_id: RoundId, node_id: NodeId) -> UpdateRecord | None: ...

    def updates(self, round_id: RoundId) -> tuple[UpdateRecord, ...]: ...

    def last_admitted(self, node_id: NodeId) -> UpdateRecord | None:
        """The newest update of a hospital that was admitted."""
        ...

    def admitted_counts(self) -> Mapping[NodeId, int]:
        """How many updates of each hospital were admitted in all rounds."""
        ...

    def trust_history(self, *, after: int, limit: int) -> tuple[PutTrust, ...]:
        """Trust by round above ``after``, oldest first."""
        ...

    def model(self, digest: Digest) -> ModelRecord | None: ...

    def log_head(self) -> LogHead: ...

    def log_entries(self, *, start: int, limit: int) -> tuple[LoggedEntry, ...]:
        """At most ``limit`` leaves from ``start`` on; those that are not as written say so."""
        ...

    def log_node(self, level: int, index: int) -> bytes:
        """A stored hash of the log's tree; level 0 holds the leaves."""
        ...

    def log_nodes(self, addresses: Sequence[NodeAddress]) -> Mapping[NodeAddress, bytes]:
        """Stored hashes by level and index, all of them in one reading.

        Raises:
            IntegrityError: there is none at one of the addresses.
        """
        ...

    def checkpoints(self) -> Iterator[CheckpointRecord]:
        """Checkpoints that were put, the largest first; whose they are is the caller's to see.

        Raises:
            StaleReaderError: another coordinator loaded after this one.
        """
        ...

    def put_checkpoint(self, size: int, note: bytes) -> bool:
        """Keep a signed checkpoint, durably; the first of a size stays.

        Returns:
            Whether it is this one that is kept.

        Raises:
            StaleWriterError: another coordinator loaded after this one.
            StoreError: the database did not confirm.
        """
        ...

    def put_cosignature(self, size: int, node_id: NodeId, line: bytes) -> None:
        """Keep a witness's line on a checkpoint that was put; the first stays.

        Raises:
            StaleWriterError: another coordinator loaded after this one.
            StoreError: the database did not confirm.
        """
        ...

    def close(self) -> None: ...


class SpooledUpdates(Protocol):
    """Complete updates on disk, to be read. Blocking; call from a thread."""

    def path(self, round_id: RoundId, node_id: NodeId) -> Path:
        """The complete update's file."""
        ...

    def scratch(self, round_id: RoundId) -> Path:
        """An existing folder for files that can be made again, emptied by ``clear_scratch``."""
        ...

    def clear_scratch(self, round_id: RoundId) -> None:
        """Delete the round's scratch folder, if there is one."""
        ...


class Spool(SpooledUpdates, Protocol):
    """Updates on disk while a round lasts. Blocking; call from a thread."""

    def open(
        self, round_id: RoundId, node_id: NodeId, *, byte_count: int, chunk_hashes: bytes
    ) -> UpdateSink:
        """The sink of one update, resumed after the last durable chunk that still
        matches its hash. At most one sink is open for a node and round.

        Raises:
            SpoolFullError: the quota, or the disk, has no room for it.
        """
        ...

    def discard_before(self, round_id: RoundId) -> None:
        """Delete everything of rounds below ``round_id``."""
        ...

    def reserved_bytes(self) -> int:
        """What updates on disk take, or may grow to."""
        ...


class LendingSpool(Spool, Protocol):
    """A spool in which front ends receive updates, each into a file that it is lent."""

    def lend(
        self, round_id: RoundId, node_id: NodeId, *, byte_count: int, chunk_hashes: bytes
    ) -> str:
        """Reserve room for an update; returns the token of the file to write it into.

        Raises:
            SpoolFullError: the quota, or the disk, has no room for it.
        """
        ...

    def keep_loan(self, round_id: RoundId, node_id: NodeId, token: str) -> None:
        """Delete the update's other files: what they held is durable in the lent one."""
        ...

    def take_back(self, round_id: RoundId, node_id: NodeId, token: str) -> None:
        """Make the lent file the one that ``open`` goes on with; nobody writes to it any more."""
        ...


class Histories(Protocol):
    """What hospitals sent over all rounds, for rules that look back. Blocking."""

    def before(self, round_id: RoundId) -> bytes | None:
        """The newest history of a round below ``round_id``; ``None`` if there is none."""
        ...

    def put(self, round_id: RoundId, data: bytes) -> None:
        """Keep a round's history durably; doing it again replaces it.

        What ``before(round_id)`` returns stays until a later round's history is put.
        """
        ...


class UpdateSink(Protocol):
    """One update being received."""

    @property
    def received_chunks(self) -> int:
        """Chunks taken so far; durable once ``sync`` returned."""
        ...

    def append(self, index: int, data: bytes | memoryview) -> None:
        """Take the next chunk.

        Raises:
            ChunkRefusedError: not the next index, or a wrong length or hash.
            SpoolFullError: the disk is full.
        """
        ...

    def sync(self) -> int:
        """Make what was taken durable; returns the number of durable chunks."""
        ...

    def finish(self) -> Path:
        """Make the complete file durable under its final name."""
        ...

    def close(self) -> None: ...


class ModelStore(Protocol):
    """Content-addressed model files; ``<digest>.safetensors``."""

    @property
    def incoming(self) -> Path:
        """An existing folder on the same disk, for files to be adopted."""
        ...

    def path(self, digest: Digest) -> Path: ...

    def has(self, digest: Digest) -> bool: ...

    def adopt(self, source: Path) -> Digest:
        """Move a complete file in, durably; doing it twice is harmless."""
        ...

    def digests(self) -> Iterable[Digest]: ...

    def remove(self, digest: Digest) -> None:
        """Delete a model, durably; it may be gone already."""
        ...


@dataclass(frozen=True, slots=True)
class RootGradient:
    """A row on disk for the Gram matrix: one part of the root set's descent direction."""

    row: RootRow
    path: Path
    """Not durable: it is written again when it is needed again."""
    digest: Digest
    """SHA-256 of the file."""

    @property
    def name(self) -> str:
        """Of the row."""
        return self.row.name


@dataclass(frozen=True, slots=True)
class BeyondRow:
    """A row on disk for the Gram matrix: what the root set's own training does beyond its
    gradients; see ``scoring.beyond``."""

    path: Path
    """As ``RootGradient.path``."""
    digest: Digest
    """SHA-256 of the file."""

    @property
    def name(self) -> str:
        """Of the row."""
        return BEYOND_ROW


@dataclass(frozen=True, slots=True)
class HoldoutReport:
    """What the holdout set says about a round's updates."""

    path: tuple[RootGradient, ...]
    """Along the updates' common step; see ``scoring.path``."""
    beyond: BeyondRow | None
    """None where there is nothing to compare with."""
    loss_improvement: Mapping[NodeId, float]
    """Mean validation loss at the base model less that after each update alone."""
    reach: float
    """How much of that step the holdout set bears; see ``scoring.reach``."""


@dataclass(frozen=True, slots=True)
class HoldoutFacts:
    """The holdout set as it was found."""

    images: int
    skipped: int
    per_class: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InitialModel:
    """The study's first model, and the public weights it stands on."""

    path: Path
    backbone_digest: Digest | None


class UpdateScorer(Protocol):
    """Compares updates with the holdout set, in another process."""

    async def report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        """Score updates; the gradients along their common step are written into ``folder``.

        ``weights`` are what each counts for in that step.
        """
        ...

    async def root(self, base_model: Digest, *, folder: Path) -> tuple[RootGradient, ...]:
        """Write the root gradients at the base model into ``folder``."""
        ...

    async def reach(self, base_model: Digest, candidate: Path) -> float:
        """How much of the change to a model file the holdout set bears, above 0 and at most 1."""
        ...


class Scorer(UpdateScorer, Protocol):
    """Judges models and updates on the holdout set, in another process.

    Without a holdout set only ``initial_model`` may be called. Every method raises
    ``WorkerError`` when that process fails; asking again starts a new one.
    """

    async def initial_model(self, folder: Path) -> InitialModel:
        """Make the study's first model, a file in ``folder``."""
        ...

    async def prepare(self) -> HoldoutFacts:
        """Look over the holdout set, and do once what every later question needs."""
        ...

    async def evaluate(self, model: Digest) -> Evaluation: ...

    async def close(self) -> None: ...


class FileMeter(Protocol):
    """What operators watch of the files that a daemon follows."""

    def file_refused(self, file: str, *, refused: bool) -> None:
        """A file was read again: it is in force, or what was read before still is."""
        ...

    def certificate_valid(self, seconds: float) -> None:
        """For how long the server's certificate still is."""
        ...


class Meter(FileMeter, Protocol):
    """What operators watch. Counting never fails and changes nothing."""

    def update_decided(self, outcome: str) -> None:
        """An update was admitted, or refused with this code."""
        ...

    def bytes_received(self, count: int) -> None: ...

    def bytes_sent(self, count: int) -> None: ...

    def peer_refused(self, reason: str) -> None: ...

    def call_delayed(self) -> None:
        """A call waits because its caller calls too often."""
        ...

    def enrolment_changed(self, participants: int) -> None:
        """So many hospitals are enrolled."""
        ...

    def methods_served(self, methods: Collection[str]) -> None:
        """Calls of methods with these names may come."""
        ...

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call of a method that is served, or of "other", ended with this gRPC status."""
        ...

    def committed(self, seconds: float) -> None:
        """The store took so long to confirm a transaction."""
        ...

    def vitals_taken(self, vitals: Vitals) -> None:
        """How things stand at this moment."""
        ...

    def phase_failed(self, phase: Phase) -> None: ...

    def store_failed(self) -> None: ...

    def present(self, count: int) -> None: ...

    def round_changed(self, rnd: Round) -> None: ...

    def model_evaluated(self, evaluation: Evaluation) -> None:
        """How good the newest model is."""
        ...

    def trust_changed(self, records: Sequence[TrustRecord], rnd: Round) -> None: ...

    def step_tried(self, reach: float) -> None: ...

    def power_measured(self, power: ByzantinePower) -> None:
        """How much say a round spoke against, and what a cartel would have had."""
        ...

    def update_refused(self, reason: str) -> None:
        """An admitted update turned out not to be what the study promised."""
        ...

    def alarm_raised(self, kind: str) -> None:
        """An operator should look now."""
        ...

    def log_grew(self, size: int) -> None: ...

    def disk_used(self, kind: str, size: int) -> None:
        """Files of one kind take so many bytes."""
        ...

    def models_put_away(self, size: int) -> None:
        """Models of so many bytes were deleted, by policy."""
        ...
