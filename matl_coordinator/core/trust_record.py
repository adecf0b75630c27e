"""Trust as values: the constants of the rule, what goes in, and what is remembered.

Nothing here decides; ``trust`` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from matl_common.errors import MatlError
from matl_common.ids import NodeId


class TrustError(MatlError):
    """What was asked of the trust rule makes no sense."""


class TrustState(StrEnum):
    """What a trust score means for a hospital's updates."""

    TRUSTED = "trusted"
    MARGINAL = "marginal"
    """Counts with reduced weight."""
    QUARANTINED = "quarantined"
    """Counts for nothing; still scored, so that it can come back."""


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """The constants of the rule; trust and evidence have no unit."""

    initial: float = 0.6
    trusted_from: float = 0.7
    excluded_below: float = 0.4
    initial_evidence: float = 0.08
    """Of a hospital never scored: barely above the floor, so that trust lasts only if the
    first rounds bear it out."""
    evidence_rate: float = 0.3
    """Share of a fully informative round in the evidence."""
    evidence_floor: float = 0.05
    """Evidence at which the quality of a hospital is 0."""
    evidence_span: float = 0.3
    """Evidence above the floor at which it is 1."""
    informative_z: float = 4.0
    """z of the reference from which a round counts in full."""
    harm_z: float = -3.0
    """One round this far against the holdout set does harm."""
    harm_informativeness: float = 0.2
    """κ below which such a round is excused by rounds before it that speak louder for the
    hospital. Late in training the update of a small one is what it overfits."""
    harm_excuses: int = 2
    """Excused rounds without a good one between them: a sleeper may wake in such rounds, and
    precise early ones would speak for it for long."""
    accumulated_harm_z: float = -2.5
    """All rounds together this far against the holdout set do harm."""
    memory: float = 0.9
    """What a round's weight in the accumulated z is multiplied by, each round."""
    recent_harm_z: float = -4.5
    """Late rounds together this far against the holdout set do harm, whatever early ones said."""
    recent_memory: float = 0.8
    """What a round's weight among the late ones is multiplied by, each round."""
    recent_bound: float = 4.0
    """The most that one round's z counts among them, either way ..."""
    recent_credit: float = 2.0
    """... and the most that they speak for a hospital together, so that it cannot save up."""
    profile_margin: float = 0.08
    """Deficit of a class, in shares of its gradient, up to which a profile does no harm ..."""
    profile_saturation: float = 0.25
    """... nor up to this part of the class's enrolled share ..."""
    profile_spread: float = 4.0
    """... and multiple of a middling honest deficit up to which it does none either."""
    profile_z: float = -4.0
    """z of a deficit from which privacy noise does not explain it."""
    profile_scale: float = 0.85
    """Share of the common step length down to which a hospital is measured by its own."""
    fall_rate: float = 0.5
    rise_rate: float = 0.25
    proven_z: float = 2.0
    """Accumulated z from which a hospital can become trusted."""
    unproven_quality: float = 0.65
    """The most that trust moves towards before that: below ``trusted_from``."""
    exclusion_odds: float = 2.0
    """Log-likelihood ratio of useless over good from which weak rounds may exclude."""
    certain_z: float = 4.0
    """Accumulated z from which a hospital that helps little, and does no harm, is not excluded."""
    slack: float = 0.2
    """Relative projection below which the sum for sleepers grows."""
    sleeper_limit: float = 2.5
    peer_step: float = 0.15
    peer_margin: float = 0.1
    peer_z: float = 2.5
    readmit_after: int = 3
    """Good rounds in a row; doubled for the second quarantine."""
    readmit_from: float = 0.5
    readmit_at_most: float = 0.55
    operator_from: int = 3
    """The quarantine from which only an operator releases."""
    beyond_initial: float = 0.06
    """Mean cosine beyond the gradients (``scoring.beyond``) of a hospital never compared."""
    beyond_memory: float = 0.9
    """Share of the past in that mean."""
    beyond_bound: float = 0.3
    """The most that one round's cosine counts in it, either way ..."""
    beyond_credit: float = 0.1
    """... and the most that the mean can be, so that a hospital cannot save up."""
    beyond_full: float = 0.02
    """Mean cosine from which a hospital counts in full ..."""
    beyond_against: float = -0.06
    """... and down from which for the least: honest ones that have few classes stay around 0."""
    beyond_least: float = 0.05
    """Share of its weight that any hospital keeps: going another way excludes nobody."""
    minimum_strength: float = 1.0
    """Least sum of ψ over the hospitals that count, a single trusted one's, so that two of five
    can go on when the others are out; at most the number enrolled times ψ of the initial trust."""
    minimum_support: float = 0.5
    """Least share, behind an aggregate, of the (capped) patients that are enrolled outside
    the f largest hospitals: of those, the honest have all or as many."""
    composite: Literal["root-test", "matl-paper"] = "root-test"
    """What trust follows: the test against the holdout set, or the score of MATL's paper."""
    composite_memory: float = 0.85
    """Share of the past in trust where it follows the paper's score."""

    @property
    def peer_floor(self) -> float:
        """Below this, disagreement with other hospitals lowers trust no further.

        Above ``excluded_below`` wherever that is set, so that peers exclude nobody.
        """
        return max(0.45, self.excluded_below + 0.05)

    @property
    def weightless_at(self) -> float:
        """Trust at which ψ would be 0; below ``excluded_below``, so that the marginal count."""
        return self.excluded_below - 0.1


DEFAULT_POLICY = TrustPolicy()


@dataclass(frozen=True, slots=True)
class HoldoutScore:
    """What the holdout set says about one update."""

    node_id: NodeId
    projection: float
    """μ: along the direction in which the holdout loss falls; see ``robust.root``."""
    variance: float
    """v: of the projection, from the finite holdout set and from privacy noise."""
    loss_improvement: float
    """Mean holdout loss before less after the update alone, privacy noise and all."""
    beyond: float | None = None
    """Cosine with what the holdout set's own training does beyond its gradients; None where
    there is nothing to compare with."""

    @property
    def z(self) -> float:
        """The projection in standard errors; 0 for an update that does nothing."""
        return self.projection / math.sqrt(self.variance) if self.variance > 0 else 0.0

    @property
    def pogq(self) -> float:
        """Proof of Gradient Quality: sigmoid of ten times the loss improvement. Reported."""
        # The clamp keeps exp in range; the score is then within 1e-300 of 0 or 1.
        return 1.0 / (1.0 + math.exp(max(-700.0, min(700.0, -10.0 * self.loss_improvement))))


@dataclass(frozen=True, slots=True)
class PeerAgreement:
    """How one update points, compared with all others together."""

    cosine: float
    """With the weighted sum of the others, from ``robust.gram.leave_one_out_cosines``."""
    noise: float
    """Standard deviation the cosine would have were this update privacy noise alone."""


@dataclass(frozen=True, slots=True)
class Components:
    """The parts of one round's score, for the log."""

    projection: float
    standard_error: float
    z: float
    accumulated_z: float
    recent_z: float
    """Of the late rounds, each bounded and none more precise than another."""
    relative: float
    """Projection over the round's reference, within ±1.5."""
    informativeness: float
    """κ: how much this round tells about anybody, 0 to 1."""
    reliability: float
    """How much it tells about this hospital, given its privacy noise, 0 to 1."""
    quality: float
    """What trust moves towards, 0 to 1."""
    harm: bool
    pogq: float
    loss_improvement: float
    peer_cosine: float | None
    mode: Literal["root", "peers"] = "root"
    """``peers``: there was no holdout set, and what comes from it is 0."""
    clones: int = 0
    """Other updates nearly identical to this one."""
    composite: float | None = None
    """The score of MATL's paper, 0 to 1; reported, unless the policy lets it decide."""
    tcdm: float | None = None
    entropy: float | None = None
    profile_class: int | None = None
    """The class its updates lack most of what the enrolled label mix predicts."""
    profile_surplus: float | None = None
    """Of that class, in shares of its gradient, over the rounds; negative if they lack it."""
    profile_z: float | None = None
    profile_harm: bool = False
    beyond: float | None = None
    """Cosine with what the holdout set's own training does beyond its gradients."""


@dataclass(frozen=True, slots=True)
class TrustRecord:
    """One hospital's standing after the last round in which it was scored."""

    node_id: NodeId
    trust: float
    state: TrustState
    evidence: float
    reason: str
    as_of_round: int = 0
    """0 before the first score."""
    signal: float = 0.0
    """Faded sum of projection / variance."""
    information: float = 0.0
    """Its variance: signal / √information is the accumulated z."""
    recent: float = 0.0
    """Faded sum of z, bounded."""
    recent_rounds: float = 0.0
    """Its variance were every z noise: recent / √recent_rounds is the recent z."""
    log_odds: float = 0.0
    """Faded log-likelihood ratio: updates as good as the round's reference, over useless."""
    sleeper_sum: float = 0.0
    rounds_against: int = 0
    """Scored rounds in a row against the holdout set."""
    rounds_excused: int = 0
    """Excused ones since the last round that was not against the holdout set."""
    rounds_clear: int = 0
    """Scored rounds in a row of quality above one half."""
    quarantines: int = 0
    operator_hold: bool = False
    """Only an operator's release ends the quarantine."""
    quarantine_cause: str = ""
    """Why it was last excluded, as a phrase; empty outside quarantine."""
    profile_signal: tuple[float, ...] = ()
    """By class of the holdout set: faded sum of profile surplus / variance."""
    profile_information: tuple[float, ...] = ()
    """By class: faded sum of 1 / variance."""
    beyond: float = DEFAULT_POLICY.beyond_initial
    """Faded mean of the cosines beyond the gradients."""
    components: Components | None = None


def initial_record(node_id: NodeId, policy: TrustPolicy = DEFAULT_POLICY) -> TrustRecord:
    """The record of a hospital never scored."""
    return TrustRecord(
        node_id=node_id,
        trust=policy.initial,
        state=state_of(policy.initial, policy),
        evidence=policy.initial_evidence,
        reason="not scored yet",
        beyond=policy.beyond_initial,
    )


def with_newcomers(
    records: Iterable[TrustRecord], enrolled: Iterable[NodeId], policy: TrustPolicy = DEFAULT_POLICY
) -> tuple[TrustRecord, ...]:
    """The records, and an initial one for every enrolled hospital that has none."""
    known = {record.node_id: record for record in records}
    for node_id in sorted(enrolled):
        known.setdefault(node_id, initial_record(node_id, policy))
    return tuple(known.values())


def state_of(trust: float, policy: TrustPolicy) -> TrustState:
    """The state a score stands for, quarantines of the past aside."""
    if trust >= policy.trusted_from:
        return TrustState.TRUSTED
    if trust >= policy.excluded_below:
        return TrustState.MARGINAL
    return TrustState.QUARANTINED


def following(record: TrustRecord, policy: TrustPolicy = DEFAULT_POLICY) -> float:
    """φ: the share of its weight that a hospital has for going along with what lies beyond the
    gradients; from ``beyond_least`` to 1, and 1 where trust follows the paper's score.
    """
    if policy.composite == "matl-paper":
        return 1.0
    above = record.beyond - policy.beyond_against
    share = above / (policy.beyond_full - policy.beyond_against)
    return min(1.0, max(policy.beyond_least, share))


def rounds_to_readmission(record: TrustRecord, policy: TrustPolicy = DEFAULT_POLICY) -> int:
    """Good rounds in a row that end this quarantine."""
    return policy.readmit_after << max(0, record.quarantines - 1)
