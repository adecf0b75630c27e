"""What operators read of the log and found in it, put on record without filling the log.

The first stretch that an operator reads is an entry before it is answered. What follows within
``WINDOW`` is one more entry at its end, so that going over a whole log leaves two. A kill in
between loses the second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, NodeId
from matl_common.tlog.entry import MAX_INTEGER, Entry
from matl_coordinator.ports import StoreError
from matl_coordinator.service.entries import entry
from matl_coordinator.service.register import Decision, Register

WINDOW = timedelta(minutes=10)
"""How long an operator's reading is summed up."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of going over the first ``size`` entries.

    Attributes:
        size: how many.
        root: of all of them, where they are sound; ``None`` where they are not.
        first: the first entry that may be wrong, where that is known.
        last: the last one.
    """

    size: int
    root: Digest | None = None
    first: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        numbers = (self.size, self.first or 0, self.last or 0)
        if not all(0 <= each <= MAX_INTEGER for each in numbers):
            raise InvalidInputError("a verification names entries that no log has")


def verification_entry(
    found: Verification,
    *,
    at: datetime,
    operator: NodeId | None = None,
    account: str | None = None,
) -> Entry:
    """Somebody has gone over the log: an operator by certificate, or an account on this machine.

    What found damage has a name of its own, so that it never passes for a log that was verified.
    """
    return entry(
        "log_found_damaged" if found.root is None else "log_verified",
        at=at,
        operator=operator,
        account=account,
        entries=found.size,
        result="damaged" if found.root is None else "sound",
        root=found.root,
        first=found.first,
        last=found.last,
    )


@dataclass(slots=True)
class _Window:
    """What one operator has read since an entry said so."""

    since: datetime
    reads: int = 0
    first: int = 0
    last: int = 0

    def add(self, indices: range) -> None:
        self.first = min(self.first, indices[0]) if self.reads else indices[0]
        self.last = max(self.last, indices[-1])
        self.reads += 1


class Readings:
    """Takes note of operators. Runs on the register's event loop."""

    def __init__(self, *, register: Register, clock: Callable[[], datetime]) -> None:
        self._register = register
        self._clock = clock
        # Guards what opens and closes windows: two calls at once must not both be the second.
        self._lock = asyncio.Lock()
        self._windows: dict[NodeId, _Window] = {}

    async def read(self, operator: NodeId, indices: range) -> None:
        """An operator is about to be shown these entries.

        Raises:
            StoreError: it is not on record, so it must not be shown.
        """
        if not indices:
            return
        async with self._lock:
            now = self._clock()
            window = self._windows.get(operator)
            if window is not None and now < window.since + WINDOW:
                window.add(indices)
                return
            first = _Window(now)
            first.add(indices)
            summed = [] if window is None else _summary(operator, window, at=now)
            await self._write(*summed, *_summary(operator, first, at=now))
            self._windows[operator] = _Window(now)

    async def verified(self, operator: NodeId, found: Verification) -> int:
        """Log what an operator found; returns the entry's number.

        Raises:
            StoreError: the store did not confirm.
        """
        return await self._write(verification_entry(found, at=self._clock(), operator=operator))

    async def settle(self, *, is_over: bool = False) -> None:
        """Log what windows that are past have summed up, or all of them where ``is_over``.

        A store that does not confirm leaves them for the next time.
        """
        async with self._lock:
            now = self._clock()
            past = {
                operator: window
                for operator, window in self._windows.items()
                if is_over or now >= window.since + WINDOW
            }
            summed = [each for item in past.items() for each in _summary(*item, at=now)]
            try:
                if summed:
                    await self._write(*summed)
            except StoreError as error:
                log.error("reads_not_logged", reason=str(error))
                return
            for operator in past:
                del self._windows[operator]

    async def _write(self, *written: Entry) -> int:
        _, logged = await self._register.decide(lambda _: Decision(None, (), written))
        return logged[0].index


def _summary(operator: NodeId, window: _Window, *, at: datetime) -> list[Entry]:
    if not window.reads:
        return []
    return [
        entry(
            "log_read",
            at=at,
            operator=operator,
            since=window.since.isoformat(timespec="seconds"),
            reads=window.reads,
            first=window.first,
            last=window.last,
        )
    ]
