"""How far each hospital's updates are trusted, kept across rounds with reasons.

``update_trust`` is the only way trust changes by itself, ``quarantine`` and ``release``
the only ways an operator changes it. The same inputs give the same records. The rule
is a test of every update against the holdout set, whose outcome is averaged over
rounds; agreement with the other hospitals may lower trust but never exclude. Without a
holdout set that agreement and the protocol are all there is. Nothing here reads a clock,
draws a random number or performs I/O.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.composite import SCHEDULED, Activity, composite_of
from matl_coordinator.core.profile import Profile, read_profiles
from matl_coordinator.core.trust_evidence import Reading, quality_of, read_score, reference_of
from matl_coordinator.core.trust_reasons import cause_of, reason_for, violation_reason
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
    scores: Sequence[HoldoutScore] | None,
    *,
    round_id: RoundId,
    agreement: Mapping[NodeId, PeerAgreement] | None = None,
    violations: Mapping[NodeId, str] | None = None,
    profiles: Sequence[Profile] = (),
    clusters: Collection[frozenset[NodeId]] = (),
    activity: Mapping[NodeId, Activity] | None = None,
    byzantine: int = 0,
    policy: TrustPolicy = DEFAULT_POLICY,
) -> tuple[TrustRecord, ...]:
    """The records after a round.

    Hospitals without a score or violation keep their record. Quarantined ones should be
    scored too: that is how they return.

    Args:
        records: every enrolled hospital, quarantined ones included.
        scores: at most one for each hospital; ``None`` without a holdout set, and then
            ``agreement`` names the hospitals whose updates were admitted.
        round_id: the round that was scored.
        agreement: with the other hospitals, where known.
        violations: what a hospital sent that no honest one sends, as a phrase such as
            "its update held values that are not finite".
        profiles: of scored updates, where the enrolled label mix predicts them.
        clusters: disjoint groups of nearly identical updates.
        activity: when hospitals send, for the paper's composite; on a schedule unless given.
        byzantine: f, how many of the scored hospitals may be hostile.
        policy: the constants.

    Raises:
        TrustError: a score that is not finite, or for a hospital without a record, or two.
    """
    by_node = _checked_scores(records, scores or ())
    out = {record.node_id for record in records if record.state is TrustState.QUARANTINED}
    reference = reference_of(
        scores or (),
        f=byzantine,
        policy=policy,
        quarantined=out,
        standing={record.node_id for record in records} - out,
    )
    readings = read_profiles(records, profiles, f=byzantine, policy=policy)
    agreement = agreement or {}
    clones = {node: len(group) - 1 for group in clusters for node in group}
    updated = []
    for record in records:
        node = record.node_id
        score, peers = by_node.get(node), agreement.get(node)
        copies = clones.get(node, 0)
        after = record
        if violation := (violations or {}).get(node):
            after = _after_violation(record, violation, policy)
        elif score is not None:
            scored, reading = read_score(
                record, score, reference, policy, profile=readings.get(node)
            )
            parts = _components(score, reading, scored, reference.informativeness, policy)
            paper = composite_of(
                pogq=score.pogq,
                clones=copies,
                n=len(by_node),
                activity=(activity or {}).get(node, SCHEDULED),
            )
            parts = replace(
                parts,
                peer_cosine=peers.cosine if peers else None,
                clones=copies,
                composite=paper.score,
                tcdm=paper.tcdm,
                entropy=paper.entropy,
            )
            if profile := readings.get(node):
                parts = replace(
                    parts,
                    profile_class=profile.worst_class,
                    profile_surplus=profile.surplus,
                    profile_z=profile.z,
                    profile_harm=profile.harm,
                )
            if policy.composite == "root-test":
                after = _follow_test(record, scored, parts, peers=peers, policy=policy)
            else:
                after = _follow_paper(record, scored, parts, policy=policy)
        elif scores is None and peers is not None:
            after = _follow_peers(record, peers, clones=copies, policy=policy)
        if after is not record:
            after = replace(after, as_of_round=int(round_id))
        updated.append(after)
    return tuple(updated)


def quarantine(record: TrustRecord, *, why: str) -> TrustRecord:
    """Exclude a hospital on an operator's order, until an operator releases it."""
    return replace(
        record,
        state=TrustState.QUARANTINED,
        rounds_clear=0,
        operator_hold=True,
        quarantine_cause=f'an operator said "{why}"',
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


def _components(
    score: HoldoutScore,
    reading: Reading,
    scored: TrustRecord,
    informativeness: float,
    policy: TrustPolicy,
) -> Components:
    return Components(
        projection=score.projection,
        standard_error=math.sqrt(score.variance),
        z=score.z,
        accumulated_z=reading.accumulated_z,
        recent_z=reading.recent_z,
        relative=reading.relative,
        informativeness=informativeness,
        reliability=reading.reliability,
        quality=quality_of(scored, reading.accumulated_z, policy),
        harm=reading.harm,
        pogq=score.pogq,
        loss_improvement=score.loss_improvement,
        peer_cosine=None,
        beyond=score.beyond,
    )


def _follow_test(
    record: TrustRecord,
    scored: TrustRecord,
    parts: Components,
    *,
    peers: PeerAgreement | None,
    policy: TrustPolicy,
) -> TrustRecord:
    """Trust moves towards the quality that the holdout set has shown."""
    trust = _moved(
        record.trust, parts.quality, kappa=parts.informativeness, harm=parts.harm, policy=policy
    )
    # Bad luck behind strong privacy noise may lower a weight, but excludes nobody; nor does helping
    # little, where it is certain that it helps.
    is_unlucky = scored.log_odds > -policy.exclusion_odds
    surely_helps = (
        parts.accumulated_z >= policy.certain_z and scored.sleeper_sum <= policy.sleeper_limit
    )
    if not parts.harm and (is_unlucky or surely_helps):
        trust = max(trust, min(record.trust, policy.excluded_below))
    # A hospital of rare cases points against the others once they have learnt theirs: where
    # the holdout set has spoken for it, they are not asked. Nor in quarantine, so that they
    # cannot bar a return.
    disagrees = (
        peers is not None
        and _leaning(peers, policy) < 0
        and parts.accumulated_z < policy.proven_z
        and record.state is not TrustState.QUARANTINED
    )
    if disagrees:
        trust = _demoted(trust, policy)
    return _settled(scored, trust, parts, policy=policy, disagrees=disagrees)


def _follow_paper(
    record: TrustRecord,
    scored: TrustRecord,
    parts: Components,
    *,
    policy: TrustPolicy,
) -> TrustRecord:
    """Trust is the moving average of the composite; the holdout test only watches."""
    score = parts.composite or 0.0
    trust = policy.composite_memory * record.trust + (1.0 - policy.composite_memory) * score
    return _settled(scored, trust, replace(parts, quality=score, harm=False), policy=policy)


def _follow_peers(
    record: TrustRecord, peers: PeerAgreement, *, clones: int, policy: TrustPolicy
) -> TrustRecord:
    """Without a holdout set: agreement moves trust within bounds that exclude nobody."""
    leaning = _leaning(peers, policy)
    # An operator's order or a violation led here; the others must not be able to prolong it.
    is_out = record.state is TrustState.QUARANTINED
    quality = 1.0 if leaning > 0 or is_out else (policy.initial if leaning == 0 else 0.0)
    if quality > 0.0:
        # Undecided, trust drifts to where it began, from above as well as from below.
        trust = record.trust + policy.rise_rate * (quality - record.trust)
    else:
        trust = _demoted(record.trust, policy)
    parts = Components(
        *(0.0,) * 8,
        quality=quality,
        harm=False,
        pogq=0.5,
        loss_improvement=0.0,
        peer_cosine=peers.cosine,
        mode="peers",
        clones=clones,
    )
    return _settled(record, trust, parts, policy=policy, disagrees=leaning < 0)


def _settled(
    record: TrustRecord,
    trust: float,
    parts: Components,
    *,
    policy: TrustPolicy,
    disagrees: bool = False,
) -> TrustRecord:
    """The record with this trust, the state that follows from it, and the reason."""
    scored = replace(
        record,
        trust=trust,
        rounds_clear=record.rounds_clear + 1 if parts.quality > 0.5 else 0,
        components=parts,
    )
    settled = _with_state(scored, policy)
    entered = _has_entered(record, settled)
    if entered:
        settled = replace(settled, quarantine_cause=cause_of(settled, policy))
    reason = reason_for(settled, policy, disagrees=disagrees, entered=entered)
    return replace(settled, reason=reason)


def _has_entered(before: TrustRecord, after: TrustRecord) -> bool:
    """Whether this round led into quarantine."""
    return after.state is TrustState.QUARANTINED and after.state is not before.state


def _leaning(peers: PeerAgreement, policy: TrustPolicy) -> int:
    """1 with the other hospitals, -1 against them, 0 where noise explains the cosine."""
    margin = policy.peer_margin + policy.peer_z * peers.noise
    return (peers.cosine > margin) - (peers.cosine < -margin)


def _demoted(trust: float, policy: TrustPolicy) -> float:
    return min(trust, max(policy.peer_floor, trust - policy.peer_step))


def _moved(trust: float, target: float, *, kappa: float, harm: bool, policy: TrustPolicy) -> float:
    """Trust falls as fast as the round is informative and rises more slowly."""
    if target < trust:
        rate = policy.fall_rate if harm else policy.fall_rate * kappa
    else:
        rate = policy.rise_rate * max(kappa, 0.2)
    return trust + rate * (target - trust)


def _after_violation(record: TrustRecord, violation: str, policy: TrustPolicy) -> TrustRecord:
    after = replace(
        record,
        trust=_moved(record.trust, 0.0, kappa=1.0, harm=True, policy=policy),
        evidence=0.5 * min(record.evidence, policy.evidence_floor),
        rounds_clear=0,
        # It was not scored; those of an earlier round would pass for this one's.
        components=None,
    )
    after = _with_state(after, policy)
    if _has_entered(record, after):
        after = replace(after, quarantine_cause=violation)
    return replace(after, reason=violation_reason(after, violation))


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
        record,
        trust=trust,
        state=state_of(trust, policy),
        rounds_clear=0,
        sleeper_sum=0.0,
        quarantine_cause="",
    )


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
        numbers = (score.projection, score.variance, score.loss_improvement, score.beyond or 0.0)
        if not all(map(math.isfinite, numbers)) or score.variance < 0:
            raise TrustError(f"the score of {score.node_id} is not finite")
        by_node[score.node_id] = score
    return by_node
