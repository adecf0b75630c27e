"""What a log entry says, in one line, from facts that are on a list.

The list keeps envelopes, keys and components of scores off a screen. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_LONGEST: Final = 160
_SHORT_DIGEST: Final = 12
_DIGESTS: Final = frozenset({"model", "update", "base_model", "root"})
_SHOWN: Final = (
    *("operator", "account", "study", "kind", "code", "reason", "hold", "text", "result"),
    *("model", "update", "base_model", "accuracy", "kappa", "norm"),
    *("figure", "bound", "checkpoint", "entry", "first", "last", "reads", "version", "state"),
)


def sentence(event: str) -> str:
    """An event's name, for people."""
    return event.replace("_", " ").capitalize()


def said(facts: Mapping[str, Any]) -> str:
    """What an entry says beside its event, time, hospital and round."""
    if "damaged" in facts:
        return str(facts["damaged"])[:_LONGEST]
    if facts.get("sealed"):
        return "encrypted; not opened here"
    if facts.get("dropped"):
        return "dropped by order; its hash is still in the tree"
    found = [
        f"{name} {_short(name, facts[name])}"
        for name in _SHOWN
        if isinstance(facts.get(name), str | int | float)
    ]
    return shortened("; ".join(found))


def shortened(text: str) -> str:
    """Text that fits a table's cell."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _short(name: str, fact: str | int | float) -> str:
    if name in _DIGESTS and isinstance(fact, str):
        return fact[:_SHORT_DIGEST]
    return f"{fact:.4g}" if isinstance(fact, float) else str(fact)
