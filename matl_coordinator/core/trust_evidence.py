"""What one round's holdout scores say about a hospital, added to what is remembered of it.

Statistics only: what they do to trust is decided in ``trust``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from matl_common.ids import NodeId
from matl_coordinator.core.profile import ProfileReading
from matl_coordinator.core.robust.root import reference_rank
from matl_coordinator.core.trust_record import HoldoutScore, TrustPolicy, TrustRecord


@dataclass(frozen=True, slots=True)
class Reference:
    """What the round's updates, taken together, say about the scale of a good one."""

    projection: float
    informativeness: float
    """κ: how much this round tells about anybody, 0 to 1."""


NOTHING: Final = Reference(projection=0.0, informativeness=0.0)
"""A round that tells nothing of anybody."""


def reference_of(
    scores: Sequence[HoldoutScore],
    *,
    f: int,
    policy: TrustPolicy,
    quarantined: Collection[NodeId] = (),
    standing: Collection[NodeId] = (),
) -> Reference:
    """The scale of a good update in this round, safe from ``f`` hostile ones.

    Where more than ``f`` hospitals are in quarantine, and there is no good update at the rank that
    is safe from ``f``, the least of the others stands for one: else those whom more than ``f``
    attack could never become trusted, nor come back. It is no larger than any honest one of them.
    One alone is asked only where it is the last, not where the others are absent.

    Args:
        scores: of this round.
        f: how many of the scored hospitals may be hostile.
        policy: the constants.
        quarantined: who was before this round.
        standing: every other enrolled hospital, absent ones included.
    """
    found = _at_rank(scores, reference_rank(len(scores), f), policy) if scores else NOTHING
    heard = [score for score in scores if score.node_id not in quarantined]
    are_enough = len(heard) > 1 or len(heard) == len(standing) == 1
    if found is NOTHING and len(quarantined) > f and are_enough:
        return _at_rank(heard, len(heard), policy)
    return found


def _at_rank(scores: Sequence[HoldoutScore], rank: int, policy: TrustPolicy) -> Reference:
    projection = sorted((score.projection for score in scores), reverse=True)[rank - 1]
    z = sorted((score.z for score in scores), reverse=True)[rank - 1]
    if projection <= 0 or z <= 0:
        return NOTHING
    return Reference(projection, min(1.0, (z / policy.informative_z) ** 2))


@dataclass(frozen=True, slots=True)
class Reading:
    """One score in the light of the round and of the rounds before."""

    relative: float
    """ρ: projection over the reference's, within ±1.5."""
    reliability: float
    """Share of the variance of ρ that would be signal were the hospital honest."""
    accumulated_z: float
    recent_z: float
    harm: bool


def read_score(
    record: TrustRecord,
    score: HoldoutScore,
    reference: Reference,
    policy: TrustPolicy,
    *,
    profile: ProfileReading | None = None,
) -> tuple[TrustRecord, Reading]:
    """The record with its evidence, but not yet its trust, brought up to date."""
    kappa = reference.informativeness
    relative, reliability = _relative(score, reference)
    signal, information = _accumulated(record, score, reference, policy)
    accumulated_z = signal / math.sqrt(information) if information > 0 else 0.0
    recent, recent_rounds = _recent(record, score, policy)
    recent_z = recent / math.sqrt(recent_rounds)
    excused = score.z < policy.harm_z and _is_excused(record, accumulated_z, score, kappa, policy)
    harm = accumulated_z < policy.accumulated_harm_z or (score.z < policy.harm_z and not excused)
    harm = harm or recent_z < policy.recent_harm_z
    harm = harm or (profile is not None and profile.harm)
    step = 0.5 if harm else policy.evidence_rate * kappa * reliability
    # A lucky round of a hospital that did harm over many rounds is no evidence for it.
    observed = min(relative, 0.0) if harm else relative
    after = replace(
        record,
        evidence=record.evidence + step * (observed - record.evidence),
        signal=signal,
        information=information,
        recent=recent,
        recent_rounds=recent_rounds,
        log_odds=_log_odds(record, score, reference, policy),
        sleeper_sum=max(0.0, record.sleeper_sum + kappa * reliability * (policy.slack - relative)),
        rounds_against=record.rounds_against + 1 if score.z < 0 else 0,
        rounds_excused=record.rounds_excused + excused if score.z < 0 else 0,
        profile_signal=profile.signal if profile else record.profile_signal,
        profile_information=profile.information if profile else record.profile_information,
        beyond=_beyond(record, score, policy),
    )
    return after, Reading(relative, reliability, accumulated_z, recent_z, harm)


def quality_of(record: TrustRecord, accumulated_z: float, policy: TrustPolicy) -> float:
    """What trust moves towards: 0 for a harmful or sleeping hospital, 1 for a good one."""
    if record.sleeper_sum > policy.sleeper_limit:
        return 0.0
    # Behind strong privacy noise a careless hospital can look good for a few rounds.
    ceiling = 1.0 if accumulated_z >= policy.proven_z else policy.unproven_quality
    return _clip((record.evidence - policy.evidence_floor) / policy.evidence_span, 0.0, ceiling)


def _is_excused(
    record: TrustRecord,
    accumulated_z: float,
    score: HoldoutScore,
    kappa: float,
    policy: TrustPolicy,
) -> bool:
    """Whether a harmful round is likelier noise: it tells nothing of others, and the past does."""
    return (
        kappa < policy.harm_informativeness
        and accumulated_z > -score.z
        and record.rounds_excused < policy.harm_excuses
    )


def _relative(score: HoldoutScore, reference: Reference) -> tuple[float, float]:
    if reference.projection <= 0:
        return 0.0, 0.0
    relative = _clip(score.projection / reference.projection, -1.5, 1.5)
    squared = reference.projection**2
    return relative, squared / (squared + score.variance)


def _accumulated(
    record: TrustRecord, score: HoldoutScore, reference: Reference, policy: TrustPolicy
) -> tuple[float, float]:
    # Precision-weighted, so that rounds with a weak reference count for little. The length of
    # an update is its hospital's choice, and a very short one must not outweigh the others.
    variance = max(score.variance, (0.01 * reference.projection) ** 2)
    if variance <= 0:
        return record.signal, record.information
    return (
        policy.memory * record.signal + score.projection / variance,
        policy.memory**2 * record.information + 1.0 / variance,
    )


def _recent(record: TrustRecord, score: HoldoutScore, policy: TrustPolicy) -> tuple[float, float]:
    """Late rounds alone. Early ones are so precise that what they say outlasts twenty late ones.

    A z does not depend on an update's length, and counts the same in every round.
    """
    z = _clip(score.z, -policy.recent_bound, policy.recent_bound)
    rounds = policy.recent_memory**2 * record.recent_rounds + 1.0
    total = policy.recent_memory * record.recent + z
    return min(total, policy.recent_credit * math.sqrt(rounds)), rounds


def _beyond(record: TrustRecord, score: HoldoutScore, policy: TrustPolicy) -> float:
    """A single round's cosine tells little: honest ones scatter as far as they are from 0."""
    if score.beyond is None:
        return record.beyond
    cosine = _clip(score.beyond, -policy.beyond_bound, policy.beyond_bound)
    mean = policy.beyond_memory * record.beyond + (1.0 - policy.beyond_memory) * cosine
    return min(mean, policy.beyond_credit)


def _log_odds(
    record: TrustRecord, score: HoldoutScore, reference: Reference, policy: TrustPolicy
) -> float:
    """Wald's sequential test of "as good as the reference" against "of no use".

    Bounded, so that a long good past does not excuse a bad present.
    """
    faded = policy.memory * record.log_odds
    good = reference.projection
    if good <= 0:
        return faded
    # An update of zeros projects without error; nothing is known better than to a tenth.
    variance = max(score.variance, 0.01 * good**2)
    step = good * (score.projection - good / 2.0) / variance
    bound = 2.0 * policy.exclusion_odds
    return _clip(faded + reference.informativeness * step, -bound, bound)


def _clip(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))
