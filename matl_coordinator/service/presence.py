"""Who has been heard from lately. Kept in memory only: a restart asks anew."""

from __future__ import annotations

from collections.abc import Callable, Container
from datetime import datetime, timedelta

from matl_common.ids import NodeId


class Presence:
    """When each node last made an authenticated call."""

    def __init__(
        self,
        *,
        within: timedelta,
        enrolled: Callable[[], Container[NodeId]],
        clock: Callable[[], datetime],
    ) -> None:
        self._within = within
        self._enrolled = enrolled
        self._clock = clock
        self._last_seen: dict[NodeId, datetime] = {}

    def saw(self, node_id: NodeId) -> None:
        self._last_seen[node_id] = self._clock()

    def last_seen(self, node_id: NodeId) -> datetime | None:
        return self._last_seen.get(node_id)

    def present(self) -> frozenset[NodeId]:
        """Enrolled nodes heard from within the time that counts as present."""
        since, enrolled = self._clock() - self._within, self._enrolled()
        return frozenset(
            node for node, seen in self._last_seen.items() if seen >= since and node in enrolled
        )
