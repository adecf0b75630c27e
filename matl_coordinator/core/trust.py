"""How far each hospital's updates are trusted, kept across rounds with reasons.

``update_trust`` is the only way trust changes by itself, ``quarantine`` and ``release``
the only ways an operator changes it. The same inputs give the same records. The rule
is a test of every update against the holdout set, whose outcome is averaged over
rounds; agreement with the other hospitals may lower trust but never exclude. Nothing
here reads a clock, draws a random number or performs I/O.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.trust_reasons import reason_for
from matl_coordinator.core.trust_record import (
    DEFAULT_POLICY,
    Components,
    HoldoutScore,
    PeerAgreement,
    TrustError,
    TrustPolicy,
    TrustRecord,
    TrustState,
    initial_record,
    rounds_to_readmission,
    state_of,
)
from matl_coordinator.core.weighting import Hold, Weighting, aggregation_weights

__all__ = [
    "DEFAULT_POLICY",
    "Components",
    "Hold",
    "HoldoutScore",
    "PeerAgreement",
    "TrustError",
    "TrustPolicy",
    "TrustRecord",
    "TrustState",
    "Weighting",
    "aggregation_weights",
    "initial_record",
    "quarantine",
    "release",
    "update_trust",
]


def update_trust(
    records: Sequence[TrustRecord],
    scores: Sequence[HoldoutScore],
    *,
    round_id: RoundId,
    agreement: Mapping[NodeId, PeerAgreement] | None = None,
    violations: Mapping[NodeId, str] | None = None,
    policy: TrustPolicy = DEFAULT_POLICY,
) -> tuple[TrustRecord, ...]:
    """The records after a round.

    Hospitals without a score or violation keep their record. Quarantined ones should be
    scored too: that is how they return.

    Args:
        records: every enrolled hospital, quarantined ones included.
        scores: at most one for each hospital.
        round_id: the round that was scored.
        agreement: with the other hospitals, where known.
        violations: what a hospital sent that no honest one sends, as a phrase such as
            "its update held values that are not finite".
        policy: the constants.

    Raises:
        TrustError: a score that is not finite, or for a hospital without a record, or two.
    """
    by_node = _checked_scores(records, scores)
    reference = _Reference.of(scores, policy)
    updated = []
    for record in records:
        score = by_node.get(record.node_id)
        violation = (violations or {}).get(record.node_id)
        after = record
        if violation is not None:
            after = _after_violation(record, violation, round_id, policy)
        elif score is not None:
            peers = (agreement or {}).get(record.node_id)
            after = _after_score(
                record, score, reference, peers=peers, round_id=round_id, policy=policy
            )
        updated.append(after)
    return tuple(updated)


def quarantine(record: TrustRecord, *, why: str) -> TrustRecord:
    """Exclude a hospital on an operator's order, until an operator releases it."""
    return replace(
        record,
        state=TrustState.QUARANTINED,
        rounds_clear=0,
        operator_hold=True,
        reason=f"excluded by an operator: {why}",
    )


def release(record: TrustRecord, *, why: str, policy: TrustPolicy = DEFAULT_POLICY) -> TrustRecord:
    """End a quarantine on an operator's order; the hospital starts again as marginal.

    Raises:
        TrustError: the hospital is not quarantined.
    """
    if record.state is not TrustState.QUARANTINED:
        raise TrustError(f"{record.node_id} is {record.state.value}; there is nothing to release")
    fresh = initial_record(record.node_id, policy)
    trust = min(max(record.trust, policy.readmit_from), policy.readmit_at_most)
    return replace(
        fresh,
        trust=trust,
        state=state_of(trust, policy),
        as_of_round=record.as_of_round,
        quarantines=record.quarantines,
        reason=f"released by an operator: {why}",
    )


@dataclass(frozen=True, slots=True)
class _Reference:
    """What the round's updates, taken together, say about the scale of a good one."""

    projection: float
    informativeness: float

    @staticmethod
    def of(scores: Sequence[HoldoutScore], policy: TrustPolicy) -> _Reference:
        projection = _upper_quartile([score.projection for score in scores])
        z = _upper_quartile([score.z for score in scores])
        if projection <= 0 or z <= 0:
            return _Reference(projection=0.0, informativeness=0.0)
        return _Reference(projection, min(1.0, (z / policy.informative_z) ** 2))


def _upper_quartile(values: Sequence[float]) -> float:
    # The lower of the two neighbouring values: a quarter of the hospitals, at the least
    # one of five, cannot move it by overstating.
    return sorted(values)[3 * (len(values) - 1) // 4] if values else 0.0


def _after_score(
    record: TrustRecord,
    score: HoldoutScore,
    reference: _Reference,
    *,
    peers: PeerAgreement | None,
    round_id: RoundId,
    policy: TrustPolicy,
) -> TrustRecord:
    kappa = reference.informativeness
    relative, reliability = _relative(score, reference)
    signal, information = _accumulated(record, score, policy)
    accumulated_z = signal / math.sqrt(information) if information > 0 else 0.0
    harm = score.z < policy.harm_z or accumulated_z < policy.accumulated_harm_z
    step = 0.5 if harm else policy.evidence_rate * kappa * reliability
    # A lucky round of a hospital that did harm over many rounds is no evidence for it.
    observed = min(relative, 0.0) if harm else relative
    scored = replace(
        record,
        as_of_round=int(round_id),
        evidence=record.evidence + step * (observed - record.evidence),
        signal=signal,
        information=information,
        log_odds=_log_odds(record, score, reference, policy),
        sleeper_sum=max(0.0, record.sleeper_sum + kappa * reliability * (policy.slack - relative)),
        rounds_against=record.rounds_against + 1 if score.z < 0 else 0,
    )
    quality = _quality(scored, accumulated_z, policy)
    trust = _moved(record.trust, quality, kappa=kappa, harm=harm, policy=policy)
    if not harm and scored.log_odds > -policy.exclusion_odds:
        # Bad luck behind strong privacy noise may lower a weight, but excludes nobody.
        trust = max(trust, min(record.trust, policy.excluded_below))
    disagrees = _disagrees(peers, policy)
    # In quarantine only the holdout set counts: peers must not be able to bar a return.
    if disagrees and record.state is not TrustState.QUARANTINED:
        trust = min(trust, max(policy.peer_floor, trust - policy.peer_step))
    components = Components(
        projection=score.projection,
        standard_error=math.sqrt(score.variance),
        z=score.z,
        accumulated_z=accumulated_z,
        relative=relative,
        informativeness=kappa,
        reliability=reliability,
        quality=quality,
        harm=harm,
        pogq=score.pogq,
        loss_improvement=score.loss_improvement,
        peer_cosine=peers.cosine if peers else None,
    )
    scored = replace(
        scored,
        trust=trust,
        rounds_clear=record.rounds_clear + 1 if quality > 0.5 else 0,
        components=components,
    )
    settled = _with_state(scored, policy)
    return replace(settled, reason=reason_for(settled, policy, disagrees=disagrees))


def _quality(record: TrustRecord, accumulated_z: float, policy: TrustPolicy) -> float:
    """What trust moves towards: 0 for a harmful or sleeping hospital, 1 for a good one."""
    if record.sleeper_sum > policy.sleeper_limit:
        return 0.0
    # Behind strong privacy noise a careless hospital can look good for a few rounds.
    ceiling = 1.0 if accumulated_z >= policy.proven_z else policy.unproven_quality
    return _clip((record.evidence - policy.evidence_floor) / policy.evidence_span, 0.0, ceiling)


def _relative(score: HoldoutScore, reference: _Reference) -> tuple[float, float]:
    """ρ, and the share of its variance that would be signal were the hospital honest."""
    if reference.projection <= 0:
        return 0.0, 0.0
    relative = _clip(score.projection / reference.projection, -1.5, 1.5)
    squared = reference.projection**2
    return relative, squared / (squared + score.variance)


def _accumulated(
    record: TrustRecord, score: HoldoutScore, policy: TrustPolicy
) -> tuple[float, float]:
    # Precision-weighted, so that rounds with a weak reference count for little.
    if score.variance <= 0:
        return record.signal, record.information
    return (
        policy.memory * record.signal + score.projection / score.variance,
        policy.memory**2 * record.information + 1.0 / score.variance,
    )


def _log_odds(
    record: TrustRecord, score: HoldoutScore, reference: _Reference, policy: TrustPolicy
) -> float:
    """Wald's sequential test of "as good as the upper quartile" against "of no use".

    Bounded, so that a long good past does not excuse a bad present.
    """
    faded = policy.memory * record.log_odds
    if score.variance <= 0 or reference.projection <= 0:
        return faded
    good = reference.projection
    step = good * (score.projection - good / 2.0) / score.variance
    bound = 2.0 * policy.exclusion_odds
    return _clip(faded + reference.informativeness * step, -bound, bound)


def _moved(trust: float, target: float, *, kappa: float, harm: bool, policy: TrustPolicy) -> float:
    """Trust falls as fast as the round is informative and rises more slowly."""
    if target < trust:
        rate = policy.fall_rate if harm else policy.fall_rate * kappa
    else:
        rate = policy.rise_rate * max(kappa, 0.2)
    return trust + rate * (target - trust)


def _disagrees(peers: PeerAgreement | None, policy: TrustPolicy) -> bool:
    return peers is not None and peers.cosine < -(policy.peer_margin + policy.peer_z * peers.noise)


def _after_violation(
    record: TrustRecord, violation: str, round_id: RoundId, policy: TrustPolicy
) -> TrustRecord:
    after = replace(
        record,
        trust=_moved(record.trust, 0.0, kappa=1.0, harm=True, policy=policy),
        evidence=0.5 * min(record.evidence, policy.evidence_floor),
        as_of_round=int(round_id),
        rounds_clear=0,
    )
    after = _with_state(after, policy)
    verb = "excluded" if after.state is TrustState.QUARANTINED else "trust lowered"
    return replace(after, reason=f"{verb}: {violation}")


def _with_state(record: TrustRecord, policy: TrustPolicy) -> TrustRecord:
    """Enter or leave quarantine, or follow the score."""
    if record.state is not TrustState.QUARANTINED:
        state = state_of(record.trust, policy)
        if state is not TrustState.QUARANTINED:
            return replace(record, state=state)
        quarantines = record.quarantines + 1
        return replace(
            record,
            state=state,
            quarantines=quarantines,
            rounds_clear=0,
            operator_hold=quarantines >= policy.operator_from,
        )
    if record.operator_hold or record.rounds_clear < rounds_to_readmission(record, policy):
        return record
    if record.trust <= policy.readmit_from:
        return record
    trust = min(record.trust, policy.readmit_at_most)
    return replace(
        record, trust=trust, state=state_of(trust, policy), rounds_clear=0, sleeper_sum=0.0
    )


def _clip(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))


def _checked_scores(
    records: Sequence[TrustRecord], scores: Sequence[HoldoutScore]
) -> dict[NodeId, HoldoutScore]:
    known = {record.node_id for record in records}
    by_node: dict[NodeId, HoldoutScore] = {}
    for score in scores:
        if score.node_id not in known:
            raise TrustError(f"{score.node_id} was scored but is not enrolled")
        if score.node_id in by_node:
            raise TrustError(f"{score.node_id} was scored twice in one round")
        numbers = (score.projection, score.variance, score.loss_improvement)
        if not all(map(math.isfinite, numbers)) or score.variance < 0:
            raise TrustError(f"the score of {score.node_id} is not finite")
        by_node[score.node_id] = score
    return by_node
