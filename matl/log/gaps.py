"""What is gone from a log, or cannot be read any more, against the orders on record for it.

A month is dropped, and a month's key erased, by an order that is an entry itself. What is missing
without one was taken by somebody else. Only an order that was opened counts: whoever may append can
put in a leaf that looks like one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from matl_common.errors import InvalidInputError
from matl_common.tlog.leaf import Leaf
from matl_common.tlog.orders import Order, all_gone, parse_order
from matl_common.tlog.verification import LogDamagedError
from matl_coordinator.core.retention import HIPAA_YEARS, kept_until


@dataclass(frozen=True, slots=True)
class _Unread:
    """Leaves of one month, under one data key, that cannot be read."""

    first: Leaf
    last: int


@dataclass(slots=True)
class Gaps:
    """Takes a log's leaves in order, with what they say where they can be opened."""

    _gone: list[range] = field(default_factory=list)
    """Leaves that are not there, in runs."""
    _sealed: dict[tuple[str, str], _Unread] = field(default_factory=dict)
    """By data key and month, what cannot be read and no order accounts for so far."""
    _orders: list[Order] = field(default_factory=list)
    """Those that were opened."""

    def gone(self, index: int) -> None:
        """A leaf is not there."""
        if self._gone and self._gone[-1].stop == index:
            self._gone[-1] = range(self._gone[-1].start, index + 1)
        else:
            self._gone.append(range(index, index + 1))

    def sealed(self, leaf: Leaf) -> None:
        """A leaf's entry cannot be read."""
        place = leaf.key, leaf.month
        unread = self._sealed.get(place, _Unread(leaf, leaf.index))
        self._sealed[place] = replace(unread, last=leaf.index)

    def told(self, index: int, facts: Mapping[str, Any]) -> None:
        """What the entry at this place says.

        Raises:
            LogDamagedError: it is an order that came before the time that it names was over.
        """
        order = parse_order(index, facts)
        if order is None:
            return
        _check_time(order)
        self._orders.append(order)
        for (key, month), unread in [*self._sealed.items()]:
            # What lies behind an order it cannot account for.
            if unread.last < order.erased.get(month, 0):
                del self._sealed[key, month]

    def warnings(self) -> list[str]:
        """What orders did that law may forbid."""
        return [
            f"entry {each.index}, {each.event}, put {each.month} away after {each.years} years, "
            f"under compliance {each.compliance!r}: HIPAA asks for {HIPAA_YEARS}"
            for each in self._orders
            if each.years < HIPAA_YEARS
        ]

    def check(self, *, held: Collection[str]) -> None:
        """See that an order tells of all that is missing.

        Args:
            held: names of the data keys that are there by now; one that was made while the leaves
                were gone over is not missing.

        Raises:
            LogDamagedError: none does.
        """
        told = all_gone(self._orders)
        for run in self._gone:
            first = next((each.stop for each in told if run.start in each), run.start)
            if first < run.stop:
                raise LogDamagedError(
                    f"entry {first} is gone, and no entry tells that its month was dropped; if it "
                    "was while this ran, verify again",
                    first=first,
                    last=first,
                )
        unread = (each.first for (key, _), each in self._sealed.items() if key not in held)
        leaf = min(unread, key=lambda each: each.index, default=None)
        if leaf is not None:
            raise LogDamagedError(
                f"entry {leaf.index} cannot be read: data key {leaf.key} is gone, and no entry "
                f"tells that the key of {leaf.month} was erased",
                first=leaf.index,
                last=leaf.index,
            )


def _check_time(order: Order) -> None:
    """An order comes after its month's end and the years that it says were in force."""
    try:
        early = datetime.fromisoformat(order.at) < kept_until(order.month, years=order.years)
    except (ValueError, InvalidInputError, OverflowError):
        early = True
    if early:
        raise LogDamagedError(
            f"entry {order.index}, {order.event}, put {order.month} away at {order.at}, before the "
            f"{order.years} years of retention that it names were over",
            first=order.index,
            last=order.index,
        )
