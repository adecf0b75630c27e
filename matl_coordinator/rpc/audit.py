"""``AuditService``: the log for those who witness it and those who verify it.

Leaves, payloads and proofs go to anyone enrolled. What an entry says goes to operators, and to
the hospital it is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from matl_common.errors import InvalidInputError
from matl_common.identity.allowlist import AllowedNode
from matl_common.identity.certificates import Role
from matl_common.ids import Digest
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.merkle import HASH_BYTES
from matl_common.wire import audit_pb2 as pb
from matl_common.wire import audit_pb2_grpc as pb_grpc
from matl_coordinator.ports import LoggedEntry
from matl_coordinator.rpc.guard import caller
from matl_coordinator.service.audit import Audit, GoneLeaf
from matl_coordinator.service.checkpoints import Checkpoints
from matl_coordinator.service.readings import Readings, Verification

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

ENTRIES_BY_DEFAULT = 50


class AuditServicer(pb_grpc.AuditServiceServicer):
    """What hospitals and operators call. ``guard`` has authenticated every caller."""

    def __init__(self, *, audit: Audit, checkpoints: Checkpoints, readings: Readings) -> None:
        self._audit = audit
        self._checkpoints = checkpoints
        self._readings = readings

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        if request.witnessed:
            witnessed = await self._checkpoints.witnessed()
            return pb.GetCheckpointResponse(note=witnessed.note.encode() if witnessed else b"")
        extension = await self._checkpoints.to_cosign(old_size=request.old_size)
        return pb.GetCheckpointResponse(
            note=extension.witnessed.note.encode(), consistency_proof=extension.proof
        )

    async def AddCosignature(
        self, request: pb.AddCosignatureRequest, context: Context
    ) -> pb.AddCosignatureResponse:
        await self._checkpoints.cosign(
            caller().node_id, size=request.size, line=request.signature_line
        )
        return pb.AddCosignatureResponse()

    async def ProveInclusion(
        self, request: pb.ProveInclusionRequest, context: Context
    ) -> pb.ProveInclusionResponse:
        found = await self._audit.inclusion(request.index, size=request.size)
        reader, entry = caller(), found.entry
        await self._note_read(reader, range(entry.index, entry.index + 1))
        may_read = entry.damage is None and (
            reader.role is Role.OPERATOR or parse_leaf(entry.leaf).node == reader.node_id
        )
        return pb.ProveInclusionResponse(
            leaf=entry.leaf,
            path=found.path,
            salt=entry.salt or b"" if may_read else b"",
            entry=entry.data or b"" if may_read else b"",
            damaged=entry.damage or "",
        )

    async def ProveConsistency(
        self, request: pb.ProveConsistencyRequest, context: Context
    ) -> pb.ProveConsistencyResponse:
        proof = await self._checkpoints.consistency(request.old_size, request.new_size)
        return pb.ProveConsistencyResponse(proof=proof)

    async def ReadLog(self, request: pb.ReadLogRequest, context: Context) -> pb.ReadLogResponse:
        start = None if request.newest else request.from_index
        page = await self._audit.page(start=start, limit=request.limit or ENTRIES_BY_DEFAULT)
        reader = caller()
        may_read = reader.role is Role.OPERATOR
        if page.entries:
            # After it was read: who looks at the newest entry sees what was there before.
            await self._note_read(reader, range(page.entries[0].index, page.entries[-1].index + 1))
        return pb.ReadLogResponse(
            entries=[_log_entry(each, may_read=may_read) for each in page.entries],
            log_size=page.head.size,
            log_root=bytes.fromhex(page.head.root),
            disclosed=may_read,
        )

    async def RecordVerification(
        self, request: pb.RecordVerificationRequest, context: Context
    ) -> pb.RecordVerificationResponse:
        index = await self._readings.verified(caller().node_id, _verification(request))
        return pb.RecordVerificationResponse(index=index)

    async def _note_read(self, reader: AllowedNode, indices: range) -> None:
        if reader.role is Role.OPERATOR:
            await self._readings.read(reader.node_id, indices)


def _verification(request: pb.RecordVerificationRequest) -> Verification:
    match request.WhichOneof("result"):
        case "root":
            if len(request.root) != HASH_BYTES:
                raise InvalidInputError(f"a root hash has {HASH_BYTES} bytes")
            return Verification(request.size, Digest(request.root.hex()))
        case "damage":
            damage = request.damage
            first = damage.first_index if damage.HasField("first_index") else None
            last = damage.last_index if damage.HasField("last_index") else None
            return Verification(request.size, first=first, last=last)
    raise InvalidInputError("the verification has no result")


def _log_entry(found: LoggedEntry | GoneLeaf, *, may_read: bool) -> pb.LogEntry:
    hashed = bytes.fromhex(found.leaf_hash)
    if isinstance(found, GoneLeaf):
        return pb.LogEntry(index=found.index, leaf_hash=hashed)
    return pb.LogEntry(
        index=found.index,
        leaf=found.leaf,
        payload=found.payload,
        entry=found.data or b"" if may_read else b"",
        leaf_hash=hashed,
        salt=found.salt or b"" if may_read else b"",
        damaged=found.damage or "",
    )
