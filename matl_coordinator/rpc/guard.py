"""Who may call what, decided before a handler runs.

Every method of every service needs a row in ``ROLES``; the server does not start
without. The caller is taken from the connection's certificate and matched with the
allow-list on every call, expiry included. The list itself is read at start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

from matl_common.errors import ConfigurationError, MatlError
from matl_common.identity.allowlist import AllowedNode, Allowlist, RefusalReason
from matl_common.identity.certificates import Role
from matl_common.identity.tls import AuthenticatedContext, PeerRefusedError, peer_certificate
from matl_common.ids import NodeId

MAX_CALLS_PER_NODE = 16
"""Calls of one node that may be under way at once."""

_FEDERATION = "/matl.v1.FederationService/"
_AUDIT = "/matl.v1.AuditService/"
_OPERATIONS = "/matl.v1.OperationsService/"
_REFLECTION = "ServerReflection/ServerReflectionInfo"
_ANYONE_ENROLLED = frozenset({Role.PARTICIPANT, Role.OPERATOR})

ROLES: dict[str, frozenset[Role]] = {
    **{
        _FEDERATION + method: frozenset({Role.PARTICIPANT})
        for method in ("Hello", "AwaitRound", "PullModel", "OpenUpdate", "PushChunks", "Attest")
    },
    **{
        _OPERATIONS + method: frozenset({Role.OPERATOR})
        for method in (
            "GetStatus",
            "ListRounds",
            "ListParticipants",
            "Pause",
            "Resume",
            "StartRound",
            "Quarantine",
            "Release",
            "Appeal",
            "Deny",
        )
    },
    **{
        _AUDIT + method: _ANYONE_ENROLLED
        for method in ("GetCheckpoint", "ProveInclusion", "ProveConsistency", "ReadLog")
    },
    _AUDIT + "AddCosignature": frozenset({Role.PARTICIPANT}),
    _AUDIT + "RecordVerification": frozenset({Role.OPERATOR}),
    "/grpc.health.v1.Health/Check": _ANYONE_ENROLLED,
    "/grpc.health.v1.Health/Watch": _ANYONE_ENROLLED,
    "/grpc.health.v1.Health/List": _ANYONE_ENROLLED,
    "/grpc.reflection.v1alpha." + _REFLECTION: _ANYONE_ENROLLED,
    "/grpc.reflection.v1." + _REFLECTION: _ANYONE_ENROLLED,
}

_caller: ContextVar[AllowedNode] = ContextVar("caller")


class AccessDeniedError(MatlError):
    """The caller may not do this. The text says no more than the caller may know."""


class TooManyCallsError(MatlError):
    """The caller has as many calls under way as it may have."""


def caller() -> AllowedNode:
    """The enrolled node whose call is being handled."""
    return _caller.get()


def check_roles(methods: Iterable[str]) -> None:
    """Refuse to serve methods that no row of ``ROLES`` guards.

    Raises:
        ConfigurationError: there is one.
    """
    unguarded = sorted(set(methods) - ROLES.keys())
    if unguarded:
        raise ConfigurationError(f"no role may call {', '.join(unguarded)}; add it to ROLES")


OnDenial = Callable[[str, NodeId | None, str], Awaitable[None]]


class Guard:
    """Authenticates callers and counts their calls."""

    def __init__(
        self, *, allowlist: Allowlist, clock: Callable[[], datetime], on_denial: OnDenial
    ) -> None:
        self._allowlist = allowlist
        self._clock = clock
        self._on_denial = on_denial
        self._calls: Counter[NodeId] = Counter()

    async def authenticate(self, context: AuthenticatedContext, method: str) -> AllowedNode:
        """The enrolled node behind a connection, if it may call ``method``.

        Raises:
            AccessDeniedError: it is not enrolled, or its role does not allow it.
        """
        node_id: NodeId | None = None
        try:
            peer = peer_certificate(context)
            node_id = peer.node_id
        except PeerRefusedError as error:
            await self._on_denial("not_authenticated", None, method)
            raise AccessDeniedError(str(error)) from error
        node = self._allowlist.authenticate(peer, now=self._clock())
        if isinstance(node, RefusalReason):
            await self._on_denial(node.value, node_id, method)
            raise AccessDeniedError(f"{node_id} may not take part here: {node.value}")
        if node.role not in ROLES.get(method, frozenset()):
            await self._on_denial("role_not_allowed", node_id, method)
            raise AccessDeniedError(f"a {node.role.value} may not call {method}")
        return node

    @contextmanager
    def call_of(self, node: AllowedNode) -> Iterator[None]:
        """Make ``node`` the caller for the block, one of its bounded number of calls.

        Raises:
            TooManyCallsError: it has as many under way as it may have.
        """
        if self._calls[node.node_id] >= MAX_CALLS_PER_NODE:
            raise TooManyCallsError(f"{node.node_id} has {MAX_CALLS_PER_NODE} calls under way")
        self._calls[node.node_id] += 1
        _caller.set(node)
        try:
            yield
        finally:
            self._calls[node.node_id] -= 1
