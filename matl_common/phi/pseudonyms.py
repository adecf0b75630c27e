"""Random names in place of identifying ones, the same for the same one, in one copy.

Nothing is derived from what was there (45 CFR 164.514(c)), and the pairs are forgotten with
the object.
"""

import secrets

from matl_common.phi.tokens import is_random

_BYTES = 8
_UID_ROOT = "2.25."


class Pseudonyms:
    """Draws a name for each that needs another, once."""

    def __init__(self) -> None:
        """Begin with none."""
        self._names: dict[str, str] = {}
        self._uids: dict[str, str] = {}

    def name(self, old: str, *, identifies: bool) -> str:
        """The random name of what identifies, else ``old``; who got a name once keeps it."""
        if old not in self._names and identifies:
            self._names[old] = _random_name()
        return self._names.get(old, old)

    def uid(self, old: str) -> str:
        """A DICOM unique identifier for another (PS3.5, B.2)."""
        return self._uids.setdefault(old, f"{_UID_ROOT}{secrets.randbits(128)}")


def _random_name() -> str:
    """Hexadecimal digits that are seen to be random."""
    while not is_random(found := secrets.token_hex(_BYTES)):
        continue
    return found
