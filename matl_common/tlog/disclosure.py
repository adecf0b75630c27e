"""One entry shown to somebody who holds no key: its leaf, the salt, and what was said, as JSON.

``leaf.check_disclosure`` says whether the leaf is of the entry, ``proof`` whether a log has it.
"""

import json
from dataclasses import dataclass

from matl_common.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Disclosure:
    """An entry with what shows its leaf to be of it."""

    leaf: bytes
    salt: bytes
    entry: bytes


def encode_disclosure(shown: Disclosure) -> bytes:
    """The content of an ``entry.json`` file."""
    document = {
        "leaf": shown.leaf.decode(),
        "salt": shown.salt.hex(),
        "entry": shown.entry.decode(),
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def parse_disclosure(data: bytes) -> Disclosure:
    """Parse such a file.

    Raises:
        InvalidInputError: it is not one.
    """
    try:
        document = json.loads(data)
        return Disclosure(
            leaf=document["leaf"].encode(),
            salt=bytes.fromhex(document["salt"]),
            entry=document["entry"].encode(),
        )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise InvalidInputError("not an entry as the log discloses it") from error
