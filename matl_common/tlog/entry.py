"""One audit entry as canonical bytes: the same value always gives the same leaf.

Canonical form: JSON in UTF-8, keys sorted by code point, no spaces, no escapes but
those JSON requires, no NaN or infinity. Nothing here decides which events exist.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from matl_common.errors import InvalidInputError

MAX_ENTRY_BYTES = 64 << 10
MAX_NAME_CHARACTERS = 200
MAX_DEPTH = 8
# Beyond this, readers that hold numbers as IEEE doubles would see another value.
MAX_INTEGER = (1 << 53) - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """An event to be logged: what it says, and the facts that a reader may filter by."""

    event: str
    at: str
    """RFC 3339 with milliseconds, in UTC."""
    node: str | None
    round: int | None
    data: bytes
    """All of it, in canonical form; what is encrypted."""


def entry_of(facts: Mapping[str, object]) -> Entry:
    """Encode facts, among them ``event`` and ``at``, and perhaps ``node`` and ``round``.

    Raises:
        InvalidInputError: as ``encode_entry``, or one of the four is missing, of another kind,
            or too long.
    """
    event, at = facts.get("event"), facts.get("at")
    node, round_id = facts.get("node"), facts.get("round")
    if (
        isinstance(event, str)
        and isinstance(at, str)
        and isinstance(node, str | None)
        and isinstance(round_id, int | None)
        and all(len(name) <= MAX_NAME_CHARACTERS for name in (event, at, node or ""))
    ):
        return Entry(event, at, node, round_id, encode_entry(facts))
    raise InvalidInputError(
        "an audit entry says what happened and when, event and at, and perhaps node and round; "
        f"names have at most {MAX_NAME_CHARACTERS} characters"
    )


def encode_entry(entry: Mapping[str, object]) -> bytes:
    """Encode an entry canonically.

    Args:
        entry: a mapping of strings, integers, finite floats, booleans, None, and
            lists, tuples and mappings of these.

    Raises:
        InvalidInputError: any other value or key, an integer beyond 2**53 - 1, a float
            that is not finite, nesting deeper than 8, or 64 KiB or more.
    """
    try:
        encoded = json.dumps(
            _checked(entry, depth=1),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        ).encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError("a text in an audit entry is not valid Unicode") from error
    if len(encoded) > MAX_ENTRY_BYTES:
        raise InvalidInputError(
            f"the audit entry has {len(encoded)} bytes; at most {MAX_ENTRY_BYTES}; log less "
            "at once, or the digest of what is kept elsewhere"
        )
    return encoded


def with_fact(entry: Entry, name: str, fact: int) -> Entry:
    """The entry with one fact more.

    Raises:
        InvalidInputError: it has become too long.
    """
    return replace(entry, data=encode_entry({**json.loads(entry.data), name: fact}))


def parse_entry(data: bytes) -> Mapping[str, object]:
    """Parse an entry, which must be in canonical form to the last byte.

    Raises:
        InvalidInputError: it is not.
    """
    if len(data) > MAX_ENTRY_BYTES:
        raise InvalidInputError(f"the audit entry has {len(data)} bytes; at most {MAX_ENTRY_BYTES}")
    try:
        entry = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("the audit entry is not JSON") from error
    # Encoding again exposes repeated keys, spaces, escapes and non-finite numbers.
    if not isinstance(entry, dict) or encode_entry(entry) != data:
        raise InvalidInputError("the audit entry is not in canonical form")
    return entry


def _checked(value: object, *, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise InvalidInputError(f"the audit entry is nested deeper than {MAX_DEPTH} levels")
    # Exact types: a NumPy number or an enumeration would not survive a round trip.
    match value:
        case None | True | False:
            return value
        case _ if type(value) is str:
            return value
        case int() if type(value) is int and abs(value) <= MAX_INTEGER:
            return value
        case float() if type(value) is float and math.isfinite(value):
            return value
        case list() | tuple():
            return [_checked(item, depth=depth + 1) for item in value]
        case Mapping():
            return {_checked_key(key): _checked(v, depth=depth + 1) for key, v in value.items()}
    raise InvalidInputError(f"an audit entry cannot hold this {type(value).__name__}")


def _checked_key(key: object) -> str:
    if type(key) is not str:
        raise InvalidInputError(f"a key of an audit entry is a {type(key).__name__}, not text")
    return key
