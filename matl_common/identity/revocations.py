"""Keys that were shut out of a federation for good, in the folder of the coordinator's operator.

``revoked.jsonl`` has a line for each time. A key is known by its digest whatever it was used for,
so that none comes back under another name or for another use.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId


@dataclass(frozen=True, slots=True)
class Revoked:
    """A node, or single keys of it, that were shut out.

    The signing and witness keys are missing where only TLS keys were shut out, and in what was
    written before they were remembered.
    """

    node_id: NodeId
    pins: frozenset[str]
    whole: bool
    reason: str
    at: datetime
    signing_key: str | None = None
    """Its keyid."""
    witness_key: str | None = None
    """Its keyid."""

    @property
    def keyids(self) -> frozenset[str]:
        """Every key that was shut out."""
        others = {each for each in (self.signing_key, self.witness_key) if each is not None}
        return self.pins | others


def refuse_revoked(keys: Mapping[str, str], revoked: Iterable[Revoked]) -> None:
    """See that no key was shut out; ``keys`` are keyids by what people call their use.

    Raises:
        ConfigurationError: one was.
    """
    revoked = tuple(revoked)
    found = [
        f"{use} {keyid[:16]} was revoked on {each.at:%Y-%m-%d} with {each.node_id} ({each.reason})"
        for use, keyid in keys.items()
        for each in revoked
        if keyid in each.keyids
    ]
    if found:
        raise ConfigurationError(
            f"{'; '.join(found)}; a revoked key is never enrolled again: ask for a request with "
            "new keys (--replace-keys, or --new-key for the TLS key alone)"
        )


def read_revoked(path: Path) -> tuple[Revoked, ...]:
    """Everything that was shut out, oldest first.

    Raises:
        ConfigurationError: the file is damaged.
    """
    try:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return tuple(map(_parse, lines))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is damaged; restore it from a backup") from error


def write_revoked(path: Path, revoked: Iterable[Revoked]) -> None:
    """Replace the file."""
    lines = (json.dumps(_table(each)) + "\n" for each in revoked)
    write_atomically(path, (line.encode() for line in lines))


def _table(revoked: Revoked) -> dict[str, object]:
    return {
        "at": revoked.at.isoformat(),
        "node": revoked.node_id,
        "pins": sorted(revoked.pins),
        "signing_key": revoked.signing_key,
        "witness_key": revoked.witness_key,
        "whole": revoked.whole,
        "reason": revoked.reason,
    }


def _parse(line: str) -> Revoked:
    table = json.loads(line)
    return Revoked(
        node_id=NodeId(table["node"]),
        pins=frozenset(map(str, table["pins"])),
        whole=bool(table["whole"]),
        reason=str(table["reason"]),
        at=datetime.fromisoformat(table["at"]),
        signing_key=_keyid(table.get("signing_key")),
        witness_key=_keyid(table.get("witness_key")),
    )


def _keyid(value: object) -> str | None:
    return None if value is None else str(value)
