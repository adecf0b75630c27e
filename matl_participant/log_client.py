"""The participant's end of ``AuditService``: what a witness asks the log, one try a call.

A checkpoint is verified with the log's key before anybody else sees it. Proofs are not judged
here (``witness.py`` and ``matl_common.tlog`` do).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from matl_common.errors import IntegrityError
from matl_common.tlog.checkpoint import SignedCheckpoint, open_checkpoint
from matl_common.tlog.note import NoteSignature, VerifierKey
from matl_common.tlog.submission import Shown
from matl_common.wire import audit_pb2 as pb
from matl_common.wire.audit_pb2_grpc import AuditServiceStub
from matl_participant.client import UntrustedCoordinatorError, one_try

CALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A checkpoint that the log's key signed, and the proof that came with it."""

    signed: SignedCheckpoint
    proof: Sequence[bytes]


class LogClient:
    """Speaks about one log to one coordinator."""

    def __init__(
        self, channel: grpc.aio.Channel, *, log_key: VerifierKey, call_seconds: float = CALL_SECONDS
    ) -> None:
        """Use a channel that somebody else opens and closes."""
        self._stub = AuditServiceStub(channel)
        self._log_key = log_key
        self._seconds = call_seconds

    async def checkpoint(self, *, old_size: int) -> Offer:
        """The checkpoint to cosign, for a witness whose last one has ``old_size`` leaves.

        Raises:
            CallError: no answer, or a refusal.
            UntrustedCoordinatorError: the pinned log did not sign it.
            InvalidInputError: it is not a checkpoint.
        """
        request = pb.GetCheckpointRequest(old_size=old_size)
        answer = await one_try(self._stub.GetCheckpoint(request, timeout=self._seconds))
        try:
            signed = open_checkpoint(answer.note, [self._log_key])
        except IntegrityError as error:
            raise UntrustedCoordinatorError(
                f"{error}; compare coordinator.log_key in the configuration with the key that the "
                "coordinator's operator publishes"
            ) from error
        return Offer(signed, tuple(answer.consistency_proof))

    async def add_cosignature(self, *, size: int, line: NoteSignature) -> None:
        """Give the log our cosignature of the checkpoint of this size.

        Raises:
            CallError: no answer, or a refusal.
        """
        request = pb.AddCosignatureRequest(size=size, signature_line=line.encode())
        await one_try(self._stub.AddCosignature(request, timeout=self._seconds))

    async def inclusion(self, index: int, *, size: int) -> Shown:
        """What the log shows for the leaf at ``index`` in the tree of ``size`` leaves.

        Raises:
            CallError: no answer, or a refusal.
        """
        request = pb.ProveInclusionRequest(index=index, size=size)
        answer = await one_try(self._stub.ProveInclusion(request, timeout=self._seconds))
        return Shown(answer.leaf, tuple(answer.path), answer.salt, answer.entry)

    async def size(self) -> int:
        """How many leaves the log says to have now. Nothing vouches for it.

        Raises:
            CallError: no answer, or a refusal.
        """
        request = pb.ReadLogRequest(newest=True, limit=1)
        answer = await one_try(self._stub.ReadLog(request, timeout=self._seconds))
        return answer.log_size
