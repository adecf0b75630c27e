"""A log for the witness's tests: the real contract and real signatures, and a liar on demand.

It holds entries in memory and implements ``AuditService`` for real. ``rewrite`` gives it another
history, which it signs with the same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from matl_common.identity.keys import load_ed25519_private_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import Digest, FederationId, NodeId
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.entry import Entry, entry_of
from matl_common.tlog.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    merkle_root,
)
from matl_common.tlog.names import log_origin
from matl_common.tlog.note import Note, NoteSignature, parse_note
from matl_common.tlog.sealing import Sealed, data_key, seal
from matl_common.wire import audit_pb2 as pb
from matl_common.wire.audit_pb2_grpc import AuditServiceServicer
from tests.logs import MOMENT

KEY = data_key("2026-11", bytes(32))
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class LogFaults:
    """What the log does wrong."""

    abort_checkpoint: list[grpc.StatusCode] = field(default_factory=list)
    abort_cosignature: list[grpc.StatusCode] = field(default_factory=list)
    abort_inclusion: list[grpc.StatusCode] = field(default_factory=list)
    """Each once; a log that always refuses has a long list."""
    false_proof: bool = False
    false_path: bool = False
    withhold_entry: bool = False
    offer_size: int | None = None
    """A checkpoint of so many leaves, whatever the log has."""


class SimulatedLog(AuditServiceServicer):
    """A log that is told what to hold."""

    def __init__(self, coordinator: NodeFolder, federation: FederationId) -> None:
        self.origin = log_origin(federation)
        self.use_key(load_ed25519_private_key(coordinator.log_key))
        self.faults = LogFaults()
        self.sealed: list[Sealed] = []
        self.data: list[bytes] = []
        self.lines: dict[int, list[NoteSignature]] = {}
        """Cosignatures by the size of their checkpoint."""
        self.asked: list[int] = []
        """``old_size`` of every question for a checkpoint."""
        self.proved: list[int] = []

    def use_key(self, private_key: Ed25519PrivateKey) -> None:
        """Sign checkpoints with this key from now on."""
        self._signer = private_key
        self.key = log_key(self.origin, private_key.public_key())

    @property
    def size(self) -> int:
        return len(self.sealed)

    def append(self, entry: Entry) -> int:
        """Add an entry; returns its index."""
        index = self.size
        random = bytes([len(self.data) % 251]) * 44
        self.sealed.append(seal(entry, origin=self.origin, index=index, key=KEY, random=random))
        self.data.append(entry.data)
        return index

    def note(self, event: str) -> None:
        """Add an entry that means nothing."""
        self.append(entry_of({"event": event, "at": MOMENT}))

    def admit(self, node: NodeId, round_id: int, update: Digest) -> tuple[int, Digest]:
        """Add the admission of an update; returns index and leaf hash, for its receipt."""
        facts = {"event": "update_admitted", "at": MOMENT, "round": round_id, "node": node}
        index = self.append(entry_of({**facts, "update": update}))
        return index, Digest(leaf_hash(self.sealed[index].leaf).hex())

    def rewrite(self, *, keep: int, size: int) -> None:
        """Keep the first leaves, and have others in place of the rest."""
        del self.sealed[keep:], self.data[keep:]
        self.lines = {at: lines for at, lines in self.lines.items() if at <= keep}
        while self.size < size:
            self.note(f"rewritten {self.size}")

    def checkpoint(self, size: int) -> Note:
        """Sign the tree of so many leaves."""
        checkpoint = Checkpoint(self.origin, size, merkle_root(self._hashes()[:size]))
        return sign_checkpoint(checkpoint, self.key, self._signer).note

    async def GetCheckpoint(  # noqa: N802 - gRPC names
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        self.asked.append(request.old_size)
        await _abort(self.faults.abort_checkpoint, context)
        size = self.size if self.faults.offer_size is None else self.faults.offer_size
        note = self.checkpoint(size)
        note = replace(note, signatures=(*note.signatures, *self.lines.get(size, [])))
        proof: Sequence[bytes] = ()
        if 0 < request.old_size <= size:
            proof = consistency_proof(request.old_size, size, self._node)
        if self.faults.false_proof:
            proof = [bytes(32), *proof]
        return pb.GetCheckpointResponse(note=note.encode(), consistency_proof=proof)

    async def AddCosignature(  # noqa: N802 - gRPC names
        self, request: pb.AddCosignatureRequest, context: Context
    ) -> pb.AddCosignatureResponse:
        await _abort(self.faults.abort_cosignature, context)
        note = parse_note(self.checkpoint(request.size).encode() + request.signature_line)
        self.lines.setdefault(request.size, []).append(note.signatures[-1])
        return pb.AddCosignatureResponse()

    async def ProveInclusion(  # noqa: N802 - gRPC names
        self, request: pb.ProveInclusionRequest, context: Context
    ) -> pb.ProveInclusionResponse:
        self.proved.append(request.index)
        await _abort(self.faults.abort_inclusion, context)
        sealed = self.sealed[request.index]
        path = inclusion_proof(request.index, request.size, self._node)
        shown = not self.faults.withhold_entry
        return pb.ProveInclusionResponse(
            leaf=sealed.leaf,
            path=[bytes(32) for _ in path] if self.faults.false_path else path,
            salt=sealed.salt if shown else b"",
            entry=self.data[request.index] if shown else b"",
        )

    async def ProveConsistency(  # noqa: N802 - gRPC names
        self, request: pb.ProveConsistencyRequest, context: Context
    ) -> pb.ProveConsistencyResponse:
        proof = consistency_proof(request.old_size, request.new_size, self._node)
        return pb.ProveConsistencyResponse(proof=proof)

    async def ReadLog(  # noqa: N802 - gRPC names
        self, request: pb.ReadLogRequest, context: Context
    ) -> pb.ReadLogResponse:
        assert request.newest
        return pb.ReadLogResponse(log_size=self.size)

    async def RecordVerification(  # noqa: N802 - gRPC names
        self, request: pb.RecordVerificationRequest, context: Context
    ) -> pb.RecordVerificationResponse:
        raise AssertionError("hospitals do not verify the whole log")

    def _hashes(self) -> list[bytes]:
        return [leaf_hash(each.leaf) for each in self.sealed]

    def _node(self, level: int, index: int) -> bytes:
        return merkle_root(self._hashes()[index << level : (index + 1) << level])


async def _abort(codes: list[grpc.StatusCode], context: Context) -> None:
    if codes:
        await context.abort(codes.pop(0), "as the test wants")
