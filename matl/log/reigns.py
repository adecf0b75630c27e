"""Whether a log was ever written by two coordinators at once.

Every entry that a coordinator writes tells its reign, the number of its take-over, as that
coordinator knows it; the entry's place in the log is the database's. One that had been replaced
and wrote all the same would stand behind its successor's, with a smaller number. Entries from
beside a coordinator, or from before entries told it, have none and are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matl_common.tlog.verification import LogDamagedError
from matl_coordinator.service.register import REIGN


@dataclass(frozen=True, slots=True)
class Reign:
    """The entries of one coordinator, from ``first`` to ``last``, and none of another's between."""

    number: int
    first: int
    last: int


class Reigns:
    """Takes what a log's entries say, in their order."""

    def __init__(self) -> None:
        self._found: list[Reign] = []

    @property
    def found(self) -> tuple[Reign, ...]:
        """Those so far, in their order."""
        return tuple(self._found)

    def told(self, index: int, facts: Mapping[str, Any]) -> None:
        """What the entry at this place says.

        Raises:
            LogDamagedError: its writer had been replaced by the writer of an earlier one.
        """
        number = facts.get(REIGN)
        if not isinstance(number, int):
            return
        newest = self._found[-1] if self._found else None
        if newest is None or newest.number < number:
            self._found.append(Reign(number, index, index))
        elif newest.number == number:
            self._found[-1] = Reign(number, newest.first, index)
        else:
            raise LogDamagedError(
                f"entry {index} is of reign {number}, after entry {newest.last} of reign "
                f"{newest.number}: a coordinator that had been replaced wrote all the same, so two "
                "wrote at once",
                first=index,
                last=index,
            )
