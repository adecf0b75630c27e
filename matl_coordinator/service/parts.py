"""Cuts the facts of an event into parts that each fit one log entry.

A fact that holds something of every hospital grows with the federation, and an entry has
a largest size. Who reads the log puts parts together again: objects key by key, lists one
after the other, anything else is in the first part. Nothing here knows what a fact means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from matl_common.tlog.entry import MAX_ENTRY_BYTES

Fact = None | bool | int | float | str | list["Fact"] | dict[str, "Fact"]

PART_BYTES = MAX_ENTRY_BYTES - 4096
"""Of facts in one part; the rest is room for the event, its time, round and number."""

WHOLE_BYTES = 4096
"""Facts no longer than this are not cut: a hospital's standing stays in one part."""

_PUNCTUATION = 8
"""Quotes, colon, comma and brackets around one level."""

_Piece = tuple[tuple[str, ...], bool, Fact]
"""Where it goes, whether it is an item of a list there, and what it is."""


def in_parts(facts: Mapping[str, Fact]) -> list[dict[str, Fact]]:
    """Cut facts by their encoded length; what fits one entry is left as it is."""
    if encoded_length(facts) <= PART_BYTES:
        return [dict(facts)]
    parts: list[dict[str, Fact]] = [{}]
    room = PART_BYTES
    # What is never cut goes first, and so into the first part.
    for piece in sorted(_pieces(facts), key=lambda each: len(each[0]) + each[1] > 1):
        path, _, fact = piece
        length = encoded_length(fact) + sum(encoded_length(key) + _PUNCTUATION for key in path)
        if length > room and parts[-1]:
            parts.append({})
            room = PART_BYTES
        room -= length
        _put(parts[-1], piece)
    return parts


def numbered_parts(facts: Mapping[str, Fact]) -> list[dict[str, Fact]]:
    """As ``in_parts``, each with ``part`` and ``parts`` where there are several."""
    parts = in_parts(facts)
    if len(parts) == 1:
        return parts
    return [
        {**part, "part": number, "parts": len(parts)} for number, part in enumerate(parts, start=1)
    ]


def encoded_length(fact: object) -> int:
    """Bytes of a fact in a log entry."""
    return len(json.dumps(fact, separators=(",", ":"), ensure_ascii=False).encode())


def _pieces(facts: Mapping[str, Fact], path: tuple[str, ...] = ()) -> Iterator[_Piece]:
    for key, fact in facts.items():
        here = (*path, key)
        match fact:
            case _ if encoded_length(fact) <= WHOLE_BYTES:
                yield here, False, fact
            case dict():
                yield from _pieces(fact, here)
            case list():
                yield from ((here, True, item) for item in fact)
            case _:
                yield here, False, fact


def _put(part: dict[str, Fact], piece: _Piece) -> None:
    path, is_item, fact = piece
    for key in path[:-1]:
        below = part.setdefault(key, {})
        assert isinstance(below, dict), "pieces of one fact go to one kind of place"
        part = below
    if not is_item:
        part[path[-1]] = fact
        return
    items = part.setdefault(path[-1], [])
    assert isinstance(items, list), "pieces of one fact go to one kind of place"
    items.append(fact)


def numbered(groups: Sequence[list[Fact]]) -> list[Fact] | dict[str, Fact]:
    """Lists in a list, or by number where one is too long to stay whole: so it can be cut."""
    if all(encoded_length(group) <= WHOLE_BYTES for group in groups):
        return list(groups)
    return {str(number): group for number, group in enumerate(groups, start=1)}
