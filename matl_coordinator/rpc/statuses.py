"""Errors as gRPC statuses: one table, and everything else is INTERNAL.

Only the text of our own errors leaves the process, and not of all of them; grpcio
would send any other exception's text to the peer.
"""

from __future__ import annotations

import grpc

from matl_common.errors import InvalidInputError, MatlError
from matl_common.identity.pkcs11.session import TokenError
from matl_common.version import IncompatibleVersionError
from matl_coordinator.core.admission import RefusalCode
from matl_coordinator.ports import (
    AttesterError,
    SharedStoreError,
    SpoolError,
    SpoolFullError,
    StaleReaderError,
    StaleWriterError,
    StoreError,
)
from matl_coordinator.rpc.guard import (
    AccessDeniedError,
    FrontEndRefusedError,
    TooManyCallsError,
    UnknownMethodError,
)
from matl_coordinator.rpc.messages import IdleError
from matl_coordinator.service.attesting import AskedTooOftenError, NotAttestedError
from matl_coordinator.service.checkpoints import CheckpointError
from matl_coordinator.service.intake import RefusedError, UnknownUpdateError
from matl_coordinator.service.invitations import UnknownModelError
from matl_coordinator.service.operations import OperationError
from matl_coordinator.service.reception import SupersededError

Status = grpc.StatusCode

REFUSAL_STATUS: dict[RefusalCode, grpc.StatusCode] = {
    RefusalCode.BAD_SIGNATURE: Status.UNAUTHENTICATED,
    RefusalCode.MALFORMED: Status.INVALID_ARGUMENT,
    RefusalCode.NO_ROUND: Status.FAILED_PRECONDITION,
    RefusalCode.NOT_INVITED: Status.FAILED_PRECONDITION,
    RefusalCode.WRONG_STUDY: Status.FAILED_PRECONDITION,
    RefusalCode.REPLAYED: Status.FAILED_PRECONDITION,
    RefusalCode.WRONG_BASE_MODEL: Status.FAILED_PRECONDITION,
    RefusalCode.WRONG_SCHEMA: Status.INVALID_ARGUMENT,
    RefusalCode.WRONG_SIZE: Status.INVALID_ARGUMENT,
    RefusalCode.WRONG_PRIVACY: Status.FAILED_PRECONDITION,
    RefusalCode.EXPIRED: Status.FAILED_PRECONDITION,
    RefusalCode.WRONG_CHUNKS: Status.INVALID_ARGUMENT,
    RefusalCode.EQUIVOCATION: Status.ALREADY_EXISTS,
    RefusalCode.NOT_FINITE: Status.INVALID_ARGUMENT,
    RefusalCode.NORM: Status.INVALID_ARGUMENT,
}

# The first class that matches wins: subclasses stand before their bases.
ERROR_STATUS: tuple[tuple[type[MatlError], grpc.StatusCode], ...] = (
    (AccessDeniedError, Status.PERMISSION_DENIED),
    (FrontEndRefusedError, Status.UNAVAILABLE),
    (TooManyCallsError, Status.RESOURCE_EXHAUSTED),
    (UnknownMethodError, Status.UNIMPLEMENTED),
    (IdleError, Status.DEADLINE_EXCEEDED),
    (AskedTooOftenError, Status.RESOURCE_EXHAUSTED),
    (NotAttestedError, Status.FAILED_PRECONDITION),
    (IncompatibleVersionError, Status.FAILED_PRECONDITION),
    (AttesterError, Status.UNAVAILABLE),
    (UnknownModelError, Status.NOT_FOUND),
    (UnknownUpdateError, Status.NOT_FOUND),
    (CheckpointError, Status.FAILED_PRECONDITION),
    (OperationError, Status.FAILED_PRECONDITION),
    (SupersededError, Status.ABORTED),
    (SpoolFullError, Status.RESOURCE_EXHAUSTED),
    (SharedStoreError, Status.UNAVAILABLE),
    (SpoolError, Status.DATA_LOSS),
    (StaleWriterError, Status.UNAVAILABLE),
    (StaleReaderError, Status.UNAVAILABLE),
    (StoreError, Status.UNAVAILABLE),
    (TokenError, Status.UNAVAILABLE),
    (InvalidInputError, Status.INVALID_ARGUMENT),
)

# By the row that matches. Their own text names where a database, a store or a token is.
_HIDDEN_TEXT: dict[type[MatlError], str] = {
    StoreError: "the coordinator's database did not answer; try again",
    SharedStoreError: "the coordinator's store did not answer; try again",
    TokenError: "the coordinator's key cannot be used for now; try again",
}


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status code and text that a peer gets to see."""
    match error:
        case RefusedError():
            return REFUSAL_STATUS[error.code], f"{error.code.value}: {error}"
        case MatlError():
            for kind, code in ERROR_STATUS:
                if isinstance(error, kind):
                    return code, _HIDDEN_TEXT.get(kind, str(error))
        case NotImplementedError():
            # gRPC's own services leave methods of their contract out.
            return Status.UNIMPLEMENTED, "this method is not implemented here"
        case _:
            pass
    return Status.INTERNAL, "internal error"
