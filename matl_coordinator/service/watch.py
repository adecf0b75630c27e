"""Peers that were not let in: counted, and logged without letting them flood the log."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import structlog

from matl_common.ids import NodeId
from matl_coordinator.ports import Meter, StoreError
from matl_coordinator.service.entries import entry
from matl_coordinator.service.register import Decision, Register

MAX_LOGGED_PER_HOUR = 60
"""Log entries a kind of refusal may cause in an hour; all are counted in the metrics."""

log = structlog.get_logger(__name__)


class Watch:
    """Takes note of refused connections and calls. Runs on the register's event loop."""

    def __init__(self, *, register: Register, meter: Meter, clock: Callable[[], datetime]) -> None:
        self._register = register
        self._meter = meter
        self._clock = clock
        self._hour: datetime | None = None
        self._logged: Counter[str] = Counter()
        # Entries being written, kept so that they are not collected as garbage.
        self._writing: set[asyncio.Task[None]] = set()

    def handshake_refused(self, reason: str) -> None:
        """A peer failed the TLS handshake; who it was is not known."""
        self._meter.peer_refused(reason)
        if self._may_log(reason):
            log.warning("handshake_refused", reason=reason)
            task = asyncio.create_task(self._write("handshake_refused", reason, None, None))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def access_denied(self, reason: str, node_id: NodeId | None, method: str) -> None:
        """A peer with a certificate asked for what it may not have."""
        self._meter.peer_refused(reason)
        if self._may_log(f"{reason} {node_id}"):
            log.warning("access_denied", reason=reason, node=node_id, method=method)
            await self._write("access_denied", reason, node_id, method)

    async def _write(
        self, event: str, reason: str, node_id: NodeId | None, method: str | None
    ) -> None:
        written = entry(event, at=self._clock(), reason=reason, node=node_id, method=method)
        try:
            await self._register.decide(lambda _: Decision(None, (), (written,)))
        except StoreError as error:
            log.error("refusal_not_logged", reason=str(error))

    def _may_log(self, kind: str) -> bool:
        hour = self._clock().replace(minute=0, second=0, microsecond=0)
        if hour != self._hour:
            self._hour = hour
            self._logged.clear()
        self._logged[kind] += 1
        return self._logged[kind] <= MAX_LOGGED_PER_HOUR
