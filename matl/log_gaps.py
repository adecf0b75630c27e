"""What is gone from a log, or cannot be read any more, against the orders on record for it.

A month is dropped, and a month's key erased, by an order that is an entry itself. What is missing
without one was taken by somebody else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from matl_common.tlog.leaf import Leaf
from matl_common.tlog.verification import (
    MONTH_DROPPED,
    MONTH_KEY_ERASED,
    LogDamagedError,
)


@dataclass(slots=True)
class Gaps:
    """Takes a log's leaves in order, with what they say where they can be opened."""

    _gone: list[range] = field(default_factory=list)
    """Leaves that are not there, in runs."""
    _dropped: list[range] = field(default_factory=list)
    """Where the leaves of months lay that entries call dropped."""
    _sealed: dict[str, Leaf] = field(default_factory=dict)
    """By data key, the first leaf that cannot be read."""
    _erased: set[str] = field(default_factory=set)
    """Months whose keys entries call erased."""
    _last_sealed_order: int = -1
    """The last order that cannot be read itself."""

    def gone(self, index: int) -> None:
        """A leaf is not there."""
        if self._gone and self._gone[-1].stop == index:
            self._gone[-1] = range(self._gone[-1].start, index + 1)
        else:
            self._gone.append(range(index, index + 1))

    def sealed(self, leaf: Leaf) -> None:
        """A leaf's entry cannot be read."""
        self._sealed.setdefault(leaf.key, leaf)
        if leaf.event in {MONTH_DROPPED, MONTH_KEY_ERASED}:
            self._last_sealed_order = leaf.index

    def told(self, facts: Mapping[str, Any]) -> None:
        """What an entry says."""
        match facts:
            case {"event": event, "last_index": int(last), "entries": int(count)} if (
                event == MONTH_DROPPED
            ):
                self._dropped.append(range(last - count + 1, last + 1))
            case {"event": event, "month": str(month)} if event == MONTH_KEY_ERASED:
                self._erased.add(month)

    def check(self, *, held: Collection[str]) -> None:
        """See that an order tells of all that is missing.

        Args:
            held: names of the data keys that are there by now; one that was made while the leaves
                were gone over is not missing.

        Raises:
            LogDamagedError: none does.
        """
        self._check_gone()
        # An order that is gone, or cannot be read itself, may be to erase any key before it.
        unknown = max(self._last_sealed_order, self._gone[-1].stop if self._gone else -1)
        for name, leaf in self._sealed.items():
            if name in held or leaf.month in self._erased or leaf.index < unknown:
                continue
            raise LogDamagedError(
                f"entry {leaf.index} cannot be read: data key {name} is gone, and no entry tells "
                f"that the key of {leaf.month} was erased",
                first=leaf.index,
                last=leaf.index,
            )

    def _check_gone(self) -> None:
        # What was dropped before may have been told of in a month that is dropped itself, or cannot
        # be read.
        known = min((each.start for each in self._dropped), default=0)
        begin = max(known, self._last_sealed_order + 1)
        gone = [range(max(begin, each.start), each.stop) for each in self._gone]
        # By number: where a clock went back over a month's end, two months' leaves are mixed.
        if sum(map(len, gone)) <= sum(map(len, self._dropped)):
            return
        first = min(
            (found for each in gone if (found := self._outside(each)) is not None),
            default=next(each.start for each in gone if each),
        )
        raise LogDamagedError(
            f"entry {first} is gone, and no entry tells that its month was dropped",
            first=first,
            last=first,
        )

    def _outside(self, gone: range) -> int | None:
        """The first leaf of a run that lies in no month that was dropped."""
        first = gone.start
        for each in sorted(self._dropped, key=lambda each: each.start):
            if first in each:
                first = each.stop
        return first if first < gone.stop else None
