"""What each lever buys at ε = 1: one after the other, then some that were left aside.

A lever's values are chosen on public images by ``selection.choose``; what is reported of it
are the test images. The first row is the demonstration's recipe.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.utility.candidates import (
    DEMO,
    NON_PRIVATE,
    clipping_norms,
    descents,
    input_maps,
    kernel_descents,
    learning_rates,
    started_descents,
    step_counts,
)
from benchmarks.utility.cohort import Cohort
from benchmarks.utility.mechanisms import (
    Descent,
    Federation,
    Mechanism,
    Weighting,
    distributed,
    federated,
    pooled,
)
from benchmarks.utility.selection import choose
from benchmarks.utility.study import Runs, run

EPSILON: Final = 1.0
HONEST: Final = 3
"""Of five hospitals, those who must add their part of a distributed noise."""


@dataclass(frozen=True, slots=True)
class Data:
    """One data set, with the backbone's output alone and with its inner stages.

    Attributes:
        plain: splits with the features of ``efficientnet_lite0``.
        layered: the same splits with those of ``efficientnet_lite0_layers``.
        patients: whom the hospitals' images stand for.
        sizes: patients of each hospital.
    """

    plain: Sequence[Cohort]
    layered: Sequence[Cohort]
    patients: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is repeated."""

    selection_splits: int
    selection_draws: int
    draws: int


@dataclass(frozen=True, slots=True)
class Lever:
    """One row of the table: what was changed, and what came of it."""

    name: str
    cumulative: bool
    layered: bool
    weighting: str
    runs: Runs


Federate = Callable[[Cohort], Federation]


def pull_levers(
    data: Data,
    effort: Effort,
    *,
    at: float = EPSILON,
    together: Callable[[float], Sequence[Descent]] = descents,
    kernels: Callable[[], Sequence[Descent]] = kernel_descents,
    started: Callable[[float], Sequence[Descent]] = started_descents,
) -> list[Lever]:
    """Every row at this ε, in order; the last cumulative one is the recipe recommended.

    Args:
        data: one data set.
        effort: how much is repeated.
        at: ε.
        together: candidates that differ in everything, from zero.
        kernels: the same over a map that is not linear.
        started: the same from public labels.
    """
    rows: list[Lever] = []

    def local(weighting: Weighting) -> Federate:
        return lambda cohort: federated(cohort.hospitals, weighting, patients=data.patients)

    def best(candidates: Sequence[Descent], cohorts: Sequence[Cohort], how: Weighting) -> Descent:
        found = choose(
            candidates,
            cohorts[0].public,
            sizes=data.sizes,
            weighting=how,
            epsilon=at,
            splits=effort.selection_splits,
            draws=effort.selection_draws,
        ).best
        assert isinstance(found, Descent)  # narrows the type
        return found

    def add(
        name: str,
        mechanism: Mechanism,
        *,
        federate: Federate | None = None,
        how: Weighting = Weighting.PATIENTS,
        layered: bool = False,
        cumulative: bool = True,
        epsilon: float = at,
    ) -> None:
        cohorts = data.layered if layered else data.plain
        runs = run(
            name,
            mechanism,
            cohorts,
            epsilon=epsilon,
            federation=federate or local(how),
            draws=effort.draws,
        )
        rows.append(Lever(name, cumulative, layered, how.value, runs))

    plain, by_size, squares = data.plain, Weighting.PATIENTS, Weighting.SQUARES
    add("the demonstration's recipe", DEMO)
    now = replace(DEMO, averaged=True)
    add("mean of the second half of the iterates", now)
    now = best(learning_rates(now), plain, by_size)
    add("learning rate", now)
    now = best(step_counts(now), plain, by_size)
    add("number of steps", now)
    now = best(input_maps(now), plain, by_size)
    add("directions and whitening", now)
    now = best(clipping_norms(now), plain, by_size)
    add("gradients clipped", now)
    add("hospitals weighted by n²", now, how=squares)
    now = best([*input_maps(now), *step_counts(now)], data.layered, squares)
    add("inner stages of the backbone", now, how=squares, layered=True)
    whole = best(together(at), data.layered, squares)
    add("all of these chosen together, more directions", whole, how=squares, layered=True)

    for how in (Weighting.PATIENTS, Weighting.CAPPED, Weighting.CAPPED_SQUARES, Weighting.EQUAL):
        add(f"weights ∝ {how.value}", whole, how=how, layered=True, cumulative=False)
    add("last iterate", replace(whole, averaged=False), how=squares, layered=True, cumulative=False)
    curved = best(kernels(), data.layered, squares)
    add(
        "similarities to public images as features (not built)",
        curved,
        how=squares,
        layered=True,
        cumulative=False,
    )
    from_labels = best(started(at), data.layered, squares)
    add("a start from public labels", from_labels, how=squares, layered=True, cumulative=False)
    add(
        "that start alone, no hospital",
        replace(from_labels, steps=0),
        how=squares,
        layered=True,
        cumulative=False,
        epsilon=math.inf,
    )
    add(
        "all public images and labels, no hospital",
        NON_PRIVATE[-1],
        federate=lambda cohort: pooled([cohort.public.images], patients=data.patients),
        layered=True,
        cumulative=False,
        epsilon=math.inf,
    )
    add(
        f"secure summation, noise from {HONEST} of 5 (simulated, not built)",
        whole,
        federate=lambda c: distributed(c.hospitals, honest=HONEST, patients=data.patients),
        layered=True,
        cumulative=False,
    )
    return rows
