"""``AuditService``: the log for those who witness it and those who verify it.

Leaves, payloads and proofs go to anyone enrolled. What an entry says goes to operators, and to
the hospital it is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from matl_common.identity.certificates import Role
from matl_common.tlog.leaf import parse_leaf
from matl_common.wire import audit_pb2 as pb
from matl_common.wire import audit_pb2_grpc as pb_grpc
from matl_coordinator.rpc.guard import caller
from matl_coordinator.service.audit import Audit
from matl_coordinator.service.checkpoints import Checkpoints

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

ENTRIES_BY_DEFAULT = 50


class AuditServicer(pb_grpc.AuditServiceServicer):
    """What hospitals and operators call. ``guard`` has authenticated every caller."""

    def __init__(self, *, audit: Audit, checkpoints: Checkpoints) -> None:
        self._audit = audit
        self._checkpoints = checkpoints

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
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
        may_read = reader.role is Role.OPERATOR or parse_leaf(entry.leaf).node == reader.node_id
        return pb.ProveInclusionResponse(
            leaf=entry.leaf,
            path=found.path,
            salt=entry.salt or b"" if may_read else b"",
            entry=entry.data or b"" if may_read else b"",
        )

    async def ProveConsistency(
        self, request: pb.ProveConsistencyRequest, context: Context
    ) -> pb.ProveConsistencyResponse:
        proof = await self._checkpoints.consistency(request.old_size, request.new_size)
        return pb.ProveConsistencyResponse(proof=proof)

    async def ReadLog(self, request: pb.ReadLogRequest, context: Context) -> pb.ReadLogResponse:
        start = None if request.newest else request.from_index
        page = await self._audit.page(start=start, limit=request.limit or ENTRIES_BY_DEFAULT)
        may_read = caller().role is Role.OPERATOR
        return pb.ReadLogResponse(
            entries=[
                pb.LogEntry(
                    index=each.index,
                    leaf=each.leaf,
                    payload=each.payload,
                    entry=each.data or b"" if may_read else b"",
                )
                for each in page.entries
            ],
            log_size=page.head.size,
            log_root=bytes.fromhex(page.head.root),
        )
