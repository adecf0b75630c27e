"""Whether a rule can stand the privacy noise of a study, decided before it starts.

Honest updates lie apart by their noise. Where it is longer than the signal, a hostile
update without noise lies nearer to every honest one than they lie to one another, and
rules that trust what lies near choose it: with 4 of 20 updates hostile and noise 1.5
times the signal, Krum takes a hostile one every time, and with 10 times the geometric
median gives the four 9 tenths of the weight. The tests measure the figures.
Nothing here looks at an update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from matl_common.protocol import PrivacyTerms, TrainingPlan
from matl_coordinator.core.robust.gram import Needs
from matl_coordinator.core.robust.registry import RULES, Aggregator, Choice, make_aggregator
from matl_coordinator.core.robust.root import update_noise_std

REFUSED_ABOVE = 1.0
"""Noise over the longest possible signal: from about here on every rule that trusts
nearness gives hostile updates without noise more weight than their number."""

WARNED_ABOVE = 0.25
"""Honest signals are seldom longer than a quarter of the longest possible one."""


class Severity(StrEnum):
    """What is to be done about the noise."""

    FINE = "fine"
    WARNING = "warning"
    REFUSAL = "refusal"


@dataclass(frozen=True, slots=True)
class NoiseVerdict:
    """How a rule stands the noise of a study."""

    severity: Severity
    ratio: float
    """Length of the median hospital's noise over that of the longest signal."""
    text: str
    """For an operator; empty where all is fine."""


def update_signal_bound(training: TrainingPlan, privacy: PrivacyTerms) -> float:
    """The longest an update can be without its noise: a clipped gradient in every step."""
    return training.learning_rate * training.steps_per_round * privacy.max_grad_norm


def noise_ratios(
    training: TrainingPlan, privacy: PrivacyTerms, *, elements: int, patients: Sequence[int]
) -> tuple[float, ...]:
    """Length of each hospital's noise, σ√d, over the longest signal.

    Args:
        training: the plan's recipe.
        privacy: the plan's mechanism.
        elements: coordinates of an update, d.
        patients: enrolled patients of each hospital, in any order.

    Raises:
        AggregationError: a hospital without patients.
    """
    bound = update_signal_bound(training, privacy)
    return tuple(
        update_noise_std(training, privacy, patients=each) * math.sqrt(elements) / bound
        for each in patients
    )


def noise_leads(
    training: TrainingPlan, privacy: PrivacyTerms, *, elements: int, patients: Sequence[int]
) -> bool:
    """Whether hospitals' mean step is their noise as much as what they learnt.

    From ``WARNED_ABOVE`` on for the median hospital. Arguments and errors are those of
    ``noise_ratios``.
    """
    if privacy.noise_multiplier <= 0.0 or not patients:
        return False
    ratios = noise_ratios(training, privacy, elements=elements, patients=patients)
    return median(ratios) > WARNED_ABOVE


def check_against_noise(
    aggregator: Aggregator,
    training: TrainingPlan,
    privacy: PrivacyTerms,
    *,
    elements: int,
    patients: Sequence[int],
) -> NoiseVerdict:
    """Judge a rule by the noise that the median hospital puts into its updates.

    Args:
        aggregator: the configured rule.
        training: the plan's recipe.
        privacy: the plan's mechanism.
        elements: coordinates of an update.
        patients: enrolled patients of each hospital; none yet is fine.

    Raises:
        AggregationError: a hospital without patients.
    """
    ratios = noise_ratios(training, privacy, elements=elements, patients=patients)
    ratio = median(ratios) if ratios else 0.0
    noisy = f"the median hospital's privacy noise is {ratio:.2g} times as long as the longest"
    if aggregator.distance_based and ratio > REFUSED_ABOVE:
        return NoiseVerdict(
            Severity.REFUSAL,
            ratio,
            f"{noisy} signal (limit {REFUSED_ABOVE:g}): {aggregator.describe()} trusts updates "
            f"that lie near one another, and would choose hostile ones without noise; use "
            f"{_suited()}, a smaller trainable part or a larger epsilon",
        )
    if aggregator.distance_based and ratio > WARNED_ABOVE:
        return NoiseVerdict(
            Severity.WARNING,
            ratio,
            f"{noisy} signal: as signals shorten, {aggregator.describe()} may come to prefer "
            f"hostile updates without noise; consider {_suited()}",
        )
    if aggregator.needs.root and ratio > REFUSED_ABOVE:
        return NoiseVerdict(
            Severity.WARNING,
            ratio,
            f"{noisy} signal: {aggregator.describe()} scales updates to the length of the root "
            f"gradient, which leaves at most {1.0 / ratio:.2g} of it for their signal; consider "
            f"{_suited()}",
        )
    return NoiseVerdict(Severity.FINE, ratio, "")


def _suited() -> str:
    """Rules that noise does not turn round and that need no special measurement."""
    names = [
        name
        for name in RULES
        if not (checked := _with_defaults(name)).distance_based and checked.needs == Needs()
    ]
    return " or ".join(names)


def _with_defaults(name: str) -> Aggregator:
    return make_aggregator(Choice(name), f=0)
