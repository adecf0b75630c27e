"""How much say hospitals hold that a round spoke against, for metrics and alarms.

Nothing here changes trust or weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from matl_common.ids import NodeId

ALARM_RATIO = 1.0 / 3.0
"""MATL calls a federation safe while Byzantine power is below this part of the honest."""


@dataclass(frozen=True, slots=True)
class ByzantinePower:
    """Reputation of the hospitals a round spoke against, beside that of all others."""

    against: float
    """Σ r² over the hospitals the round spoke against, r the reputation they came with."""
    honest: float
    """Σ r² over all others that took part."""
    cartel: frozenset[NodeId] = frozenset()
    """The group of nearly identical updates that would weigh the most; empty without one."""
    cartel_share: float = 0.0
    """Share of the aggregate that group would have, did its members not share a weight."""

    @property
    def ratio(self) -> float:
        """Byzantine over honest power; infinite where nobody else took part."""
        if self.honest > 0.0:
            return self.against / self.honest
        return math.inf if self.against > 0.0 else 0.0

    @property
    def is_alarming(self) -> bool:
        """Byzantine power above a third of the honest: call an operator.

        The bound assumes that whoever is hostile was noticed, so silence proves nothing.
        """
        return self.ratio > ALARM_RATIO

    def sentence(self) -> str:
        """What an operator reads."""
        text = (
            f"updates judged harmful or refused came with {self.against:.2f} of squared "
            f"reputation, the others with {self.honest:.2f}"
        )
        if self.cartel:
            names = ", ".join(sorted(self.cartel))
            text += (
                f"; {names} sent nearly identical updates and would have held "
                f"{self.cartel_share:.0%} of the weight"
            )
        return text


def byzantine_power(
    reputation: Mapping[NodeId, float],
    *,
    against: Collection[NodeId],
    clusters: Collection[frozenset[NodeId]] = (),
    unshared: Mapping[NodeId, float] | None = None,
) -> ByzantinePower:
    """Weigh the hospitals a round spoke against.

    Args:
        reputation: ψ of trust before the round, for every hospital that sent something;
            0 in quarantine, because such a hospital has no say to lose.
        against: those whose update was refused, broke the protocol or did harm.
        clusters: groups of two or more nearly identical updates.
        unshared: weights, on any scale, as if nobody shared one with a clone.
    """
    squared = {node: reputation[node] ** 2 for node in sorted(reputation)}
    bad = set(against)
    total = math.fsum((unshared or {}).values())
    shares = {
        cluster: math.fsum((unshared or {}).get(node, 0.0) for node in sorted(cluster)) / total
        for cluster in clusters
        if total > 0.0
    }
    # Names break ties, so that the order of the input does not.
    cartel = max(shares, key=lambda each: (shares[each], sorted(each)), default=frozenset())
    return ByzantinePower(
        against=math.fsum(value for node, value in squared.items() if node in bad),
        honest=math.fsum(value for node, value in squared.items() if node not in bad),
        cartel=cartel,
        cartel_share=shares.get(cartel, 0.0),
    )
