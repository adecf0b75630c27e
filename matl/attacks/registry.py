"""Every attack by name, with what it needs and where it comes from.

Nothing is looked up by attribute or import path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Final

from matl.attacks import (
    adaptive,
    free_riders,
    labels,
    private,
    protocol,
    published,
    sizes,
    sybil,
    temporal,
)
from matl.attacks.attack import Attack, Knowledge, as_trained


class Room(StrEnum):
    """What kind of attack."""

    PROTOCOL = "protocol"
    PUBLISHED = "published"
    LABELS = "labels"
    SYBIL = "sybil"
    FREE_RIDER = "free_rider"
    TEMPORAL = "temporal"
    PRIVATE = "private"
    """Sends what it returns; every other room's attacks are for ``with_promised_noise``."""
    ADAPTIVE = "adaptive"
    SIZES = "sizes"


@dataclass(frozen=True, slots=True)
class AttackEntry:
    """One attack: on the training set, on the update, on what a hospital says of itself.

    Attributes:
        room: what kind of attack it is.
        about: one sentence.
        source: the paper, or where else it comes from.
        craft: the update, from what was trained on the poisoned data.
        poison: the training set; None leaves it alone.
        claim: what the hospital says of itself; None is the truth.
        needs: what must be known beside the honest updates.
        trains: whether ``craft`` looks at ``Honest.own``; training that nobody looks at is spared.
    """

    room: Room
    about: str
    source: str
    craft: Attack = as_trained
    poison: labels.Poison | None = None
    claim: sizes.Claim | None = None
    needs: frozenset[Knowledge] = frozenset()
    trains: bool = True


_OURS: Final = "MATL"
_MALFORMED: Final = "malformed input"
_BARUCH: Final = "Baruch et al., A Little Is Enough, NeurIPS 2019"
_XIE: Final = "Xie et al., Fall of Empires, UAI 2019"
_SEARCH: Final = "Allouah et al., Fixing by Mixing, AISTATS 2023; the search of ByzFL 0.0.11"
_SHEJWALKAR: Final = "Shejwalkar and Houmansadr, NDSS 2021"
_FLIPS: Final = "Biggio et al., ACML 2011; Tolpegin et al., ESORICS 2020"
_NOISE: Final = frozenset({Knowledge.NOISE})
_CLASSES: Final = frozenset({Knowledge.CLASSES})
_RULE: Final = frozenset({Knowledge.AGGREGATE})

ATTACKS: Final[Mapping[str, AttackEntry]] = MappingProxyType(
    {
        "nan": AttackEntry(
            Room.PROTOCOL,
            "NaN everywhere",
            _MALFORMED,
            partial(protocol.filled, value=float("nan")),
            trains=False,
        ),
        "one_nan": AttackEntry(
            Room.PROTOCOL, "an honest update with one NaN", _MALFORMED, protocol.one_nan
        ),
        "plus_infinity": AttackEntry(
            Room.PROTOCOL,
            "+∞ everywhere",
            "ByzFL 0.0.11, Inf",
            partial(protocol.filled, value=float("inf")),
            trains=False,
        ),
        "minus_infinity": AttackEntry(
            Room.PROTOCOL,
            "−∞ everywhere",
            _MALFORMED,
            partial(protocol.filled, value=-float("inf")),
            trains=False,
        ),
        "cancelling_infinities": AttackEntry(
            Room.PROTOCOL,
            "+∞ and −∞ by turns",
            _MALFORMED,
            protocol.cancelling_infinities,
            trains=False,
        ),
        "largest": AttackEntry(
            Room.PROTOCOL,
            "the largest float32 everywhere, whose square overflows",
            _MALFORMED,
            partial(protocol.filled, value=protocol.LARGEST),
            trains=False,
        ),
        "subnormal": AttackEntry(
            Room.PROTOCOL,
            "the smallest float32 everywhere, whose square is 0",
            _MALFORMED,
            partial(protocol.filled, value=protocol.SUBNORMAL),
            trains=False,
        ),
        "minus_zero": AttackEntry(
            Room.PROTOCOL,
            "−0 everywhere",
            _MALFORMED,
            partial(protocol.filled, value=-0.0),
            trains=False,
        ),
        "too_long": AttackEntry(
            Room.PROTOCOL, "one value too many", _MALFORMED, partial(protocol.resized, extra=1)
        ),
        "too_short": AttackEntry(
            Room.PROTOCOL, "one value too few", _MALFORMED, partial(protocol.resized, extra=-1)
        ),
        "truncated": AttackEntry(
            Room.PROTOCOL, "half of an honest update", _MALFORMED, protocol.halved
        ),
        "sign_flip_1": AttackEntry(
            Room.PUBLISHED,
            "−x of one's own update",
            "Allen-Zhu et al., ICLR 2021",
            partial(published.sign_flip, factor=1.0),
        ),
        "sign_flip_5": AttackEntry(
            Room.PUBLISHED,
            "−5x of one's own update",
            "Allen-Zhu et al., ICLR 2021",
            partial(published.sign_flip, factor=5.0),
        ),
        "gaussian": AttackEntry(
            Room.PUBLISHED,
            "random directions, ten times as long as the honest mean",
            "Blanchard et al., NeurIPS 2017",
            published.gaussian,
            trains=False,
        ),
        "alie": AttackEntry(
            Room.PUBLISHED,
            "the mean less z deviations",
            _BARUCH,
            published.alie,
            trains=False,
        ),
        "optimal_alie": AttackEntry(
            Room.PUBLISHED,
            "ALIE with the factor that hurts the rule most",
            _SEARCH,
            published.optimal_alie,
            needs=_RULE,
            trains=False,
        ),
        "ipm_0.1": AttackEntry(
            Room.PUBLISHED,
            "−0.1 times the mean",
            _XIE,
            partial(published.ipm, tau=0.1),
            trains=False,
        ),
        "ipm_2": AttackEntry(
            Room.PUBLISHED,
            "−2 times the mean",
            _XIE,
            partial(published.ipm, tau=2.0),
            trains=False,
        ),
        "optimal_ipm": AttackEntry(
            Room.PUBLISHED,
            "IPM with the factor that hurts the rule most",
            _SEARCH,
            published.optimal_ipm,
            needs=_RULE,
            trains=False,
        ),
        "min_max": AttackEntry(
            Room.PUBLISHED,
            "as far against the deviation as two honest updates are apart",
            _SHEJWALKAR,
            published.min_max,
            trains=False,
        ),
        "min_sum": AttackEntry(
            Room.PUBLISHED,
            "as far against the deviation as the honest sum of squares allows",
            _SHEJWALKAR,
            published.min_sum,
            trains=False,
        ),
        "mimic": AttackEntry(
            Room.PUBLISHED,
            "copies of the honest update that stands out most, chosen anew every round",
            "Karimireddy et al., ICLR 2022",
            published.mimic,
            trains=False,
        ),
        "scaled_10": AttackEntry(
            Room.PUBLISHED,
            "ten times one's own update",
            "Bagdasaryan et al., AISTATS 2020, without the trigger",
            partial(published.scaled, factor=10.0),
        ),
        "replacement": AttackEntry(
            Room.PUBLISHED,
            "a model with a trigger, each attacker's scaled as if it were the only one",
            "Bagdasaryan et al., AISTATS 2020; trigger: Gu et al., BadNets, 2017",
            published.replacement,
            poison=labels.backdoor,
        ),
        "label_complement": AttackEntry(
            Room.LABELS, "every label is C − 1 − y", _FLIPS, poison=labels.complement_labels
        ),
        "label_shift": AttackEntry(
            Room.LABELS, "every label is y + 1", _FLIPS, poison=labels.shift_labels
        ),
        "label_random": AttackEntry(
            Room.LABELS, "every label is random", _FLIPS, poison=labels.randomise_labels
        ),
        "backdoor": AttackEntry(
            Room.LABELS,
            "half of the images carry a trigger and the target's label",
            "Gu et al., BadNets, 2017",
            poison=labels.backdoor,
        ),
        "sybil": AttackEntry(
            Room.SYBIL,
            "near clones of one attacker's sign flip",
            "Fung et al., FoolsGold, RAID 2020",
            partial(sybil.clones, of=partial(published.sign_flip, factor=1.0)),
        ),
        "sybil_quiet": AttackEntry(
            Room.SYBIL,
            "near clones of one attacker's honest update: weight, not direction",
            "Fung et al., FoolsGold, RAID 2020",
            partial(sybil.clones, of=as_trained),
        ),
        "free_rider_zero": AttackEntry(
            Room.FREE_RIDER,
            "zero",
            "Lin et al., arXiv 1911.12560",
            free_riders.nothing,
            trains=False,
        ),
        "free_rider_noise": AttackEntry(
            Room.FREE_RIDER,
            "noise that looks like an update",
            "Lin et al., arXiv 1911.12560",
            free_riders.pure_noise,
            trains=False,
        ),
        "free_rider_last": AttackEntry(
            Room.FREE_RIDER,
            "what the global model last moved by",
            "Lin et al., arXiv 1911.12560",
            free_riders.last_aggregate,
            trains=False,
        ),
        "sleeper": AttackEntry(
            Room.TEMPORAL, "honest before round 10, then −3x", _OURS, temporal.sleeper
        ),
        "sleeper_3": AttackEntry(
            Room.TEMPORAL,
            "honest before round 3, then −3x: for studies of few rounds",
            _OURS,
            partial(temporal.sleeper, wakes=3),
        ),
        "on_off": AttackEntry(
            Room.TEMPORAL,
            "five honest rounds and five with −3x by turns",
            _OURS,
            partial(temporal.on_off, attack=partial(published.sign_flip, factor=3.0)),
        ),
        "slow_drift": AttackEntry(
            Room.TEMPORAL,
            "in round t moved by 0.02 t of its length in one direction",
            _OURS,
            temporal.slow_drift,
        ),
        "slow_reversal": AttackEntry(
            Room.TEMPORAL,
            "in round t moved by 0.02 t of its length against the mean",
            _OURS,
            temporal.slow_reversal,
        ),
        "slow_reversal_5": AttackEntry(
            Room.TEMPORAL,
            "in round t moved by 0.05 t of its length against the mean",
            _OURS,
            partial(temporal.slow_reversal, rate=0.05),
        ),
        "noise_free_ipm": AttackEntry(
            Room.PRIVATE,
            "−2 times the mean without the promised noise",
            f"{_XIE}; {_OURS}",
            partial(private.noise_free, attack=partial(published.ipm, tau=2.0)),
            needs=_NOISE,
            trains=False,
        ),
        "budget_spend": AttackEntry(
            Room.PRIVATE,
            "the whole noise budget against the mean",
            _OURS,
            private.budget_spend,
            needs=_NOISE,
        ),
        "correlated_noise": AttackEntry(
            Room.PRIVATE,
            "−x with noise that all attackers share",
            _OURS,
            private.correlated_noise,
            needs=_NOISE,
        ),
        "hub": AttackEntry(
            Room.PRIVATE,
            "one noise-free mean links the honest into a cluster, the rest stand apart",
            _OURS,
            private.hub,
            needs=_NOISE,
            trains=False,
        ),
        "held_cosine_0.1": AttackEntry(
            Room.ADAPTIVE,
            "at cosine 0.1 to the mean, the rest against the deviation",
            _OURS,
            partial(adaptive.held_cosine, cosine=0.1),
            trains=False,
        ),
        "held_cosine_0.3": AttackEntry(
            Room.ADAPTIVE,
            "at cosine 0.3 to the mean, the rest against the deviation",
            _OURS,
            partial(adaptive.held_cosine, cosine=0.3),
            trains=False,
        ),
        "held_cosine_0.5": AttackEntry(
            Room.ADAPTIVE,
            "at cosine 0.5 to the mean, the rest against the deviation",
            _OURS,
            partial(adaptive.held_cosine, cosine=0.5),
            trains=False,
        ),
        "false_histogram": AttackEntry(
            Room.ADAPTIVE,
            "−x behind the label mix of the other classes",
            _OURS,
            partial(published.sign_flip, factor=1.0),
            claim=sizes.complement_shares,
        ),
        "leaked_root": AttackEntry(
            Room.ADAPTIVE,
            "the worst update that still passes the projection on the root gradient",
            f"after Cao et al., FLTrust, NDSS 2021; {_OURS}",
            adaptive.leaked_root,
            needs=frozenset({Knowledge.ROOT}),
            trains=False,
        ),
        "within_classes": AttackEntry(
            Room.ADAPTIVE,
            "honest in what the holdout set's classes can see, against the mean in the rest",
            _OURS,
            adaptive.within_classes,
            needs=_CLASSES,
        ),
        "within_training": AttackEntry(
            Room.ADAPTIVE,
            "the same, and honest in what training on all classes alike does beyond that",
            _OURS,
            adaptive.within_training,
            needs=_CLASSES | {Knowledge.TRAINING},
        ),
        "size_lie": AttackEntry(
            Room.SIZES,
            "a hundred times the patients, on labels that are all wrong",
            "Portnoy et al., arXiv 2004.04986",
            poison=labels.complement_labels,
            claim=sizes.inflated,
        ),
    }
)


def attacks_in(*rooms: Room) -> Mapping[str, AttackEntry]:
    """The attacks of these rooms, in the registry's order."""
    return {name: entry for name, entry in ATTACKS.items() if entry.room in rooms}
