"""The coordinator's memory in SQLite or PostgreSQL.

Every change is one transaction that also appends the log entries which tell of it.
Only ``StoreError``, and ``IntegrityError`` for a damaged database, leave this module.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from threading import Lock
from typing import Self

from sqlalchemy import Connection, Engine, Table, func, insert, select, update

from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.ids import Digest, NodeId, RoundId
from matl_common.tlog.entry import Entry
from matl_common.tlog.merkle import NodeAddress
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.core.trust import TrustRecord
from matl_coordinator.ports import (
    Change,
    CheckpointRecord,
    EntryDamage,
    ForeignRow,
    LoggedEntry,
    LogHead,
    ModelRecord,
    PutModel,
    PutRound,
    PutStudy,
    PutTrust,
    PutUpdate,
    State,
    StoreError,
    StudyRecord,
    UpdateRecord,
    UpdateStatus,
)
from matl_coordinator.store import checkpoints, codec, guards, log
from matl_coordinator.store.data_keys import DataKeys
from matl_coordinator.store.database import create_database_engine, reading
from matl_coordinator.store.leadership import require_epoch, require_reign, take_over
from matl_coordinator.store.limits import DEFAULT_LIMITS, TimeLimits
from matl_coordinator.store.marks import newest_of
from matl_coordinator.store.migrate import upgrade_to_head
from matl_coordinator.store.schema import log_entries, models, rounds, study, trust, updates
from matl_coordinator.store.turns import taking_turns


class SqlStore:
    """A ``ports.Store`` on an engine of ``create_database_engine``.

    Safe to call from several threads; commits take turns.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        log_origin: str,
        log_key: KeyEncryptionKey,
        report: Callable[[ForeignRow], None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._log_origin = log_origin
        self._log_keys = DataKeys(log_key, report=report)
        self._report = report
        # Entries that were reported.
        self._damaged = set[tuple[int, EntryDamage]]()
        self._commit_lock = Lock()
        # Guarded by _commit_lock. None: nothing loaded yet, or a commit of unknown end.
        self._epoch: int | None = None
        # Written under _commit_lock, once. The epoch that this store took over with.
        self._reign: int | None = None

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        log_origin: str,
        log_key: KeyEncryptionKey,
        limits: TimeLimits = DEFAULT_LIMITS,
        report: Callable[[ForeignRow], None] = lambda _: None,
    ) -> Self:
        """Open a database and bring its tables to this version.

        Args:
            url: as for ``create_database_engine``.
            log_origin: the log's name, which every leaf repeats.
            log_key: wraps the keys that the log's entries are encrypted with.
            limits: how long to wait for the database.
            report: told of each data key and entry in the database that is none of this log's.

        Raises:
            ConfigurationError: a URL of another kind, a database of another version, or one
                whose log is encrypted under another key.
            StoreError: the database cannot be reached.
        """
        engine = create_database_engine(url, limits=limits)
        try:
            upgrade_to_head(engine)
        except BaseException:
            engine.dispose()
            raise
        store = cls(engine, log_origin=log_origin, log_key=log_key, report=report)
        try:
            with reading(engine) as connection:
                store._log_keys.check(connection)
        except BaseException:
            engine.dispose()
            raise
        return store

    def load(self) -> State:
        with self._commit_lock:
            self._epoch = None
            with taking_turns(self._engine) as connection:
                # Whoever was replaced must not take the study back by reading it again.
                if self._reign is None:
                    epoch = take_over(connection)
                else:
                    epoch = self._reign
                    require_epoch(connection, epoch)
                state = read_state(connection, epoch)
            self._epoch = self._reign = epoch
            return state

    def commit(
        self, changes: Sequence[Change], entries: Sequence[Entry]
    ) -> tuple[LoggedEntry, ...]:
        with self._commit_lock:
            epoch, self._epoch = self._epoch, None
            if epoch is None:
                raise StoreError("the end of the last commit is not known; load the state again")
            with taking_turns(self._engine) as connection:
                require_epoch(connection, epoch)
                logged = log.append_entries(
                    connection, entries, origin=self._log_origin, keys=self._log_keys
                )
                for change in changes:
                    _apply(connection, change, logged)
            self._epoch = epoch
            return logged

    def round(self, round_id: RoundId) -> Round | None:
        with reading(self._engine) as connection:
            query = select(rounds.c.document).where(rounds.c.round_id == round_id)
            document = connection.execute(query).scalar_one_or_none()
        return None if document is None else codec.ROUND.decode_one(document)

    def rounds(self, *, after: int, limit: int) -> tuple[Round, ...]:
        with reading(self._engine) as connection:
            query = select(rounds.c.document).where(rounds.c.round_id > after)
            ordered = query.order_by(rounds.c.round_id).limit(limit)
            documents = connection.execute(ordered).scalars().all()
        return tuple(codec.ROUND.decode_one(document) for document in documents)

    def update(self, round_id: RoundId, node_id: NodeId) -> UpdateRecord | None:
        with reading(self._engine) as connection:
            key = (updates.c.round_id == round_id) & (updates.c.node_id == node_id)
            query = select(updates.c.document).where(key)
            document = connection.execute(query).scalar_one_or_none()
        return None if document is None else codec.UPDATE.decode_one(document)

    def updates(self, round_id: RoundId) -> tuple[UpdateRecord, ...]:
        with reading(self._engine) as connection:
            return _read_updates(connection, round_id)

    def last_admitted(self, node_id: NodeId) -> UpdateRecord | None:
        admitted = updates.c.status == UpdateStatus.ADMITTED.value
        query = select(updates.c.document).where(admitted & (updates.c.node_id == node_id))
        newest = query.order_by(updates.c.round_id.desc()).limit(1)
        with reading(self._engine) as connection:
            document = connection.execute(newest).scalar_one_or_none()
        return None if document is None else codec.UPDATE.decode_one(document)

    def admitted_counts(self) -> Mapping[NodeId, int]:
        query = select(updates.c.node_id, func.count())
        admitted = query.where(updates.c.status == UpdateStatus.ADMITTED.value)
        with reading(self._engine) as connection:
            rows = connection.execute(admitted.group_by(updates.c.node_id)).all()
        return {NodeId(node_id): count for node_id, count in rows}

    def trust_history(self, *, after: int, limit: int) -> tuple[PutTrust, ...]:
        with reading(self._engine) as connection:
            query = select(trust.c.round_id, trust.c.document).where(trust.c.round_id > after)
            ordered = query.order_by(trust.c.round_id).limit(limit)
            rows = connection.execute(ordered).all()
        return tuple(PutTrust(RoundId(row[0]), codec.TRUST.decode(row[1])) for row in rows)

    def model(self, digest: Digest) -> ModelRecord | None:
        with reading(self._engine) as connection:
            query = select(models.c.document).where(models.c.digest == digest)
            first = query.order_by(models.c.round_id).limit(1)
            document = connection.execute(first).scalar_one_or_none()
        return None if document is None else codec.MODEL.decode_one(document)

    def log_head(self) -> LogHead:
        with self._reading_log() as connection:
            return log.read_head(connection)

    def log_entries(self, *, start: int, limit: int) -> tuple[LoggedEntry, ...]:
        with self._reading_log() as connection:
            found = log.read_entries(connection, start=start, limit=limit, keys=self._log_keys)
        for each in found:
            if (
                each.damage is not None
                and (known := (each.index, each.damage)) not in self._damaged
            ):
                self._damaged.add(known)
                self._report(ForeignRow(log_entries.name, str(each.index), each.damage.value))
        return found

    def newest_entry(self, event: str, *, start: int) -> datetime | None:
        """When the newest entry of this kind from leaf ``start`` on was written."""
        with self._reading_log() as connection:
            return newest_of(connection, event, start=start)

    def log_node(self, level: int, index: int) -> bytes:
        with self._reading_log() as connection:
            return log.read_node(connection, level, index)

    def log_nodes(self, addresses: Sequence[NodeAddress]) -> Mapping[NodeAddress, bytes]:
        with self._reading_log() as connection:
            return log.read_nodes(connection, addresses)

    def checkpoints(self) -> Iterator[CheckpointRecord]:
        below: int | None = None
        while True:
            with self._reading_log() as connection:
                page = checkpoints.read_below(connection, below)
            if not page:
                return
            yield from page
            below = page[-1].size

    def put_checkpoint(self, size: int, note: bytes) -> bool:
        with self._writing_log() as connection:
            return checkpoints.put_checkpoint(connection, size, note)

    def put_cosignature(self, size: int, node_id: NodeId, line: bytes) -> None:
        with self._writing_log() as connection:
            checkpoints.put_cosignature(connection, size, node_id, line)

    @contextmanager
    def _reading_log(self) -> Iterator[Connection]:
        reign = self._reign
        with reading(self._engine) as connection:
            yield connection
            # Afterwards: what was read is not older than this. Before the first load, nothing that
            # is read is given out.
            if reign is not None:
                require_reign(connection, reign)

    @contextmanager
    def _writing_log(self) -> Iterator[Connection]:
        reign = self._reign
        if reign is None:
            raise StoreError("nothing is written before the state was loaded")
        with taking_turns(self._engine) as connection:
            require_epoch(connection, reign)
            yield connection

    def weaknesses(self) -> tuple[str, ...]:
        """What the database does not keep its own user from doing to the log."""
        with reading(self._engine) as connection:
            return guards.weaknesses(connection)

    def close(self) -> None:
        self._engine.dispose()


def _apply(connection: Connection, change: Change, logged: tuple[LoggedEntry, ...]) -> None:
    match change:
        case PutStudy(record=record):
            _put(connection, study, {"id": 1}, codec.STUDY.encode([record]))
        case PutRound(round=rnd):
            document = codec.ROUND.encode([rnd])
            _put(connection, rounds, {"round_id": rnd.round_id}, document, phase=rnd.phase.value)
        case PutUpdate(record=record, decided_by=position):
            filled = _with_decision(record, position, logged)
            key = {"round_id": record.round_id, "node_id": record.node_id}
            document = codec.UPDATE.encode([filled])
            _put(connection, updates, key, document, status=record.status.value)
        case PutTrust(round_id=round_id, records=records):
            _put(connection, trust, {"round_id": round_id}, codec.TRUST.encode(records))
        case PutModel(record=record):
            document = codec.MODEL.encode([record])
            _put(connection, models, {"round_id": record.round_id}, document, digest=record.digest)


def _put(
    connection: Connection, table: Table, key: Mapping[str, object], document: str, **columns: str
) -> None:
    """Insert or replace a row; the write lock keeps anyone from coming between."""
    values = {"document": document, **columns}
    replaced = connection.execute(update(table).filter_by(**key).values(values))
    if replaced.rowcount == 0:
        connection.execute(insert(table).values(**key, **values))


def _with_decision(
    record: UpdateRecord, position: int | None, logged: tuple[LoggedEntry, ...]
) -> UpdateRecord:
    if position is None:
        return record
    if not 0 <= position < len(logged):
        raise StoreError(f"a commit of {len(logged)} entries has no entry {position}")
    leaf = logged[position]
    return replace(record, log_index=leaf.index, log_leaf_hash=leaf.leaf_hash)


def read_state(connection: Connection, epoch: int) -> State:
    """The study as a database has it, to the writer of ``epoch``."""
    newest = _read_newest_round(connection)
    released = select(func.count()).select_from(rounds)
    released = released.where(rounds.c.phase == Phase.RELEASED.value)
    return State(
        study=_read_study(connection),
        round=newest,
        trust=_read_newest_trust(connection),
        updates=() if newest is None else _read_updates(connection, newest.round_id),
        rounds_released=connection.execute(released).scalar_one(),
        latest_model=_read_newest_model(connection),
        epoch=epoch,
    )


def _read_study(connection: Connection) -> StudyRecord | None:
    document = connection.execute(select(study.c.document)).scalar_one_or_none()
    return None if document is None else codec.STUDY.decode_one(document)


def _read_newest_round(connection: Connection) -> Round | None:
    query = select(rounds.c.document).order_by(rounds.c.round_id.desc()).limit(1)
    document = connection.execute(query).scalar_one_or_none()
    return None if document is None else codec.ROUND.decode_one(document)


def _read_newest_trust(connection: Connection) -> tuple[TrustRecord, ...]:
    query = select(trust.c.document).order_by(trust.c.round_id.desc()).limit(1)
    document = connection.execute(query).scalar_one_or_none()
    return () if document is None else codec.TRUST.decode(document)


def _read_newest_model(connection: Connection) -> ModelRecord | None:
    query = select(models.c.document).order_by(models.c.round_id.desc()).limit(1)
    document = connection.execute(query).scalar_one_or_none()
    return None if document is None else codec.MODEL.decode_one(document)


def _read_updates(connection: Connection, round_id: RoundId) -> tuple[UpdateRecord, ...]:
    query = select(updates.c.document).where(updates.c.round_id == round_id)
    documents = connection.execute(query.order_by(updates.c.node_id)).scalars()
    return tuple(codec.UPDATE.decode_one(document) for document in documents)
