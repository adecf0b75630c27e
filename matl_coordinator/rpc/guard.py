"""Who may call what, decided before a handler runs.

Every method of every service needs a row in ``ROLES``; the server does not start
without. The caller is taken from the connection's certificate and matched with the
allow-list on every call, expiry included. Who calls too often waits. When the list changes,
calls under way of nodes that it no longer lets in are ended, and when a certificate expires,
those made with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from matl_common.errors import ConfigurationError, MatlError
from matl_common.identity.allowlist import AllowedNode, RefusalReason
from matl_common.identity.certificates import PeerCertificate, Role
from matl_common.identity.tls import AuthenticatedContext, PeerRefusedError, peer_certificate
from matl_common.ids import NodeId
from matl_coordinator.roster import Roster
from matl_coordinator.rpc.pace import Pace

MAX_CALLS_PER_NODE = 16
"""Calls of one node that may be under way at once."""

CLOCK_SECONDS = 2.0
"""How long at most the clock is not looked at while a call is under way: it may be set."""

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


@dataclass(eq=False, slots=True)
class _Call:
    """A call under way."""

    peer: PeerCertificate
    method: str
    task: asyncio.Task[object]
    ended_for: RefusalReason | None = None
    expiry: asyncio.TimerHandle | None = None

    def end(self, reason: RefusalReason) -> None:
        """Cancel it, once."""
        if self.ended_for is None:
            self.ended_for = reason
            self.task.cancel()


class Guard:
    """Authenticates callers, counts their calls, and ends those of nodes that may no longer call.

    Runs on the roster's event loop.
    """

    def __init__(
        self,
        *,
        roster: Roster,
        clock: Callable[[], datetime],
        on_denial: OnDenial,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roster = roster
        self._clock = clock
        self._monotonic = monotonic
        self._on_denial = on_denial
        self._calls: dict[NodeId, set[_Call]] = {}
        self._paces: dict[NodeId, Pace] = {}
        roster.follow(self._end_calls)

    @asynccontextmanager
    async def call(self, context: AuthenticatedContext, method: str) -> AsyncIterator[None]:
        """Make the node behind a connection the ``caller`` for the block, if it may call.

        The block is cancelled when the roster no longer lets the node in, or its certificate
        expires.

        Raises:
            AccessDeniedError: it is not enrolled, or its role does not allow it, or it was
                removed or its certificate expired while the block ran.
            TooManyCallsError: it has as many calls under way as it may have.
        """
        peer, node = await self._authenticate(context, method)
        calls = self._calls.setdefault(node.node_id, set())
        if len(calls) >= MAX_CALLS_PER_NODE:
            raise TooManyCallsError(f"{node.node_id} has {MAX_CALLS_PER_NODE} calls under way")
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        call = _Call(peer, method, task)
        calls.add(call)
        self._end_once_expired(call)
        _caller.set(node)
        try:
            await self._keep_pace(node.node_id)
            yield
            if call.ended_for is not None:
                # The cancellation that came too late for the block is taken here.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            if call.ended_for is None:
                raise
            # The call was ended here, by nobody else: its caller is told why.
            task.uncancel()
        finally:
            calls.discard(call)
            if call.expiry is not None:
                call.expiry.cancel()
        if call.ended_for is not None:
            await self._on_denial(call.ended_for.value, peer.node_id, method)
            raise _refused(peer, call.ended_for)

    async def _authenticate(
        self, context: AuthenticatedContext, method: str
    ) -> tuple[PeerCertificate, AllowedNode]:
        """The enrolled node behind a connection, if it may call ``method``."""
        try:
            peer = peer_certificate(context)
        except PeerRefusedError as error:
            await self._on_denial("not_authenticated", None, method)
            raise AccessDeniedError(str(error)) from error
        node = self._roster.admitting.authenticate(peer, now=self._clock())
        if isinstance(node, RefusalReason):
            await self._on_denial(node.value, peer.node_id, method)
            raise _refused(peer, node)
        if node.role not in ROLES.get(method, frozenset()):
            await self._on_denial("role_not_allowed", peer.node_id, method)
            raise AccessDeniedError(f"a {node.role.value} may not call {method}")
        return peer, node

    async def _keep_pace(self, node: NodeId) -> None:
        """Wait where the node calls too often. A call that is cut meanwhile does not count."""
        pace = self._paces.setdefault(node, Pace())
        if seconds := pace.wait(now=self._monotonic()):
            await asyncio.sleep(seconds)
        pace.take(now=self._monotonic())

    def _end_calls(self) -> None:
        now = self._clock()
        for calls in self._calls.values():
            for call in calls:
                found = self._roster.admitting.authenticate(call.peer, now=now)
                if isinstance(found, RefusalReason):
                    call.end(found)

    def _end_once_expired(self, call: _Call) -> None:
        left = (call.peer.not_after - self._clock()).total_seconds()
        if left <= 0:
            call.end(RefusalReason.EXPIRED)
            return
        loop = asyncio.get_running_loop()
        call.expiry = loop.call_later(min(left, CLOCK_SECONDS), self._end_once_expired, call)


def _refused(peer: PeerCertificate, reason: RefusalReason) -> AccessDeniedError:
    return AccessDeniedError(f"{peer.node_id} may not take part here: {reason.value}")
