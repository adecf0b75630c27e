"""When hospitals sent their updates, for the composite score of MATL's paper.

Read from the store, so that it is the same on replay. Nothing here decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.composite import Activity, activity_of
from matl_coordinator.core.rounds import Round
from matl_coordinator.ports import Store, UpdateStatus

ROUNDS = 100
"""How far back to look."""


def activities(store: Store, rnd: Round) -> Mapping[NodeId, Activity]:
    """The activity of every hospital admitted to ``rnd``, over the last rounds up to it."""
    own: dict[NodeId, list[datetime]] = {}
    network: dict[NodeId, list[datetime]] = {}
    for number in range(max(1, rnd.round_id - ROUNDS + 1), rnd.round_id + 1):
        admitted = {
            each.node_id: each.decided_at
            for each in store.updates(RoundId(number))
            if each.status is UpdateStatus.ADMITTED and each.decided_at is not None
        }
        if not admitted:
            continue
        mean = sum(each.timestamp() for each in admitted.values()) / len(admitted)
        for node, moment in admitted.items():
            own.setdefault(node, []).append(moment)
            network.setdefault(node, []).append(datetime.fromtimestamp(mean, UTC))
    return {
        node: activity_of(own[node], network[node])
        for node in sorted(rnd.admitted_nodes)
        if node in own
    }
