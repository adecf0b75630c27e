"""One round's verdict: from the geometry of the updates to trust, weights and reasons.

``judge_round`` is the whole decision between the two passes over the updates; the
service carries out what it returns. The same inputs give the same verdict in whatever
order they come. Nothing here reads a clock, draws a random number or performs I/O.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.compliance import QuietPart, refusals
from matl_coordinator.core.composite import Activity
from matl_coordinator.core.power import ByzantinePower, byzantine_power
from matl_coordinator.core.profile import Profile, profiles_of
from matl_coordinator.core.robust.gram import AggregationError, Gram, leave_one_out_cosines
from matl_coordinator.core.robust.root import BEYOND_ROW, RootRow, cosines_with, project_on_root
from matl_coordinator.core.robust.sizes import size_cap
from matl_coordinator.core.sybil import clusters_of
from matl_coordinator.core.trust import update_trust
from matl_coordinator.core.trust_record import (
    DEFAULT_POLICY,
    HoldoutScore,
    PeerAgreement,
    TrustError,
    TrustPolicy,
    TrustRecord,
    with_newcomers,
)
from matl_coordinator.core.weighting import Hold, aggregation_weights, trust_weight

NON_FINITE = "its update held values that are not finite"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an operator attests about a hospital."""

    patients: int
    label_shares: tuple[float, ...] | None = None
    """Share of each class among them, where known."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a round's updates did to trust, and what each counts for."""

    records: tuple[TrustRecord, ...]
    shares: Mapping[NodeId, float]
    """Of the aggregate, for every update that was not refused; empty when the round is held."""
    hold: str | None
    """Why no model can be made of these updates."""
    refused: Mapping[NodeId, str]
    """Updates without the noise the study promised, or with values that are not finite, each
    with a phrase."""
    clusters: tuple[frozenset[NodeId], ...]
    """Groups of nearly identical updates; each group shares one weight."""
    power: ByzantinePower


def judge_round(
    gram: Gram,
    *,
    root: Sequence[RootRow] | None,
    loss_improvement: Mapping[NodeId, float],
    trust: Sequence[TrustRecord],
    enrolled: Mapping[NodeId, Enrolment],
    violations: Mapping[NodeId, str],
    round_id: RoundId,
    byzantine: int,
    steps: int = 1,
    quiet: Mapping[NodeId, QuietPart] | None = None,
    compare_profiles: bool = False,
    activity: Mapping[NodeId, Activity] | None = None,
    policy: TrustPolicy = DEFAULT_POLICY,
) -> Judgement:
    """Judge every update of a round.

    Args:
        gram: the admitted updates, with ``gram.noise`` where the study promises privacy and
            all ``root`` rows among its extras, and ``BEYOND_ROW`` where there is one.
        root: rows of the root set, along the step that these updates take with their
            ``standing_weights``; ``None`` where there is none, and peers are all there is.
        loss_improvement: of the root set by each update alone; unused without a root set.
        trust: records after the round before; newcomers may be missing.
        enrolled: every hospital of the federation.
        violations: what a hospital sent that no honest one sends, as a phrase.
        round_id: of this round.
        byzantine: f, how many hospitals may be hostile.
        steps: gradient steps in a round.
        quiet: of the admitted updates, where the model has a part without signal.
        compare_profiles: whether an update is the sum of its classes' gradients; see
            ``profile.has_profiles``.
        activity: when hospitals send, for the paper's composite; on a schedule unless given.
        policy: the constants of the rule.

    Raises:
        AggregationError: updates and root rows do not fit together, or f is too large.
        TrustError: a hospital is not enrolled, or a score is not finite.
    """
    strangers = sorted({*gram.nodes, *violations} - set(enrolled))
    if strangers:
        raise TrustError(f"{', '.join(strangers)} sent an update but is not enrolled")
    records = with_newcomers(trust, enrolled, policy)
    before = {record.node_id: record for record in records}
    gram = _in_order(gram)
    standing = standing_weights(records, enrolled, byzantine=byzantine, policy=policy)
    refused = {
        **refusals(gram, steps=steps, quiet=quiet),
        # Elsewhere such values count as 0, and the rest of the update would pass for it.
        **dict.fromkeys(gram.non_finite_nodes(), NON_FINITE),
    }
    broken = {**refused, **violations}
    sound = gram.select([node for node in gram.nodes if node not in broken])
    capped = _capped_sizes(enrolled, f=byzantine)
    weighted = sound.with_weights({node: standing[node] for node in sound.nodes})
    clusters = clusters_of(sound, f=byzantine, steps=steps)
    scores = None if root is None else _scores(weighted, root, enrolled, loss_improvement)
    # Who goes against the holdout set has no say over others.
    unheard = {score.node_id for score in scores or () if score.z < 0.0}
    records = update_trust(
        records,
        scores,
        round_id=round_id,
        agreement=_agreement(weighted, unheard=unheard),
        violations=broken,
        profiles=(
            _profiles(sound, root, enrolled, f=byzantine, policy=policy) if compare_profiles else ()
        ),
        clusters=clusters,
        activity=activity,
        byzantine=byzantine,
        policy=policy,
    )
    shared = aggregation_weights(
        records,
        {node: each.patients for node, each in enrolled.items()},
        present=sound.nodes,
        f=byzantine,
        refused=len(broken),
        clusters=clusters,
        policy=policy,
    )
    return Judgement(
        records=records,
        shares={} if isinstance(shared, Hold) else shared.shares,
        hold=shared.reason if isinstance(shared, Hold) else None,
        refused=refused,
        clusters=clusters,
        power=_power(
            {node: trust_weight(before[node], policy) for node in {*gram.nodes, *broken}},
            capped,
            records=records,
            broken=broken,
            clusters=clusters,
        ),
    )


def standing_weights(
    trust: Sequence[TrustRecord],
    enrolled: Mapping[NodeId, Enrolment],
    *,
    byzantine: int,
    policy: TrustPolicy = DEFAULT_POLICY,
) -> dict[NodeId, float]:
    """What each hospital counts for by the trust of the round before: ψ · capped size.

    Args:
        trust: records after the round before; newcomers may be missing.
        enrolled: every hospital of the federation.
        byzantine: f, how many hospitals may be hostile.
        policy: the constants of the rule.
    """
    records = {each.node_id: each for each in with_newcomers(trust, enrolled, policy)}
    capped = _capped_sizes(enrolled, f=byzantine)
    return {node: trust_weight(records[node], policy) * capped[node] for node in enrolled}


def _in_order(gram: Gram) -> Gram:
    """The same geometry with nodes and extra rows sorted, so that sums do not depend on it."""
    gram = gram.select(sorted(gram.nodes))
    order = np.argsort(np.array(gram.extras, dtype=object), kind="stable")
    if list(order) == list(range(len(order))):
        return gram
    rows = [*range(gram.n), *(gram.n + int(index) for index in order)]
    square = np.ix_(rows, rows)
    return replace(
        gram,
        matrix=gram.matrix[square],
        extras=tuple(gram.extras[index] for index in order),
        facts=tuple(gram.facts[row] for row in rows),
        reference=None if gram.reference is None else gram.reference[rows],
        subsets=tuple(each[square] for each in gram.subsets),
    )


def _capped_sizes(enrolled: Mapping[NodeId, Enrolment], *, f: int) -> dict[NodeId, float]:
    cap = size_cap([each.patients for each in enrolled.values()], f=f)
    return {node: float(min(each.patients, cap)) for node, each in enrolled.items()}


def _scores(
    gram: Gram,
    root: Sequence[RootRow],
    enrolled: Mapping[NodeId, Enrolment],
    loss_improvement: Mapping[NodeId, float],
) -> tuple[HoldoutScore, ...]:
    if missing := [node for node in gram.nodes if node not in loss_improvement]:
        raise AggregationError(f"no holdout loss was measured for {', '.join(missing)}")
    shares = {node: enrolled[node].label_shares for node in gram.nodes}
    projections = project_on_root(
        gram,
        root,
        label_shares={node: known for node, known in shares.items() if known is not None},
    )
    std = np.zeros(gram.n) if gram.noise is None else gram.noise.std
    beyond = cosines_with(gram, BEYOND_ROW)
    return tuple(
        HoldoutScore(
            node_id=each.node_id,
            projection=each.projection,
            variance=each.standard_error**2 + (float(noise) * each.reference_norm) ** 2,
            loss_improvement=loss_improvement[each.node_id],
            beyond=beyond.get(each.node_id),
        )
        for each, noise in zip(projections, std, strict=True)
    )


def _profiles(
    gram: Gram,
    root: Sequence[RootRow] | None,
    enrolled: Mapping[NodeId, Enrolment],
    *,
    f: int,
    policy: TrustPolicy,
) -> tuple[Profile, ...]:
    if root is None or gram.noise is None:
        return ()
    shares = {node: enrolled[node].label_shares for node in gram.nodes}
    known = {node: each for node, each in shares.items() if each is not None}
    return profiles_of(gram, root, label_shares=known, f=f, policy=policy)


def _agreement(gram: Gram, *, unheard: Collection[NodeId]) -> dict[NodeId, PeerAgreement]:
    """How each update points beside the others, none of which outshouts the rest by length."""
    heard = np.array([node not in unheard for node in gram.nodes], dtype=bool)
    gram = replace(gram, weights=np.where(heard, gram.weights, 0.0))
    counted = gram.norms[gram.weights > 0]
    bound = float(np.median(counted)) if counted.size else 0.0
    scale = np.divide(bound, gram.norms, out=np.ones(gram.n), where=gram.norms > bound)
    others = replace(gram, weights=gram.weights * scale)
    # The cosine of a fixed direction with isotropic noise has this deviation.
    noise = 0.0 if gram.noise is None else 1.0 / math.sqrt(gram.elements)
    return {
        node: PeerAgreement(float(cosine), noise)
        for node, cosine in zip(gram.nodes, leave_one_out_cosines(others), strict=True)
    }


def _power(
    reputation: Mapping[NodeId, float],
    capped: Mapping[NodeId, float],
    *,
    records: Sequence[TrustRecord],
    broken: Mapping[NodeId, str],
    clusters: Sequence[frozenset[NodeId]],
) -> ByzantinePower:
    harmful = {
        record.node_id
        for record in records
        if record.node_id in reputation and record.components and record.components.harm
    }
    return byzantine_power(
        reputation,
        against=harmful | set(broken),
        clusters=clusters,
        unshared={
            node: value * capped[node]
            for node, value in sorted(reputation.items())
            if node not in broken
        },
    )
