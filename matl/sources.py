"""Which code a result came of, so that it is not taken for another's."""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]


def sources_hash(entries: Iterable[str], *, without: Collection[str] = ()) -> "hashlib._Hash":
    """SHA-256 of Python files, open for more that a result hangs on.

    Args:
        entries: files, and folders with all below them, from the repository's root.
        without: names of files that change no result.
    """
    digest = hashlib.sha256()
    for entry in entries:
        place = ROOT / entry
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            if path.name not in without:
                digest.update(path.read_bytes())
    return digest
