"""Who may call what, decided before a handler runs.

Every method of every service needs a row in ``ROLES``; the server does not start
without. The caller is taken from the connection's certificate and matched with the
allow-list on every call, expiry included. Who calls too often waits, for a refusal as well,
and every refusal is told. When the list changes,
calls under way of nodes that it no longer lets in are ended, and when a certificate expires,
those made with it. Of a call that a front end relays, all of this is asked of both: the node that
it is made for, and the front end.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.allowlist import AllowedNode, RefusalReason
from matl_common.identity.certificates import PeerCertificate, Role, parse_peer_certificate
from matl_common.identity.tls import AuthenticatedContext, PeerRefusedError, peer_certificate
from matl_common.ids import NodeId
from matl_coordinator.roster import Roster
from matl_coordinator.rpc.pace import Pace

MAX_CALLS_PER_NODE = 16
"""Calls of one node that may be under way at once."""

MAX_WAITING_PER_KEY = 128
"""Calls with one key that may wait at once to be taken up; further ones are refused at once."""

UNKNOWN_METHOD = "unknown"
"""Stands for a method that nobody serves, in whose name a caller may have written anything."""

CLOCK_SECONDS = 2.0
"""How long at most the clock is not looked at while a call is under way: it may be set."""

_FEDERATION = "/matl.v1.FederationService/"
_AUDIT = "/matl.v1.AuditService/"
_OPERATIONS = "/matl.v1.OperationsService/"
_REFLECTION = "ServerReflection/ServerReflectionInfo"
_INGEST = "/matl.v1.IngestService/"
_ANYONE_ENROLLED = frozenset({Role.PARTICIPANT, Role.OPERATOR})
# A front end asks it for itself, to know whether anybody leads.
_WHO_CHECKS = _ANYONE_ENROLLED | {Role.FRONT_END}

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
    _INGEST + "Receive": frozenset({Role.PARTICIPANT}),
    "/grpc.health.v1.Health/Check": _WHO_CHECKS,
    "/grpc.health.v1.Health/Watch": _ANYONE_ENROLLED,
    "/grpc.health.v1.Health/List": _ANYONE_ENROLLED,
    "/grpc.reflection.v1alpha." + _REFLECTION: _ANYONE_ENROLLED,
    "/grpc.reflection.v1." + _REFLECTION: _ANYONE_ENROLLED,
}

ONLY_RELAYED = frozenset({_INGEST + "Receive"})
"""What a front end alone may ask, and only for a hospital."""

_caller: ContextVar[AllowedNode] = ContextVar("caller")


class AccessDeniedError(MatlError):
    """The caller may not do this. The text says no more than the caller may know."""


class FrontEndRefusedError(MatlError):
    """The front end may not relay; whoever it relays for may call another one."""


class TooManyCallsError(MatlError):
    """The caller has as many calls under way as it may have."""


class UnknownMethodError(MatlError):
    """An enrolled caller asks for a method that is not served."""


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
    via: PeerCertificate | None
    """The front end that relays it."""
    method: str
    task: asyncio.Task[object]
    ended_for: tuple[PeerCertificate, RefusalReason] | None = None
    expiry: asyncio.TimerHandle | None = None

    @property
    def peers(self) -> tuple[PeerCertificate, ...]:
        """Whose certificates the call depends on."""
        return (self.peer,) if self.via is None else (self.peer, self.via)

    def end(self, peer: PeerCertificate, reason: RefusalReason) -> None:
        """Cancel it, once, because of one of its peers."""
        if self.ended_for is None:
            self.ended_for = peer, reason
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
        on_wait: Callable[[], None],
        certifies: Callable[[bytes], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Admit by ``roster``; ``certifies`` tells whether participants' authority signed a
        certificate, which TLS has looked at only where its holder is connected.
        """
        self._roster = roster
        self._certifies = certifies
        self._clock = clock
        self._monotonic = monotonic
        self._on_denial = on_denial
        self._on_wait = on_wait
        self._calls: dict[NodeId, set[_Call]] = {}
        # By the key of the certificate: nobody slows others down by their name.
        self._paces: dict[str, Pace] = {}
        self._waiting: Counter[str] = Counter()
        roster.follow(self._end_calls)

    @asynccontextmanager
    async def call(
        self, context: AuthenticatedContext, method: str, *, relayed: bytes | None = None
    ) -> AsyncIterator[None]:
        """Make the node behind a connection the ``caller`` for the block, if it may call.

        The block is cancelled when the roster no longer lets the node in, or its certificate
        expires.

        Args:
            context: of the call.
            method: its path.
            relayed: the certificate of the node that the call is made for, if that is not the
                one behind the connection, which must be a front end then.

        Raises:
            AccessDeniedError: it is not enrolled, or its role does not allow it, or it was
                removed or its certificate expired while the block ran.
            FrontEndRefusedError: the same, of the front end that relays it.
            TooManyCallsError: it has as many calls under way as it may have.
            UnknownMethodError: there is no such method.
        """
        method = method if method in ROLES else UNKNOWN_METHOD
        peer, via, node = await self._authenticate(context, method, relayed)
        calls = self._calls.setdefault(node.node_id, set())
        if len(calls) >= MAX_CALLS_PER_NODE:
            raise await self._too_many(
                peer, method, f"{node.node_id} has {MAX_CALLS_PER_NODE} calls under way"
            )
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        call = _Call(peer, via, method, task)
        calls.add(call)
        self._end_once_expired(call)
        _caller.set(node)
        try:
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
            raise await self._refused(*call.ended_for, method)

    async def _authenticate(
        self, context: AuthenticatedContext, method: str, relayed: bytes | None
    ) -> tuple[PeerCertificate, PeerCertificate | None, AllowedNode]:
        """The enrolled node that calls, if it may call ``method``, and the front end between."""
        via = None
        try:
            peer = peer_certificate(context)
            if relayed is not None:
                via, peer = await self._relayed(peer, relayed, method)
        except (PeerRefusedError, InvalidInputError) as error:
            await self._on_denial("not_authenticated", None, method)
            raise AccessDeniedError(str(error)) from error
        # Before anything is refused, so that refusals are no faster than answers.
        await self._keep_pace(peer, method)
        node = self._roster.admitting.authenticate(peer, now=self._clock())
        if isinstance(node, RefusalReason):
            raise await self._refused(peer, node, method)
        if method == UNKNOWN_METHOD:
            await self._on_denial("unknown_method", peer.node_id, method)
            raise UnknownMethodError("there is no such method here")
        if via is not None and node.role is not Role.PARTICIPANT:
            await self._on_denial("not_for_front_ends", peer.node_id, method)
            raise AccessDeniedError("a front end speaks for hospitals alone; dial the coordinator")
        if node.role not in ROLES[method] or (via is None and method in ONLY_RELAYED):
            await self._on_denial("role_not_allowed", peer.node_id, method)
            raise AccessDeniedError(f"a {node.role.value} may not call {method}")
        return peer, via, node

    async def _relayed(
        self, peer: PeerCertificate, relayed: bytes, method: str
    ) -> tuple[PeerCertificate, PeerCertificate]:
        """The front end that is connected, and whom it speaks for.

        A certificate that the authority did not sign is the front end's own doing, so it is told
        of in its name: names that it makes up are nobody's.
        """
        via = await self._front_end(peer, method)
        if not self._certifies(relayed):
            await self._keep_pace(via, method)
            await self._on_denial("not_certified", via.node_id, method)
            raise AccessDeniedError("the relayed certificate is not of the participants' authority")
        return via, parse_peer_certificate(relayed)

    async def _front_end(self, peer: PeerCertificate, method: str) -> PeerCertificate:
        """The same, if it is an enrolled front end; by its own key, it waits as others do."""
        if peer.role is not Role.FRONT_END:
            await self._keep_pace(peer, method)
            await self._on_denial("not_a_front_end", peer.node_id, method)
            raise AccessDeniedError(f"{peer.node_id} may not speak for others")
        found = self._roster.admitting.authenticate(peer, now=self._clock())
        if isinstance(found, RefusalReason):
            await self._keep_pace(peer, method)
            raise await self._refused(peer, found, method)
        return peer

    async def _refused(
        self, peer: PeerCertificate, reason: RefusalReason, method: str
    ) -> AccessDeniedError | FrontEndRefusedError:
        """Tell of a refusal; returns what to raise."""
        await self._on_denial(reason.value, peer.node_id, method)
        text = f"{peer.node_id} may not take part here: {reason.value}"
        if peer.role is Role.FRONT_END:
            return FrontEndRefusedError(f"the front end {text}; try another")
        return AccessDeniedError(text)

    async def _keep_pace(self, peer: PeerCertificate, method: str) -> None:
        """Wait where a key calls too often. A call that is cut meanwhile does not count."""
        key = peer.pin
        pace = self._paces.setdefault(key, Pace())
        if seconds := pace.wait(now=self._monotonic()):
            if self._waiting[key] >= MAX_WAITING_PER_KEY:
                raise await self._too_many(
                    peer,
                    method,
                    f"{MAX_WAITING_PER_KEY} calls wait to be taken up; call less often",
                )
            self._on_wait()
            self._waiting[key] += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._waiting[key] -= 1
        pace.take(now=self._monotonic())

    async def _too_many(self, peer: PeerCertificate, method: str, text: str) -> TooManyCallsError:
        await self._on_denial("too_many_calls", peer.node_id, method)
        return TooManyCallsError(text)

    def _end_calls(self) -> None:
        now = self._clock()
        for calls in self._calls.values():
            for call in calls:
                for peer in call.peers:
                    found = self._roster.admitting.authenticate(peer, now=now)
                    if isinstance(found, RefusalReason):
                        call.end(peer, found)

    def _end_once_expired(self, call: _Call) -> None:
        first = min(call.peers, key=lambda peer: peer.not_after)
        left = (first.not_after - self._clock()).total_seconds()
        if left <= 0:
            call.end(first, RefusalReason.EXPIRED)
            return
        loop = asyncio.get_running_loop()
        call.expiry = loop.call_later(min(left, CLOCK_SECONDS), self._end_once_expired, call)
