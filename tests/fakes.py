"""Stand-ins for the coordinator's ports that keep everything in memory.

They pass the same contract suite as the real ones (``tests/contracts``), and fail on
demand the way a disk or a database fails: before anything was kept, or after.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, fields, replace
from enum import Enum, auto
from pathlib import Path
from threading import Lock

from matl_common.errors import IntegrityError
from matl_common.ids import Digest, NodeId, RoundId, digest_of_file
from matl_common.tensors import CHUNK_BYTES, MODEL_SUFFIX
from matl_common.tlog.entry import Entry
from matl_common.tlog.merkle import (
    HASH_BYTES,
    NodeAddress,
    frontier_from,
    grow,
    leaf_hash,
    merkle_root,
)
from matl_common.tlog.sealing import DATA_KEY_BYTES, data_key, seal
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.ports import (
    Change,
    CheckpointRecord,
    ChunkRefusedError,
    LoggedEntry,
    LogHead,
    ModelRecord,
    PutModel,
    PutRound,
    PutStudy,
    PutTrust,
    PutUpdate,
    SpoolError,
    SpoolFullError,
    StaleReaderError,
    StaleWriterError,
    State,
    Store,
    StoreError,
    StudyRecord,
    UpdateRecord,
    UpdateStatus,
)

_KEY = data_key("2026-11.1", bytes(DATA_KEY_BYTES))


@dataclass
class Tables:
    """What a database holds."""

    study: StudyRecord | None = None
    rounds: dict[RoundId, Round] = field(default_factory=dict)
    updates: dict[tuple[RoundId, NodeId], UpdateRecord] = field(default_factory=dict)
    trust: dict[RoundId, PutTrust] = field(default_factory=dict)
    models: dict[int, ModelRecord] = field(default_factory=dict)
    entries: list[LoggedEntry] = field(default_factory=list)
    nodes: dict[NodeAddress, bytes] = field(default_factory=dict)
    checkpoints: dict[int, CheckpointRecord] = field(default_factory=dict)

    def copy(self) -> Tables:
        return Tables(**{each.name: copy(getattr(self, each.name)) for each in fields(self)})


class FakeDatabase:
    """What outlives a store: several may be opened on one database."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.epoch = 0
        self.tables = Tables()


class FakeStore:
    """A ``ports.Store`` on a ``FakeDatabase``."""

    def __init__(self, database: FakeDatabase | None = None) -> None:
        self._database = database or FakeDatabase()
        self._epoch: int | None = None
        self._reign: int | None = None

    def load(self) -> State:
        with self._database.lock:
            if self._reign is None:
                self._database.epoch += 1
                self._reign = self._database.epoch
            if self._reign != self._database.epoch:
                raise StaleWriterError("another store was loaded after this one")
            self._epoch = self._reign
            tables = self._database.tables
        newest = tables.rounds[max(tables.rounds)] if tables.rounds else None
        return State(
            study=tables.study,
            round=newest,
            trust=tables.trust[max(tables.trust)].records if tables.trust else (),
            updates=self.updates(newest.round_id) if newest else (),
            rounds_released=sum(each.phase is Phase.RELEASED for each in tables.rounds.values()),
            latest_model=tables.models[max(tables.models)] if tables.models else None,
            epoch=self._reign,
        )

    def commit(
        self, changes: Sequence[Change], entries: Sequence[Entry]
    ) -> tuple[LoggedEntry, ...]:
        with self._database.lock:
            epoch, self._epoch = self._epoch, None
            if epoch is None:
                raise StoreError("the end of the last commit is not known; load the state again")
            if epoch != self._database.epoch:
                raise StaleWriterError("another store was loaded after this one")
            tables = self._database.tables.copy()
            logged = tuple(_append(tables, each) for each in entries)
            for change in changes:
                _apply(tables, change, logged)
            _check_references(tables)
            self._database.tables = tables
            self._epoch = epoch
            return logged

    def round(self, round_id: RoundId) -> Round | None:
        return self._tables.rounds.get(round_id)

    def rounds(self, *, after: int, limit: int) -> tuple[Round, ...]:
        numbers = sorted(number for number in self._tables.rounds if number > after)
        return tuple(self._tables.rounds[number] for number in numbers[:limit])

    def update(self, round_id: RoundId, node_id: NodeId) -> UpdateRecord | None:
        return self._tables.updates.get((round_id, node_id))

    def updates(self, round_id: RoundId) -> tuple[UpdateRecord, ...]:
        records = sorted(self._tables.updates.items())
        return tuple(record for (number, _), record in records if number == round_id)

    def last_admitted(self, node_id: NodeId) -> UpdateRecord | None:
        records = [
            each
            for each in self._tables.updates.values()
            if each.node_id == node_id and each.status is UpdateStatus.ADMITTED
        ]
        return max(records, key=lambda each: each.round_id, default=None)

    def admitted_counts(self) -> Mapping[NodeId, int]:
        records = self._tables.updates.values()
        return Counter(each.node_id for each in records if each.status is UpdateStatus.ADMITTED)

    def trust_history(self, *, after: int, limit: int) -> tuple[PutTrust, ...]:
        numbers = sorted(number for number in self._tables.trust if number > after)
        return tuple(self._tables.trust[number] for number in numbers[:limit])

    def model(self, digest: Digest) -> ModelRecord | None:
        models = sorted(self._tables.models.items())
        return next((model for _, model in models if model.digest == digest), None)

    def log_head(self) -> LogHead:
        entries = self._log_tables.entries
        root = merkle_root([bytes.fromhex(each.leaf_hash) for each in entries])
        return LogHead(len(entries), Digest(root.hex()))

    def log_entries(self, *, start: int, limit: int) -> tuple[LoggedEntry, ...]:
        return tuple(self._log_tables.entries[start : start + limit])

    def log_node(self, level: int, index: int) -> bytes:
        try:
            return self._log_tables.nodes[level, index]
        except KeyError:
            raise IntegrityError(f"the log has no node {(level, index)}") from None

    def log_nodes(self, addresses: Sequence[NodeAddress]) -> Mapping[NodeAddress, bytes]:
        return {address: self.log_node(*address) for address in addresses}

    def checkpoints(self) -> Iterator[CheckpointRecord]:
        checkpoints = self._log_tables.checkpoints
        return iter([checkpoints[size] for size in sorted(checkpoints, reverse=True)])

    def put_checkpoint(self, size: int, note: bytes) -> bool:
        with self._writing_log():
            record = CheckpointRecord(size, note, {})
            kept = self._database.tables.checkpoints.setdefault(size, record)
            return kept.note == note

    def put_cosignature(self, size: int, node_id: NodeId, line: bytes) -> None:
        with self._writing_log():
            checkpoints = self._database.tables.checkpoints
            if size not in checkpoints:
                raise StoreError("a cosignature belongs to a checkpoint that is not recorded")
            record = checkpoints[size]
            lines = {node_id: line, **record.cosignatures}
            checkpoints[size] = replace(record, cosignatures=dict(sorted(lines.items())))

    def close(self) -> None:
        pass

    @contextmanager
    def _writing_log(self) -> Iterator[None]:
        with self._database.lock:
            if self._reign is None:
                raise StoreError("nothing is written before the state was loaded")
            if self._reign != self._database.epoch:
                raise StaleWriterError("another store was loaded after this one")
            yield

    @property
    def _log_tables(self) -> Tables:
        if self._reign is not None and self._reign != self._database.epoch:
            raise StaleReaderError("another store was loaded after this one")
        return self._tables

    @property
    def _tables(self) -> Tables:
        # Replaced whole by every commit and never changed, so readers need no lock.
        return self._database.tables


def _append(tables: Tables, entry: Entry) -> LoggedEntry:
    index = len(tables.entries)
    random = hashlib.sha512(b"%d" % index).digest()
    sealed = seal(entry, origin="fake.matl.internal/log", index=index, key=_KEY, random=random)
    hashed = leaf_hash(sealed.leaf)
    logged = LoggedEntry(
        index, sealed.leaf, sealed.payload, entry.data, sealed.salt, Digest(hashed.hex())
    )
    frontier = frontier_from(index, lambda level, i: tables.nodes[level, i])
    _, runs = grow(frontier, [hashed])
    tables.nodes.update(((run.level, run.first), run.hashes[0]) for run in runs)
    tables.entries.append(logged)
    return logged


def _apply(tables: Tables, change: Change, logged: tuple[LoggedEntry, ...]) -> None:
    match change:
        case PutStudy(record=study):
            tables.study = study
        case PutRound(round=rnd):
            tables.rounds[rnd.round_id] = rnd
        case PutUpdate(record=record, decided_by=position):
            if position is not None:
                if not 0 <= position < len(logged):
                    raise StoreError(f"a commit of {len(logged)} entries has no entry {position}")
                leaf = logged[position]
                record = replace(record, log_index=leaf.index, log_leaf_hash=leaf.leaf_hash)
            tables.updates[record.round_id, record.node_id] = record
        case PutTrust(round_id=round_id):
            tables.trust[round_id] = change
        case PutModel(record=model):
            tables.models[model.round_id] = model


def _check_references(tables: Tables) -> None:
    if not {number for number, _ in tables.updates} <= tables.rounds.keys():
        raise StoreError("an update belongs to a round that is not recorded")


class Fault(Enum):
    """How a commit fails."""

    NOT_PERSISTED = auto()
    PERSISTED = auto()
    """Reported as failed although it is durable."""


class FaultyStore:
    """Hands everything to another store, and fails the commits it is told to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._faults: dict[int, Fault] = {}
        self._must_load = False
        self.commits = 0
        """Commits asked for so far, failed ones included."""

    def fail_commit(self, number: int, fault: Fault) -> None:
        """Fail the commit of this number, counted from 0 since the wrapper was made."""
        self._faults[number] = fault

    def load(self) -> State:
        state = self._store.load()
        self._must_load = False
        return state

    def commit(
        self, changes: Sequence[Change], entries: Sequence[Entry]
    ) -> tuple[LoggedEntry, ...]:
        if self._must_load:
            raise StoreError("the end of the last commit is not known; load the state again")
        fault = self._faults.get(self.commits)
        self.commits += 1
        self._must_load = fault is not None
        if fault is Fault.NOT_PERSISTED:
            raise StoreError("the database did not confirm (injected; nothing was kept)")
        logged = self._store.commit(changes, entries)
        if fault is Fault.PERSISTED:
            raise StoreError("the database did not confirm (injected; everything was kept)")
        return logged

    def round(self, round_id: RoundId) -> Round | None:
        return self._store.round(round_id)

    def rounds(self, *, after: int, limit: int) -> tuple[Round, ...]:
        return self._store.rounds(after=after, limit=limit)

    def update(self, round_id: RoundId, node_id: NodeId) -> UpdateRecord | None:
        return self._store.update(round_id, node_id)

    def updates(self, round_id: RoundId) -> tuple[UpdateRecord, ...]:
        return self._store.updates(round_id)

    def last_admitted(self, node_id: NodeId) -> UpdateRecord | None:
        return self._store.last_admitted(node_id)

    def admitted_counts(self) -> Mapping[NodeId, int]:
        return self._store.admitted_counts()

    def trust_history(self, *, after: int, limit: int) -> tuple[PutTrust, ...]:
        return self._store.trust_history(after=after, limit=limit)

    def model(self, digest: Digest) -> ModelRecord | None:
        return self._store.model(digest)

    def log_head(self) -> LogHead:
        return self._store.log_head()

    def log_entries(self, *, start: int, limit: int) -> tuple[LoggedEntry, ...]:
        return self._store.log_entries(start=start, limit=limit)

    def log_node(self, level: int, index: int) -> bytes:
        return self._store.log_node(level, index)

    def log_nodes(self, addresses: Sequence[NodeAddress]) -> Mapping[NodeAddress, bytes]:
        return self._store.log_nodes(addresses)

    def checkpoints(self) -> Iterator[CheckpointRecord]:
        return self._store.checkpoints()

    def put_checkpoint(self, size: int, note: bytes) -> bool:
        return self._store.put_checkpoint(size, note)

    def put_cosignature(self, size: int, node_id: NodeId, line: bytes) -> None:
        self._store.put_cosignature(size, node_id, line)

    def close(self) -> None:
        self._store.close()


@dataclass
class _Part:
    """An update in the fake spool."""

    byte_count: int
    chunk_hashes: bytes
    chunks: list[bytes] = field(default_factory=list)
    durable: int = 0
    is_open: bool = True
    is_complete: bool = False


class FakeSpool:
    """A ``ports.Spool`` that writes only complete updates, into ``folder``."""

    def __init__(self, folder: Path, *, quota_bytes: int = 1 << 40) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._parts: dict[tuple[RoundId, NodeId], _Part] = {}

    def open(
        self, round_id: RoundId, node_id: NodeId, *, byte_count: int, chunk_hashes: bytes
    ) -> FakeSink:
        key = (round_id, node_id)
        if byte_count < 1 or len(chunk_hashes) != -(-byte_count // CHUNK_BYTES) * HASH_BYTES:
            raise SpoolError(f"the chunk hashes do not belong to {byte_count} bytes")
        before = self._parts.get(key)
        if before and before.is_open:
            raise SpoolError(f"the update of {node_id} is already being received")
        taken = sum(each.byte_count for name, each in self._parts.items() if name != key)
        if taken + byte_count > self._quota_bytes:
            raise SpoolFullError(f"an update of {byte_count} bytes does not fit")
        part = _Part(byte_count, chunk_hashes)
        if before:
            _resume(part, before)
        self._parts[key] = part
        return FakeSink(part, self._path(*key))

    def path(self, round_id: RoundId, node_id: NodeId) -> Path:
        part = self._parts.get((round_id, node_id))
        if part is None or not part.is_complete:
            raise SpoolError(f"there is no complete update of {node_id} in round {round_id}")
        return self._path(round_id, node_id)

    def scratch(self, round_id: RoundId) -> Path:
        folder = self._folder / str(round_id) / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_scratch(self, round_id: RoundId) -> None:
        shutil.rmtree(self._folder / str(round_id) / "scratch", ignore_errors=True)

    def discard_before(self, round_id: RoundId) -> None:
        for key in [key for key in self._parts if key[0] < round_id]:
            self._parts.pop(key).is_open = False
        for folder in self._folder.iterdir():
            if folder.name.isdecimal() and int(folder.name) < round_id:
                shutil.rmtree(folder)

    def reserved_bytes(self) -> int:
        return sum(part.byte_count for part in self._parts.values())

    def crash(self) -> None:
        """Lose what was not made durable, as a power cut does."""
        for part in self._parts.values():
            del part.chunks[part.durable :]
            part.is_open = False

    def _path(self, round_id: RoundId, node_id: NodeId) -> Path:
        return self._folder / str(round_id) / f"{node_id}.update"


def _resume(part: _Part, before: _Part) -> None:
    for chunk, *hashes in zip(before.chunks, _hashes(before), _hashes(part), strict=False):
        if hashes[0] != hashes[1] or len(part.chunks) * CHUNK_BYTES + len(chunk) > part.byte_count:
            break
        part.chunks.append(chunk)
    part.durable = len(part.chunks)
    part.is_complete = before.is_complete and part.chunk_hashes == before.chunk_hashes


def _hashes(part: _Part) -> list[bytes]:
    hashes = part.chunk_hashes
    return [hashes[begin : begin + HASH_BYTES] for begin in range(0, len(hashes), HASH_BYTES)]


class FakeSink:
    """A ``ports.UpdateSink`` of a ``FakeSpool``."""

    def __init__(self, part: _Part, path: Path) -> None:
        self._part = part
        self._path = path

    @property
    def received_chunks(self) -> int:
        return len(self._part.chunks)

    def append(self, index: int, data: bytes | memoryview) -> None:
        part = self._open_part()
        if index != len(part.chunks) or index >= len(_hashes(part)):
            raise ChunkRefusedError(f"chunk {index} came where {len(part.chunks)} is next")
        if len(data) != min(CHUNK_BYTES, part.byte_count - index * CHUNK_BYTES):
            raise ChunkRefusedError(f"chunk {index} has {len(data)} bytes")
        if leaf_hash(data) != _hashes(part)[index]:
            raise ChunkRefusedError(f"chunk {index} does not match its declared hash")
        part.chunks.append(bytes(data))

    def sync(self) -> int:
        part = self._open_part()
        part.durable = len(part.chunks)
        return part.durable

    def finish(self) -> Path:
        part = self._open_part()
        if len(part.chunks) < len(_hashes(part)):
            raise SpoolError(f"only {len(part.chunks)} chunks have arrived")
        part.durable = len(part.chunks)
        part.is_complete = True
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_bytes(b"".join(part.chunks))
        return self._path

    def close(self) -> None:
        self._part.is_open = False

    def _open_part(self) -> _Part:
        if not self._part.is_open:
            raise SpoolError("this update is closed; open it again")
        return self._part


class FakeModelStore:
    """A ``ports.ModelStore`` that syncs nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.incoming.mkdir(exist_ok=True)

    @property
    def incoming(self) -> Path:
        return self._folder / "incoming"

    def path(self, digest: Digest) -> Path:
        return self._folder / f"{digest}{MODEL_SUFFIX}"

    def has(self, digest: Digest) -> bool:
        return self.path(digest).exists()

    def adopt(self, source: Path) -> Digest:
        if not source.exists() and self.has(Digest(source.stem)):
            return Digest(source.stem)
        digest = digest_of_file(source)
        if len(source.stem) == len(digest) and source.stem != digest:
            raise IntegrityError(f"{source.name} has the SHA-256 {digest}")
        source.rename(self.path(digest))
        return digest

    def remove(self, digest: Digest) -> None:
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterable[Digest]:
        return sorted(Digest(path.stem) for path in self._folder.glob(f"*{MODEL_SUFFIX}"))
