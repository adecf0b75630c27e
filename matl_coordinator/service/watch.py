"""Peers that were not let in: counted, and logged without letting them flood the log."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import structlog

from matl_common.ids import NodeId
from matl_common.tlog.entry import Entry
from matl_coordinator.ports import Meter, StoreError
from matl_coordinator.service.entries import Fact, entry
from matl_coordinator.service.register import Decision, Register

MAX_LOGGED_PER_HOUR = 60
"""Log entries a kind of refusal may cause in an hour; how many more there were is one entry."""

MAX_KINDS = 100
"""Kinds of refusal that such an entry names, the most frequent ones."""

log = structlog.get_logger(__name__)


class Watch:
    """Takes note of refused connections and calls. Runs on the register's event loop."""

    def __init__(self, *, register: Register, meter: Meter, clock: Callable[[], datetime]) -> None:
        self._register = register
        self._meter = meter
        self._clock = clock
        self._hour: datetime | None = None
        # Refusals of this hour by kind, and of hours past those that no entry tells of yet.
        self._refused: Counter[str] = Counter()
        self._untold: dict[datetime, Counter[str]] = {}
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
        if self._may_log(reason if node_id is None else f"{reason} {node_id}"):
            log.warning("access_denied", reason=reason, node=node_id, method=method)
            await self._write("access_denied", reason, node_id, method)

    async def settle(self, *, is_over: bool = False) -> None:
        """Log how many refusals past hours had beyond those logged, or this hour's as well.

        A store that does not confirm leaves them for the next time.
        """
        self._turn_hour(is_over=is_over)
        untold, self._untold = self._untold, {}
        written = tuple(
            _suppressed_entry(hour, counts, at=self._clock()) for hour, counts in untold.items()
        )
        try:
            if written:
                await self._register.decide(lambda _: Decision(None, (), written))
        except StoreError as error:
            self._untold = untold | self._untold
            log.error("refusals_not_logged", reason=str(error))

    async def _write(
        self, event: str, reason: str, node_id: NodeId | None, method: str | None
    ) -> None:
        written = entry(event, at=self._clock(), reason=reason, node=node_id, method=method)
        try:
            await self._register.decide(lambda _: Decision(None, (), (written,)))
        except StoreError as error:
            log.error("refusal_not_logged", reason=str(error))

    def _may_log(self, kind: str) -> bool:
        self._turn_hour()
        self._refused[kind] += 1
        return self._refused[kind] <= MAX_LOGGED_PER_HOUR

    def _turn_hour(self, *, is_over: bool = False) -> None:
        hour = self._clock().replace(minute=0, second=0, microsecond=0)
        if hour == self._hour and not is_over:
            return
        beyond = self._refused - Counter(dict.fromkeys(self._refused, MAX_LOGGED_PER_HOUR))
        if beyond and self._hour is not None:
            self._untold[self._hour] = beyond
        self._hour = hour
        self._refused.clear()


def _suppressed_entry(hour: datetime, counts: Counter[str], *, at: datetime) -> Entry:
    kinds: dict[str, Fact] = dict(counts.most_common(MAX_KINDS))
    return entry(
        "refusals_suppressed",
        at=at,
        hour=hour.isoformat(timespec="minutes"),
        refusals=counts.total(),
        kinds=kinds,
    )
