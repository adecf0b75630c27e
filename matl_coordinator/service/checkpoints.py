"""What the log commits to before the hospitals, and what they have countersigned.

A checkpoint is signed when somebody asks and the log has grown. The same one is offered until
a quorum has cosigned it, so that witnesses who ask at different times sign the same; after
``PATIENCE`` the next one takes its place, whoever is missing. Cosignatures are not logged: each
would ask for the next.

A quorum is more than half of n + f witnesses: two checkpoints of a forked log cannot both have
one unless more than f hospitals sign what they should not (``policy.intersecting_quorum``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Protocol

from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.identity.allowlist import MAX_WITNESSES, Allowlist
from matl_common.identity.held_keys import Ed25519Key
from matl_common.ids import NodeId
from matl_common.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from matl_common.tlog.cosignature import verified_cosignatures
from matl_common.tlog.merkle import ReadNode, consistency_proof, nodes_read, root_from
from matl_common.tlog.note import Note, NoteSignature, VerifierKey, parse_note
from matl_common.tlog.policy import (
    NO_QUORUM,
    Policy,
    intersecting_quorum,
    quorum_met,
    threshold_policy,
)
from matl_coordinator.ports import CheckpointRecord, ForeignRow, LogHead, Store
from matl_coordinator.service.tree import over_tree

PATIENCE = timedelta(seconds=60)
"""How long a checkpoint waits for its quorum before the next is signed."""

VERIFIED_FOR = timedelta(seconds=10)
"""How long the stored checkpoint and its lines count as verified, while the log's head stays."""


class LogRewrittenError(IntegrityError):
    """The log in the database does not continue the one this coordinator has signed."""


class Anchor(Protocol):
    """Where the last signed checkpoint is kept, apart from the database."""

    def read(self) -> bytes | None:
        """What was written last; ``None`` if nothing ever was."""
        ...

    def write(self, note: bytes) -> None:
        """Replace it, durably."""
        ...


def check_continues(last: Checkpoint, *, size: int, root: bytes) -> None:
    """Refuse a log that does not begin with what its coordinator signed last.

    Args:
        last: the checkpoint.
        size: entries of the log.
        root: of its first ``last.size`` entries, where it has as many.

    Raises:
        LogRewrittenError: it does not.
    """
    if size < last.size:
        raise LogRewrittenError(
            f"the database's log has {size} entries, and this coordinator has signed a "
            f"checkpoint of {last.size}: the database is older than that, or another one. "
            "Restore its newest backup; hospitals would refuse a log that went back"
        )
    if root != last.root:
        raise LogRewrittenError(
            f"the first {last.size} entries of the database's log are not those whose "
            "checkpoint this coordinator has signed: the log was rewritten, or is another's. "
            "Find out who could write to the database, and restore its newest backup"
        )


class CheckpointError(MatlError):
    """A checkpoint cannot be had or cosigned as asked."""


@dataclass(frozen=True, slots=True)
class LogSigner:
    """The log's key, and who holds its private part."""

    key: VerifierKey
    signer: Ed25519Key


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A checkpoint with the cosignatures it has."""

    size: int
    note: Note
    cosigners: frozenset[NodeId]
    has_quorum: bool


@dataclass(frozen=True, slots=True)
class Extension:
    """A checkpoint, and the proof that it extends an earlier one."""

    witnessed: Witnessed
    proof: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the store held when it was asked."""

    head: LogHead
    record: CheckpointRecord | None
    """The largest checkpoint that this log signed, of the log as it is."""
    at: datetime


class Checkpoints:
    """Signs checkpoints and collects cosignatures. Runs on one event loop.

    Nothing is given out from memory alone: a coordinator that was replaced is told by its store
    (``StaleReaderError``), and shows no witness a checkpoint that is behind the other's. The log's
    head, size and root, is read for each who asks. The checkpoint's own rows are verified when the
    head has moved, in either direction, or ``VERIFIED_FOR`` is over: once for all who ask.
    """

    def __init__(
        self,
        *,
        store: Store,
        anchor: Anchor,
        log: LogSigner,
        policy: Policy,
        clock: Callable[[], datetime],
        report: Callable[[ForeignRow], None] = lambda _: None,
    ) -> None:
        """Names of witnesses in the policy are node ids.

        ``report`` is told of each checkpoint and cosignature in the store that this log's key, or a
        witness's, did not make, once.
        """
        self._store = store
        self._anchor = anchor
        self._log = log
        self._policy = policy
        self._clock = clock
        self._report = report
        # Guards what follows, and the order of what is signed.
        self._lock = asyncio.Lock()
        # What was verified last, and as it is shown; the store is asked all the same whether it
        # still leads, and for the head.
        self._seen: _Seen | None = None
        self._shown: tuple[CheckpointRecord, Witnessed] | None = None
        # The newest with a quorum, of what was verified; looked for where the latest has none.
        self._vouched: tuple[_Seen, CheckpointRecord | None] | None = None
        # What was given out last.
        self._latest: CheckpointRecord | None = None
        # Rows of the store that were reported.
        self._foreign: set[tuple[str, str, bytes]] = set()
        self._signed_at: datetime | None = None

    async def resume(self) -> None:
        """See that the log still begins with what this coordinator signed last.

        Raises:
            LogRewrittenError: it does not.
            StoreError: the store cannot be read.
        """
        signed = await asyncio.to_thread(self._anchor.read)
        if signed is None:
            return
        last = open_checkpoint(signed, [self._log.key]).checkpoint
        head = await asyncio.to_thread(self._store.log_head)
        root = b""
        if head.size >= last.size:
            root = await over_tree(self._store, lambda read: root_from(last.size, read))
        check_continues(last, size=head.size, root=root)

    @property
    def policy(self) -> Policy:
        """Whose cosignatures count, and how many are enough."""
        return self._policy

    def go_by(self, policy: Policy) -> None:
        """Count the cosignatures of this policy's witnesses from now on."""
        self._policy = policy
        self._seen = self._shown = None

    async def latest(self) -> Witnessed | None:
        """The largest checkpoint that was signed, with the cosignatures it has by now.

        Raises:
            StoreError: the store cannot be read.
        """
        async with self._lock:
            record = (await self._load()).record
            return None if record is None else self._witnessed(record)

    async def witnessed(self) -> Witnessed | None:
        """The largest checkpoint that a quorum has cosigned; ``None`` before the first.

        Raises:
            StoreError: the store cannot be read.
        """
        async with self._lock:
            seen = await self._load()
            record = seen.record
            if record is not None and not quorum_met(self._policy, record.cosignatures):
                if self._vouched is None or self._vouched[0] is not seen:
                    self._vouched = seen, await asyncio.to_thread(self._newest_with_quorum)
                record = self._vouched[1]
            return None if record is None else self._witnessed(record)

    async def newest(self) -> Witnessed:
        """A checkpoint of the log as it is now, cosigned or not.

        Raises:
            StoreError: the store cannot be read, or did not keep it.
        """
        async with self._lock:
            return self._witnessed(await self._sign_if_grown(await self._load()))

    async def to_cosign(self, *, old_size: int) -> Extension:
        """The checkpoint for a witness whose last one has ``old_size`` leaves, 0 for none.

        Raises:
            StoreError: the store cannot be read, or did not keep it.
        """
        async with self._lock:
            seen = await self._load()
            record = seen.record
            if record is None or self._is_settled(record):
                record = await self._sign_if_grown(seen)
            witnessed = self._witnessed(record)
        proof: Sequence[bytes] = ()
        # Who has this very one needs no proof, as long as the log has as many entries.
        is_known = old_size == record.size <= seen.head.size
        # Who has seen more than there is gets what is there, signed: it is evidence.
        if 0 < old_size <= record.size and not is_known:
            proof = await self.consistency(old_size, record.size)
        return Extension(witnessed, proof)

    async def cosign(self, node_id: NodeId, *, size: int, line: bytes) -> Witnessed:
        """Take a hospital's cosignature of the checkpoint it was given.

        Raises:
            CheckpointError: the hospital is no witness, or the checkpoint is not the latest.
            InvalidInputError: it is not a signature line, or not by the hospital's witness key.
            StoreError: the store did not confirm.
        """
        key = self._policy.witnesses.get(node_id)
        if key is None:
            raise CheckpointError(f"{node_id} is enrolled without a witness_key")
        async with self._lock:
            seen = await self._load()
            record = seen.record
            if record is None or record.size != size:
                raise CheckpointError("another checkpoint is being cosigned by now; ask for it")
            _check_line(record.note, line, key)
            if node_id not in record.cosignatures:
                await asyncio.to_thread(self._store.put_cosignature, size, node_id, line)
                lines = dict(sorted({**record.cosignatures, node_id: line}.items()))
                record = replace(record, cosignatures=lines)
                self._latest, self._seen = record, replace(seen, record=record)
            return self._witnessed(record)

    async def consistency(self, old_size: int, new_size: int) -> Sequence[bytes]:
        """Shows that the tree of ``new_size`` leaves extends that of ``old_size``.

        Raises:
            InvalidInputError: there are no such two trees.
            StoreError: the store cannot be read.
        """
        head = await asyncio.to_thread(self._store.log_head)
        if new_size > head.size:
            raise InvalidInputError(f"the log has {head.size} leaves, not {new_size}")
        return await over_tree(
            self._store, lambda read: consistency_proof(old_size, new_size, read)
        )

    async def _load(self) -> _Seen:
        """What the store holds; raises where another coordinator has taken over."""
        # First: a log that moves meanwhile is verified again by who asks next.
        head = await asyncio.to_thread(self._store.log_head)
        now, seen = self._clock(), self._seen
        # A clock that was set back makes nothing last longer.
        if seen and head == seen.head and timedelta(0) <= now - seen.at < VERIFIED_FOR:
            return seen
        record = await asyncio.to_thread(self._newest_sound)
        known = self._latest
        if record is not None and known is not None and known.note == record.note:
            # A line of somebody else's may keep a witness's out of the store.
            lines = {**record.cosignatures, **known.cosignatures}
            record = replace(record, cosignatures=dict(sorted(lines.items())))
        self._latest = record
        self._seen = _Seen(head, record, now)
        return self._seen

    def _newest_sound(self) -> CheckpointRecord | None:
        # Blocking; runs in a thread, under the lock.
        for record in self._store.checkpoints():
            reason = self._refusal(record)
            if reason is None:
                return self._with_sound_lines(record)
            self._tell(ForeignRow("log_checkpoints", str(record.size), reason), record.note)
        return None

    def _newest_with_quorum(self) -> CheckpointRecord | None:
        for record in self._store.checkpoints():
            # By name first: most that are passed over are not worth verifying.
            if not quorum_met(self._policy, record.cosignatures) or self._refusal(record):
                continue
            sound = self._with_sound_lines(record)
            if quorum_met(self._policy, sound.cosignatures):
                return sound
        return None

    def _refusal(self, record: CheckpointRecord) -> str | None:
        """Why a checkpoint in the store is none of this log's."""
        try:
            found = open_checkpoint(record.note, [self._log.key]).checkpoint
        except (InvalidInputError, IntegrityError) as error:
            return str(error)
        if found.size != record.size:
            return f"it states {found.size} entries"
        # Of a log that is shorter than what was signed, who asks is to see that it went back.
        if found.size > self._store.log_head().size:
            return None

        def root(read: ReadNode) -> bytes:
            return root_from(found.size, read)

        nodes = self._store.log_nodes(nodes_read(root))
        if root(lambda level, index: nodes[level, index]) != found.root:
            return "it states another root than the log's"
        return None

    def _with_sound_lines(self, record: CheckpointRecord) -> CheckpointRecord:
        """Without lines that are not their witness's: nobody else could take the note apart."""
        sound: dict[NodeId, bytes] = {}
        for node_id, line in record.cosignatures.items():
            key = self._policy.witnesses.get(node_id)
            try:
                _check_line(record.note, line, key)
            except InvalidInputError as error:
                row = ForeignRow("log_cosignatures", f"{record.size}, {node_id}", str(error))
                self._tell(row, line)
                continue
            sound[node_id] = line
        return replace(record, cosignatures=sound)

    def _tell(self, row: ForeignRow, content: bytes) -> None:
        if (known := (row.table, row.key, content)) not in self._foreign:
            self._foreign.add(known)
            self._report(row)

    async def _sign_if_grown(self, seen: _Seen) -> CheckpointRecord:
        record, head = seen.record, seen.head
        if record is not None and record.size >= head.size:
            return record
        checkpoint = Checkpoint(self._log.key.name, head.size, bytes.fromhex(head.root))
        # A token may take its time.
        signed = await asyncio.to_thread(
            sign_checkpoint, checkpoint, self._log.key, self._log.signer
        )
        note = signed.note.encode()
        # Kept before anybody sees it: after a crash the same one is offered again.
        if not await asyncio.to_thread(self._store.put_checkpoint, head.size, note):
            if record is None:
                raise CheckpointError(
                    f"somebody else has put a checkpoint of {head.size} entries in the database; "
                    "the next is signed once the log has grown"
                )
            return record
        self._seen = None
        await asyncio.to_thread(self._anchor.write, note)
        self._latest = CheckpointRecord(head.size, note, {})
        self._signed_at = self._clock()
        return self._latest

    def _is_settled(self, record: CheckpointRecord) -> bool:
        waited = self._signed_at is None or self._clock() - self._signed_at >= PATIENCE
        return waited or quorum_met(self._policy, record.cosignatures)

    def _witnessed(self, record: CheckpointRecord) -> Witnessed:
        if self._shown is None or self._shown[0] is not record:
            shown = Witnessed(
                size=record.size,
                note=with_cosignatures(record),
                cosigners=frozenset(record.cosignatures),
                has_quorum=quorum_met(self._policy, record.cosignatures),
            )
            self._shown = record, shown
        return self._shown[1]


def witness_policy(allowlist: Allowlist, log_key: VerifierKey, *, f: int) -> Policy:
    """Every enrolled hospital with a witness key is a witness; a quorum outvotes f of them.

    Where so few are enrolled that every quorum could fork, all of them must cosign; where none
    is, nobody needs to, and nobody would notice a fork.
    """
    witnesses = {
        str(node_id): node.witness_key
        for node_id, node in sorted(allowlist.nodes.items())
        if node.witness_key is not None
    }
    if not witnesses:
        return Policy((log_key,), {}, (), NO_QUORUM)
    threshold = intersecting_quorum(len(witnesses), f=min(f, len(witnesses) - 1))
    return threshold_policy((log_key,), witnesses, threshold=threshold)


def _check_cosignature(note: Note, key: VerifierKey) -> None:
    try:
        found = verified_cosignatures(note, [key])
    except IntegrityError as error:
        raise InvalidInputError(str(error)) from error
    if not found:
        raise InvalidInputError(f"the signature is not by the witness_key {key.name}")


def with_cosignatures(record: CheckpointRecord) -> Note:
    """The log's note with the lines of its witnesses."""
    lines: Mapping[NodeId, bytes] = record.cosignatures
    return parse_note(record.note + b"".join(lines.values()))


# What was found sound is remembered: every hospital that asks gets the lines of all others.
@lru_cache(maxsize=8 * MAX_WITNESSES)
def _check_line(note: bytes, line: bytes, key: VerifierKey | None) -> None:
    """See that ``line`` is one more signature of ``note``, and by ``key`` where it is known."""
    added = _one_line(note, line)
    if key is not None:
        _check_cosignature(Note(parse_note(note).text, (added,)), key)


def _one_line(note: bytes, line: bytes) -> NoteSignature:
    before = len(parse_note(note).signatures)
    extended = parse_note(note + line)
    if len(extended.signatures) != before + 1:
        raise InvalidInputError("a cosignature is one line of a signed note")
    return extended.signatures[-1]
