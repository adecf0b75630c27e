"""The orders by which parts of a log were put away: what they say, and what all of them say.

An order may lie in a month that is put away itself, and then cannot be read any more. So each
repeats what the ones before it put away, and the newest that can be read tells of everything.
Nothing here opens an entry: who passes what one says has seen that it is the log's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

MONTH_DROPPED, MONTH_KEY_ERASED = "month_dropped", "month_key_erased"
"""The orders without which no leaf may be gone, and none unreadable."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one order says.

    Attributes:
        index: its place in the log.
        event: one of the two above.
        at: when it was given, RFC 3339 in UTC; the coordinator's word.
        month: what it puts away, ``YYYY-MM``.
        years: the retention in force.
        compliance: whose minimum was respected.
        gone: leaves that are not there once it is done, in runs, of which an entry has the first
            and the last; its own month's among them.
        erased: months whose data keys are erased once it is done, and before which place a leaf
            under one lies.
    """

    index: int
    event: str
    at: str
    month: str
    years: int
    compliance: str
    gone: tuple[range, ...]
    erased: Mapping[str, int]


def parse_order(index: int, facts: Mapping[str, Any]) -> Order | None:
    """The order that an entry is; ``None`` where it is none, or not in full."""
    match facts:
        case {
            "event": str(event),
            "at": str(at),
            "month": str(month),
            "retention_years": int(years),
            "compliance": str(compliance),
            "gone": list(gone),
            "erased": dict(erased),
        } if event in {MONTH_DROPPED, MONTH_KEY_ERASED}:
            runs = tuple(_run(each, below=index) for each in gone)
            places = {each: _place(place, below=index) for each, place in erased.items()}
            if event == MONTH_KEY_ERASED:
                places[month] = index
            known = tuple(each for each in runs if each is not None)
            befores = {each: place for each, place in places.items() if place is not None}
            return Order(
                index, event, at, month, years, compliance, known, MappingProxyType(befores)
            )
    return None


def all_gone(orders: Iterable[Order], *, runs: Iterable[range] = ()) -> list[range]:
    """What orders, and ``runs`` beside them, put away; in order, and no two runs touch."""
    merged: list[range] = []
    named = [*runs, *(each for order in orders for each in order.gone)]
    for run in sorted(named, key=lambda each: each.start):
        if merged and run.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, run.stop))
        else:
            merged.append(run)
    return merged


def all_erased(orders: Iterable[Order]) -> dict[str, int]:
    """Months whose data keys orders erase, and before which place."""
    found: dict[str, int] = {}
    for order in orders:
        for month, before in order.erased.items():
            found[month] = max(before, found.get(month, 0))
    return found


def _run(written: object, *, below: int) -> range | None:
    match written:
        case [int(first), int(last)] if 0 <= first <= last < below:
            return range(first, last + 1)
    return None


def _place(written: object, *, below: int) -> int | None:
    return written if isinstance(written, int) and 0 <= written < below else None
