"""What anyone enrolled asks of a coordinator's log, and what comes back, as values.

Speaks ``AuditService``, one try a call. What comes back is unverified.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from matl.calls import CALL_SECONDS, answered
from matl_common.wire import audit_pb2 as pb
from matl_common.wire.audit_pb2_grpc import AuditServiceStub


@dataclass(frozen=True, slots=True)
class ReadEntry:
    """An entry as the coordinator sent it.

    ``entry`` and ``salt`` are empty where the caller may not read it, or it does not open. Of one
    that is gone there is only ``leaf_hash``. ``damaged`` is what the coordinator finds wrong.
    """

    index: int
    leaf: bytes
    payload: bytes
    entry: bytes
    leaf_hash: bytes
    salt: bytes
    damaged: str


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of the log, its size, and whether entries are opened for the caller."""

    entries: tuple[ReadEntry, ...]
    size: int
    disclosed: bool


@dataclass(frozen=True, slots=True)
class CheckpointAnswer:
    """A checkpoint's note, and the proof that it extends the one asked about."""

    note: bytes
    consistency_proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class InclusionAnswer:
    """A leaf with its path, and what it commits to, where the caller may read it."""

    leaf: bytes
    path: tuple[bytes, ...]
    salt: bytes
    entry: bytes
    damaged: str


class AuditClient:
    """Asks on a channel that somebody else opens and closes.

    Every method raises ``OperationsError`` when it gets no answer.
    """

    def __init__(self, channel: grpc.Channel, *, timeout_seconds: float = CALL_SECONDS) -> None:
        self._stub = AuditServiceStub(channel)
        self._timeout = timeout_seconds

    def read(self, *, start: int | None = None, limit: int) -> Page:
        """``limit`` entries from ``start``, or the newest ones."""
        request = pb.ReadLogRequest(from_index=start or 0, limit=limit, newest=start is None)
        answer = answered(self._stub.ReadLog, request, timeout_seconds=self._timeout)
        return Page(
            tuple(
                ReadEntry(
                    each.index,
                    each.leaf,
                    each.payload,
                    each.entry,
                    each.leaf_hash,
                    each.salt,
                    each.damaged,
                )
                for each in answer.entries
            ),
            answer.log_size,
            answer.disclosed,
        )

    def checkpoint(self, *, old_size: int = 0) -> CheckpointAnswer:
        """The checkpoint that is being cosigned, or the newest."""
        request = pb.GetCheckpointRequest(old_size=old_size)
        answer = answered(self._stub.GetCheckpoint, request, timeout_seconds=self._timeout)
        return CheckpointAnswer(answer.note, tuple(answer.consistency_proof))

    def witnessed(self) -> bytes | None:
        """The largest checkpoint's note that a quorum has cosigned, if there is one."""
        request = pb.GetCheckpointRequest(witnessed=True)
        return (
            answered(self._stub.GetCheckpoint, request, timeout_seconds=self._timeout).note or None
        )

    def inclusion(self, index: int, *, size: int) -> InclusionAnswer:
        """A leaf with its path in the tree of ``size`` leaves."""
        request = pb.ProveInclusionRequest(index=index, size=size)
        answer = answered(self._stub.ProveInclusion, request, timeout_seconds=self._timeout)
        return InclusionAnswer(
            answer.leaf, tuple(answer.path), answer.salt, answer.entry, answer.damaged
        )

    def consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        """A proof that the tree of ``new_size`` leaves extends that of ``old_size``."""
        request = pb.ProveConsistencyRequest(old_size=old_size, new_size=new_size)
        answer = answered(self._stub.ProveConsistency, request, timeout_seconds=self._timeout)
        return tuple(answer.proof)

    def record_sound(self, size: int, root: bytes) -> int:
        """Put on record that the first ``size`` entries were found sound; returns the entry."""
        return self._record(pb.RecordVerificationRequest(size=size, root=root))

    def record_damage(self, size: int, *, first: int | None, last: int | None) -> int:
        """Put on record that something is wrong, and with which entries, where that is known."""
        damage = pb.Damage(first_index=first, last_index=last)
        return self._record(pb.RecordVerificationRequest(size=size, damage=damage))

    def _record(self, request: pb.RecordVerificationRequest) -> int:
        return answered(self._stub.RecordVerification, request, timeout_seconds=self._timeout).index
