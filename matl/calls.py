"""One try of a call to a coordinator, and how it may fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from matl_common.errors import MatlError

CALL_SECONDS = 10.0

_Answer = TypeVar("_Answer")


class OperationsError(MatlError):
    """The coordinator did not do what was asked."""


class CoordinatorUnavailableError(OperationsError):
    """Nobody answers, or not in time; the same call may succeed later."""


def answered(
    method: Callable[..., _Answer], request: Any, *, timeout_seconds: float = CALL_SECONDS
) -> _Answer:
    """Call a stub's method once.

    Raises:
        OperationsError: it was refused, or, as ``CoordinatorUnavailableError``, not answered.
    """
    try:
        return method(request, timeout=timeout_seconds)
    except grpc.RpcError as error:
        code, details = error.code(), (error.details() or "no reason given")[:300]
        if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
            raise CoordinatorUnavailableError(
                f"the coordinator cannot be reached: {details}"
            ) from error
        raise OperationsError(f"the coordinator refused ({code.name}): {details}") from error
