"""Looks every few seconds at what operators watch, for the meter.

What happens is counted where it happens; this is for what only stands somewhere: in the state, in
the log's checkpoints, on the disk. Everything read is bounded, whatever the log's size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Protocol

import structlog

from matl_common.errors import MatlError
from matl_common.ids import NodeId
from matl_common.tlog.leaf import parse_leaf
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.core.vitals import Budget, LogVitals, Vitals
from matl_coordinator.ports import LoggedEntry, LogHead, Meter, Spool
from matl_coordinator.service.checkpoints import Checkpoints
from matl_coordinator.service.overview import Overview
from matl_coordinator.service.register import Register

LOOK_SECONDS = 10.0
NEWEST = ("backup_begun", "log_found_damaged", "log_verified")
"""Kinds of entries of which it matters when the last one was written."""

log = structlog.get_logger(__name__)


class WatchedLog(Protocol):
    """What is asked of the store's log. Blocking; call from a thread."""

    def log_head(self) -> LogHead: ...

    def log_entries(self, *, start: int, limit: int) -> tuple[LoggedEntry, ...]: ...

    def newest_entry(self, event: str, *, start: int) -> datetime | None:
        """When the newest entry of this kind from leaf ``start`` on was written."""
        ...


class VitalSigns:
    """Tells the meter how things stand. Runs on the register's event loop."""

    def __init__(
        self,
        *,
        register: Register,
        overview: Overview,
        checkpoints: Checkpoints,
        watched: WatchedLog,
        spool: Spool,
        enrolled: Callable[[], Collection[NodeId]],
        backed_up: Callable[[], datetime | None],
        meter: Meter,
        clock: Callable[[], datetime],
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._register = register
        self._overview = overview
        self._checkpoints = checkpoints
        self._watched = watched
        self._spool = spool
        self._enrolled = enrolled
        self._backed_up = backed_up
        self._meter = meter
        self._clock = clock
        self._look_seconds = look_seconds
        # What is known of the log up to its entry _read.
        self._newest: dict[str, datetime] = {}
        self._read = 0
        self._cosigned: dict[NodeId, int] = {}
        # The oldest entry that no quorum has cosigned, and when it was written.
        self._oldest: tuple[int, datetime] | None = None
        # Budgets as of a round with so many admitted updates.
        self._budgets: tuple[object, Mapping[NodeId, Budget]] = (None, {})

    async def run(self) -> None:
        """Look again and again until cancelled; a look that fails tells nothing."""
        loop = asyncio.get_running_loop()
        lag_seconds = 0.0
        while True:
            try:
                self._meter.vitals_taken(await self.look(lag_seconds))
            except (MatlError, OSError) as error:
                log.warning("vitals_not_taken", reason=str(error))
            due = loop.time() + self._look_seconds
            await asyncio.sleep(self._look_seconds)
            lag_seconds = loop.time() - due

    async def look(self, lag_seconds: float = 0.0) -> Vitals:
        """How things stand.

        Raises:
            StoreError: the store did not answer.
        """
        state, now, enrolled = await self._register.state(), self._clock(), self._enrolled()
        seen = {node: self._overview.last_seen(node) for node in enrolled}
        appeals = () if state.study is None else state.study.appeals
        return Vitals(
            at=now,
            paused=state.study is not None and state.study.paused,
            rounds_released=state.rounds_released,
            rounds_planned=self._overview.rounds_planned,
            round=state.round,
            open_appeals=sum(each.is_open for each in appeals),
            last_seen={node: at for node, at in seen.items() if at is not None},
            uploads=self._uploads(state.round),
            budgets=await self._budgets_now(state.round, enrolled),
            log=await self._log_now(),
            spooled_bytes=await asyncio.to_thread(self._spool.reserved_bytes),
            lag_seconds=lag_seconds,
        )

    def _uploads(self, rnd: Round | None) -> Mapping[NodeId, float]:
        if rnd is None or rnd.phase is not Phase.COLLECTING:
            return {}
        admitted = rnd.admitted_nodes
        return {
            node: 1.0 if node in admitted else self._overview.upload_fraction(node)
            for node in rnd.invited
        }

    async def _budgets_now(
        self, rnd: Round | None, enrolled: Collection[NodeId]
    ) -> Mapping[NodeId, Budget]:
        admitted = None if rnd is None else (rnd.round_id, rnd.admitted)
        if (basis := (admitted, frozenset(enrolled))) != self._budgets[0]:
            declared = await self._overview.declared()
            self._budgets = (
                basis,
                {
                    node: Budget(told.epsilon, told.budget_fraction, told.rounds_left)
                    for node, told in ((node, declared(node)) for node in enrolled)
                },
            )
        return self._budgets[1]

    async def _log_now(self) -> LogVitals:
        latest = await self._checkpoints.latest()
        witnessed = latest if latest and latest.has_quorum else await self._checkpoints.witnessed()
        # After the checkpoints: no log is smaller than what was signed of it.
        head = await asyncio.to_thread(self._watched.log_head)
        names = [NodeId(name) for name in self._checkpoints.policy.witnesses]
        cosigners = dict.fromkeys(latest.cosigners, latest.size) if latest else {}
        self._cosigned = {
            node: max(self._cosigned.get(node, 0), cosigners.get(node, 0)) for node in names
        }
        under = witnessed.size if witnessed else 0
        await asyncio.to_thread(self._read_on, head.size, under)
        return LogVitals(
            size=head.size,
            signed=latest.size if latest else 0,
            witnessed=under,
            unwitnessed_since=None if self._oldest is None else self._oldest[1],
            cosigned=self._cosigned,
            newest=dict(self._newest),
            backed_up=await asyncio.to_thread(self._backed_up),
        )

    def _read_on(self, size: int, under: int) -> None:
        # Blocking; one look at a time.
        for event in NEWEST:
            found = self._watched.newest_entry(event, start=self._read)
            if found is not None:
                self._newest[event] = found
        self._read = size
        if size <= under:
            self._oldest = None
        elif self._oldest is None or self._oldest[0] != under:
            for each in self._watched.log_entries(start=under, limit=1):
                self._oldest = under, datetime.fromisoformat(parse_leaf(each.leaf).at)
