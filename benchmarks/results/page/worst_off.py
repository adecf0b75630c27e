# ruff: noqa: E501  # The page's own lines.
"""Table 2 at the hospital that loses most: a mean over all classes hides what one of them costs it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.results.page.attackers import best_on_updates_alone, worst_of, worst_words
from benchmarks.results.page.cells import (
    claimed,
    federation,
    gap_of,
    of_kind,
    of_the_worst_off,
    place,
    seed_counts,
    share,
    where,
)
from benchmarks.results.page.markdown import (
    Cell,
    epsilon_words,
    mix_words,
    shown,
    table,
)
from benchmarks.results.page.targets import targeted
from benchmarks.results.page.verdicts import seeds_beyond, tally, verdict_on_attacks
from matl.simulation.study import ArmName

TARGET_POINTS: Final = 2.0
_Federation = tuple[str, list[Cell], int | None, list[Cell]]
"""Of which study; MATL under every attack, how many were asked for, and every rule under them."""


def worst_off(studies: Mapping[str, Any]) -> str:
    """The section; empty where nothing was run."""
    rows = [_row(*each) for each in _federations(studies)]
    if not rows:
        return ""
    header = ["runs", "hostile", "ε", "classes", "seeds", "verdict on MATL"]
    header += ["runs beyond the target, and the worst", "MATL", "FLTrust", "best on updates alone"]
    header += ["FedAvg, by size"]
    return f"""
### The worst-off hospital

Accuracy at a hospital is the test images' with its own mix of classes. *Points* here are the honest hospitals alone less
the rule, each at the honest hospital where it does worst, seed by seed; the target is at most {TARGET_POINTS:.0f}. With as many hostile as MATL
claims to stand, in table 2 and on [other seeds and other images](#other-seeds-and-other-images), under the worst attack on each rule:

{table(header, rows)}
"""


def worst_off_words(studies: Mapping[str, Any]) -> str:
    """In how many federations the target is met, and where most is lost."""
    found = list(_federations(of_kind(studies, "robust")))
    if not found:
        return "Not run yet."
    counts = tally(
        verdict_on_attacks(own, TARGET_POINTS, asked=asked) for _, own, asked, _ in found
    )
    worst = max((worst_of(own) for _, own, _, _ in found), key=gap_of)
    return (
        f"At the honest hospital where MATL does worst it is to lose at most {TARGET_POINTS:.0f} points "
        f"([measured](#the-worst-off-hospital)). With as many hostile as claimed: {counts}; at worst "
        f"{shown(worst, 'below_oracle_points', 1)} (`{worst['attack']}`, {place(worst)})."
    )


def _federations(studies: Mapping[str, Any]) -> Iterator[_Federation]:
    for name, study in {**of_kind(studies, "robust"), **of_kind(studies, "unseen")}.items():
        as_claimed = [c for c in study["cells"] if c["hostile"] == claimed(c["members"])]
        cells = of_the_worst_off(as_claimed)
        for own, _, asked in targeted({name: {**study, "cells": cells}}):
            yield name, own, asked, where(cells, **federation(own[0]))


def _runs(study: str) -> str:
    """Whose runs these are, for a reader of table 2."""
    if study.startswith("robust-"):
        return "table 2"
    return "other images" if "fundus" in study else "other seeds"


def _row(name: str, own: Sequence[Cell], asked: int | None, beside: Sequence[Cell]) -> list[str]:
    first = own[0]
    attacks = len(own) if asked is None else asked
    return [
        _runs(name),
        share(first),
        epsilon_words(first["epsilon"]),
        mix_words(first["mix"]),
        seed_counts(own),
        verdict_on_attacks(own, TARGET_POINTS, asked=asked).words,
        seeds_beyond(own, TARGET_POINTS),
        worst_words(own, attacks=attacks),
        worst_words(where(beside, arm=ArmName.FLTRUST), attacks=attacks),
        best_on_updates_alone(beside, attacks=attacks),
        worst_words(where(beside, arm=ArmName.MEAN), attacks=attacks),
    ]
