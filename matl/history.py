"""A study round by round: what the four plots draw, and the dictionary of the tutorial.

Values only, from whichever side they come: an embedded study, a coordinator's folder, a live
coordinator, or a dictionary. Nothing here draws or needs matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from matl.privacy import DifferentialPrivacy
from matl_common.errors import ConfigurationError

CLINICAL_THRESHOLD: Final = 0.92
"""The tutorial's; whether it means anything in a clinic is not for a plot to say."""


class TutorialHistory(TypedDict):
    """The dictionary that training returns and Part 5 of the tutorial plots.

    Every list has one item for each released round.
    """

    rounds: list[int]
    accuracy: list[float]
    """In per cent; NaN where none was measured."""
    trust_scores: list[list[float]]
    privacy_budget: list[float]
    """ε left to the hospital that has least; infinite without privacy."""
    hospitals: list[str]
    """In the order of every list of scores."""
    epsilon_remaining: list[list[float]]
    """ε left to each hospital, in that order."""
    epsilon_budget: float
    """What each may spend; infinite without privacy."""
    delta: float


@dataclass(frozen=True, slots=True)
class History:
    """A study round by round; every sequence has one value per round.

    Attributes:
        rounds: round numbers.
        accuracy: of the released models, as fractions; NaN where none was measured.
        trust: by hospital, from 0 to 1; NaN where there was none.
        epsilon_remaining: by hospital; those without a ledger are absent.
        epsilon_budget: what every hospital may spend; infinite without privacy.
        epsilon_warning: what is spent where half of the budget is; ε is not linear in it. Where
            δ is not known, half of ε.
        references: accuracy of other ways to train on the same data, by name.
        clinical_threshold: accuracy to compare with, as a fraction.
        least_epsilon_remaining: of the hospital that has least, where no more is known.
        delta: that every ε goes with; NaN where it is not known.
    """

    rounds: Sequence[int]
    accuracy: Sequence[float]
    trust: Mapping[str, Sequence[float]]
    epsilon_remaining: Mapping[str, Sequence[float]]
    epsilon_budget: float
    epsilon_warning: float
    references: Mapping[str, Sequence[float]] = field(default_factory=dict)
    clinical_threshold: float = CLINICAL_THRESHOLD
    least_epsilon_remaining: Sequence[float] = ()
    delta: float = math.nan


@dataclass(frozen=True, slots=True)
class RoundTold:
    """One released round, as whoever keeps the study tells it.

    Attributes:
        number: from 1.
        accuracy: as a fraction; ``None`` where none was measured.
        trust: after the round, by hospital.
        epsilon_spent: so far, by hospital; absent for those of whom it is not known.
    """

    number: int
    accuracy: float | None
    trust: Mapping[str, float]
    epsilon_spent: Mapping[str, float]


def tutorial_history(
    told: Sequence[RoundTold], *, epsilon_budget: float, delta: float
) -> TutorialHistory:
    """The tutorial's dictionary of these rounds."""
    names = sorted({name for each in told for name in each.trust})
    left = [
        [left_of(epsilon_budget, each.epsilon_spent.get(name)) for name in names] for each in told
    ]
    return {
        "rounds": [each.number for each in told],
        "accuracy": [math.nan if each.accuracy is None else 100.0 * each.accuracy for each in told],
        "trust_scores": [[each.trust.get(name, math.nan) for name in names] for each in told],
        "privacy_budget": [
            min((value for value in row if not math.isnan(value)), default=math.nan) for row in left
        ],
        "hospitals": names,
        "epsilon_remaining": left,
        "epsilon_budget": epsilon_budget,
        "delta": delta,
    }


def relation_of(delta: float) -> str:
    """What an ε means nothing without, as a caption; δ is NaN where it is not known."""
    told = f"δ = {delta:g}" if math.isfinite(delta) else "δ is not told"
    return f"{told}, add or remove one patient"


def left_of(budget: float, spent: float | None) -> float:
    """ε left of a budget; infinite without privacy, NaN where nobody knows what is spent."""
    if math.isinf(budget):
        return math.inf
    return math.nan if spent is None else max(0.0, budget - spent)


def history_of(source: Mapping[str, Any], *, privacy: DifferentialPrivacy | None = None) -> History:
    """What the plots draw of a dictionary like the tutorial's.

    Args:
        source: with ``rounds``, ``accuracy`` in per cent, ``trust_scores`` and ``privacy_budget``;
            the other keys of ``TutorialHistory`` where they are known.
        privacy: what each hospital may spend, where the dictionary does not say; without it the
            most that was ever left is taken for the budget, and δ is not known.

    Raises:
        ConfigurationError: a key is missing, there is no round, or lists differ in length.
    """
    wanted = ("rounds", "accuracy", "trust_scores", "privacy_budget")
    if missing := [key for key in wanted if key not in source]:
        raise ConfigurationError(
            f"history has no {', '.join(missing)}; give what train_federated_medical_ai returns"
        )
    rounds = [int(each) for each in source["rounds"]]
    lengths = {key: len(source[key]) for key in wanted}
    if not rounds or set(lengths.values()) != {len(rounds)}:
        raise ConfigurationError(
            f"history has lists of lengths {lengths}; each has one item for every round, and there "
            "is at least one round"
        )
    rows = [[float(each) for each in row] for row in source["trust_scores"]]
    names = [_display(each) for each in source.get("hospitals", _letters(len(rows[0])))]
    if {len(row) for row in rows} != {len(names)}:
        raise ConfigurationError(
            "history's trust_scores name another number of hospitals in rounds"
        )
    least = [float(each) for each in source["privacy_budget"]]
    budget = float(source.get("epsilon_budget", max(least) if privacy is None else privacy.epsilon))
    delta = float(source.get("delta", math.nan if privacy is None else privacy.delta))
    remaining = {
        name: [float(row[at]) for row in source.get("epsilon_remaining", ())]
        for at, name in enumerate(names)
    }
    known = {
        name: values
        for name, values in remaining.items()
        if values and not any(map(math.isnan, values))
    }
    return History(
        rounds=rounds,
        accuracy=[float(each) / 100.0 for each in source["accuracy"]],
        trust={name: [row[at] for row in rows] for at, name in enumerate(names)},
        epsilon_remaining=known,
        epsilon_budget=budget,
        epsilon_warning=_warning(budget, delta),
        least_epsilon_remaining=() if known else least,
        delta=delta,
    )


def _warning(budget: float, delta: float) -> float:
    if not math.isfinite(budget) or budget <= 0.0:
        return math.nan
    if math.isnan(delta):
        # Where half of Σ 1/σ² is, only δ tells; half of ε comes before it.
        return budget / 2
    from matl_participant.core.spending import warning_epsilon

    return warning_epsilon(budget, delta)


def _letters(count: int) -> list[str]:
    return [f"hospital_{chr(ord('a') + at)}" for at in range(count)]


def _display(name: str) -> str:
    """``hospital_a`` as people read it."""
    return name.replace("_", " ").title()
