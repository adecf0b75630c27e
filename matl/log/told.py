"""What an entry says, compared with the leaf that commits to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.leaf import Leaf, parse_leaf
from matl_common.tlog.merkle import leaf_hash
from matl_common.tlog.sealing import check_payload
from matl_common.tlog.verification import StoredLeaf


def leaf_of(stored: StoredLeaf) -> Leaf | None:
    """The leaf at its own place; ``None`` where its month was dropped.

    Raises:
        InvalidInputError: it is none.
        IntegrityError: it is another entry's, or changed, or its payload is.
    """
    if stored.leaf is None or stored.payload is None:
        return None
    leaf = parse_leaf(stored.leaf)
    if leaf_hash(stored.leaf) != stored.hash:
        raise IntegrityError(f"the leaf of entry {stored.index} does not give the tree's hash")
    check_payload(leaf, stored.payload)
    if leaf.index != stored.index:
        raise IntegrityError(f"entry {stored.index} is shown with the leaf of entry {leaf.index}")
    return leaf


def facts_of(leaf: Leaf, said: bytes) -> Mapping[str, Any]:
    """An entry's facts.

    Raises:
        InvalidInputError: it is no entry.
        IntegrityError: it says something else than its leaf.
    """
    facts = parse_entry(said)
    told = tuple(facts.get(name) for name in ("event", "at", "node", "round"))
    if told != (leaf.event, leaf.at, leaf.node, leaf.round):
        raise IntegrityError(f"entry {leaf.index} says something else than its leaf")
    return facts


def told(stored: StoredLeaf, say: Callable[[int], bytes]) -> dict[str, Any]:
    """What there is to show of an entry: what it says, or without that what its leaf does.

    One that is not as it was written is shown as ``damaged``, and why: the others can still be
    read. ``say`` gives what an entry says, or nothing; it raises ``IntegrityError`` for one that is
    damaged.
    """
    try:
        leaf = leaf_of(stored)
        if leaf is None:
            return {"index": stored.index, "dropped": True}
        if said := say(stored.index):
            return {"index": stored.index, **facts_of(leaf, said)}
    except (IntegrityError, InvalidInputError) as error:
        return {"index": stored.index, "damaged": str(error)}
    facts = {"at": leaf.at, "event": leaf.event, "node": leaf.node, "round": leaf.round}
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return {"index": stored.index, **known, "sealed": True}
