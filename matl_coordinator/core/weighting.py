"""From trust to weights: whose update counts how much, or that a round must be held.

Nothing here changes trust.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from matl_common.ids import NodeId
from matl_coordinator.core.robust.sizes import size_cap
from matl_coordinator.core.trust_record import (
    DEFAULT_POLICY,
    TrustError,
    TrustPolicy,
    TrustRecord,
    TrustState,
    following,
)


@dataclass(frozen=True, slots=True)
class Weighting:
    """Shares of the hospitals in an aggregate; they sum to 1."""

    shares: Mapping[NodeId, float]
    """Every hospital present, those that count for nothing included."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Too little trusted support: keep the last model and call an operator.

    There is no fallback on purpose. A model trained on the holdout set alone would
    overfit it, every honest update would then seem to harm it, and nobody would return.
    """

    reason: str


def trust_weight(record: TrustRecord, policy: TrustPolicy = DEFAULT_POLICY) -> float:
    """ψ: 0 in quarantine, else growing with trust up to 1 at ``trusted_from``."""
    if record.state is TrustState.QUARANTINED:
        return 0.0
    return _strength(record.trust, policy)


def _strength(trust: float, policy: TrustPolicy) -> float:
    if trust < policy.excluded_below:
        return 0.0
    start = policy.weightless_at
    return min(1.0, (trust - start) / (policy.trusted_from - start))


def hospitals_wanted(enrolled: int) -> int:
    """The fewest that a model is made of: a single update would be the model, for all to see."""
    return min(2, enrolled)


def strength_wanted(enrolled: int, policy: TrustPolicy = DEFAULT_POLICY) -> float:
    """The least sum of ψ in a round that is not held."""
    return min(policy.minimum_strength, strength_of_newcomers(enrolled, policy))


def strength_of_newcomers(hospitals: int, policy: TrustPolicy = DEFAULT_POLICY) -> float:
    """The sum of ψ over hospitals that have their initial trust."""
    return hospitals * _strength(policy.initial, policy)


def aggregation_weights(
    records: Sequence[TrustRecord],
    enrolled: Mapping[NodeId, int],
    *,
    present: Sequence[NodeId],
    f: int,
    refused: int = 0,
    clusters: Collection[frozenset[NodeId]] = (),
    policy: TrustPolicy = DEFAULT_POLICY,
) -> Weighting | Hold:
    """Share out the aggregate among the hospitals whose updates were admitted.

    w ∝ ψ(trust) · φ · 1[no harm this round] · min(patients, cap) / |cluster|, with the cap of
    ``size_cap`` and φ of ``following``. The round is held for want of combined trust, or where a
    single hospital counts, or if those that count have less than half of the capped patients that
    the others have when the f largest are hostile: all the patients would ask for more than the
    honest alone may have. Clones, and those that do not follow, count in full towards that, so that
    neither can be used to hold rounds. So is a round of no more updates than may be hostile, those
    apart that gave themselves away.

    Args:
        records: after this round's ``update_trust``.
        enrolled: patients by hospital as the operator enrolled them, absent ones included.
        present: hospitals with an admitted update.
        f: hospitals that together must hold less than half of the weight.
        refused: hospitals whose updates no honest hospital sends; they are among the ``f``.
        clusters: disjoint groups of nearly identical updates; each shares one weight.
        policy: the constants.

    Raises:
        TrustError: a hospital present has no record or is not enrolled.
    """
    by_node = {record.node_id: record for record in records}
    if strangers := [node for node in present if node not in by_node or node not in enrolled]:
        raise TrustError(f"{', '.join(strangers)} sent an update but is not enrolled")
    cap = size_cap(tuple(enrolled.values()), f=f)
    capped = {node: float(min(patients, cap)) for node, patients in enrolled.items()}
    strength = {node: _counts_for(by_node[node], policy) for node in present}
    unknown = max(0, f - refused)
    if len(present) <= unknown:
        return Hold(
            f"{len(present)} sound updates came, and up to {unknown} of them may be hostile"
        )
    total = math.fsum(strength.values())
    wanted = strength_wanted(len(enrolled), policy)
    counting = [node for node in present if strength[node] > 0]
    least = hospitals_wanted(len(enrolled))
    support = math.fsum(capped[node] for node in counting)
    # Whoever is hostile, the honest have at least this.
    guaranteed = math.fsum(sorted(capped.values())[: len(capped) - f])
    quorum = policy.minimum_support * guaranteed
    if total < wanted - 1e-9:
        return Hold(
            f"combined trust of the updates is {total:.2f}; at least {wanted:.2f} is needed"
        )
    if len(counting) < least:
        return Hold(f"a single update of {len(present)} counts; at least {least} are needed")
    if support < quorum * (1.0 - 1e-9):
        return Hold(
            f"trusted updates stand for {support:.0f} patients, counting at most {cap} of a "
            f"hospital; at least {math.ceil(quorum)} are needed"
        )
    sharing = {node: len(cluster) for cluster in clusters for node in cluster}
    raw = {
        node: strength[node]
        * following(by_node[node], policy)
        * capped[node]
        / sharing.get(node, 1)
        for node in present
    }
    whole = math.fsum(raw.values())
    return Weighting({node: weight / whole for node, weight in raw.items()})


def _counts_for(record: TrustRecord, policy: TrustPolicy) -> float:
    harmed = record.components is not None and record.components.harm
    return 0.0 if harmed else trust_weight(record, policy)
