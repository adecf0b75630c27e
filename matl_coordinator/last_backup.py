"""When a backup was last completed, kept beside what it is of.

Not in the log: an entry written after a backup is one that the backup has not, and hospitals that
cosigned it would refuse the log that is restored.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from matl_common.durable import write_atomically

_FILE: Final = "last-backup"


def note_completed(state_dir: Path, at: datetime) -> None:
    """Remember it.

    Raises:
        OSError: the state folder cannot be written.
    """
    write_atomically(state_dir / _FILE, [f"{at.isoformat()}\n".encode()])


def last_completed(state_dir: Path) -> datetime | None:
    """When it was, if one was and it can be read."""
    with suppress(OSError, ValueError):
        found = datetime.fromisoformat((state_dir / _FILE).read_text(encoding="utf-8").strip())
        return found if found.tzinfo is not None else None
    return None
