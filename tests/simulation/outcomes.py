"""Outcomes of runs that nobody ran, for what is computed of them."""

import math
from dataclasses import replace
from typing import Any, Final

from matl.simulation.outcome import Outcome

_ORDINARY: Final = Outcome(
    data_set="digits",
    members=20,
    byzantine=9,
    hostile=9,
    mix="iid",
    epsilon=math.inf,
    seed=0,
    attack="sign_flip_1",
    arm="matl",
    accuracy=0.9,
    balanced_accuracy=0.9,
    kappa=0.9,
    worst_silo=0.9,
    site_accuracy=(),
    backdoor_success=None,
    held_rounds=0,
    rounds=30,
    hostile_excluded=0.0,
    honest_excluded=0.0,
    hostile_weightless=0.0,
    honest_weightless=0.0,
    hostile_weight=0.0,
    detected_in=None,
    longest_honest_exclusion=0,
    trust={},
)


def made_outcome(*, accuracy: float, **given: Any) -> Outcome:
    """An outcome that is as accurate by every measure."""
    measures = dict.fromkeys(("accuracy", "balanced_accuracy", "kappa", "worst_silo"), accuracy)
    return replace(_ORDINARY, **(measures | given))
