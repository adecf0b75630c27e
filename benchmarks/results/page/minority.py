# ruff: noqa: E501  # The page's own lines.
"""What a holdout set without a hospital's camera does to that hospital."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks.results.gather import SUSPECT_SITE
from benchmarks.results.page.cells import cells_of_study, figures, span, where
from benchmarks.results.page.markdown import (
    Cell,
    epsilon_words,
    interval_text,
    percent,
    shown,
    table,
)
from benchmarks.results.page.tutorial import TITLES
from matl.simulation.intervals import Interval, interval
from matl.simulation.study import ArmName

STUDY: Final = "minority"


def found_of_bias(studies: Mapping[str, Any]) -> str:
    """What hospital E's own patients lose under MATL when the holdout set has none of them."""
    cells = where(cells_of_study(studies, STUDY), arm=ArmName.MATL)
    lost: dict[str, Interval] = {}
    for epsilon in dict.fromkeys(c["epsilon"] for c in cells):
        having, lacking = (
            _own_patients([c for c in where(cells, epsilon=epsilon) if _has_camera(c) is has])
            for has in (True, False)
        )
        found = interval([having[seed] - lacking[seed] for seed in having if seed in lacking])
        if found is not None:
            lost[epsilon] = found
    if not lost:
        return "Expected, not measured."
    listed = "; ".join(
        f"{epsilon_words(epsilon)}: {interval_text(asdict(each), 2)}"
        for epsilon, each in lost.items()
    )
    said = f"Points that E's own patients lose where the holdout set lacks E's camera ([measured](#a-minority-hospital)): {listed}."
    if any(each.half_width is not None and each.mean > each.half_width for each in lost.values()):
        return f"{said} That hospital pays."
    return f"{said} No loss was found with this camera; a holdout set that lacks a grade which one hospital alone has was not measured."


def _has_camera(cell: Cell) -> bool:
    return SUSPECT_SITE in cell["holdout_sites"]


def _own_patients(cells: Sequence[Cell]) -> dict[int, float]:
    """Accuracy on E's own patients, by seed."""
    return {
        seed: accuracy
        for cell in cells
        if "measurements" in cell
        for seed, accuracy in zip(
            cell["seeds"], figures(cell, "suspect_accuracy_percent"), strict=True
        )
    }


def minority(studies: Mapping[str, Any]) -> str:
    """The table; empty where nothing was run."""
    cells = cells_of_study(studies, STUDY)
    if not cells:
        return ""
    header = ["holdout set", "ε", "who aggregates", "trust of E", "honest without weight"]
    header += ["longest, rounds", "rounds held", "accuracy %", "E's own patients %"]
    header += ["other hospitals' patients %", "seeds"]
    return f"""
## A minority hospital

Fundus photographs by site, the recipe of table 1, everybody honest: the holdout set has patients of hospital E, the
smallest, or has not. *E's own patients* are some with E's camera that nobody trained on, *other hospitals'* likewise, the
mean of the four.

{table(header, [_row(cell) for cell in cells])}
"""


def _row(cell: Cell) -> list[str]:
    return [
        "with E's patients" if _has_camera(cell) else "without E's patients",
        epsilon_words(cell["epsilon"]),
        TITLES[ArmName(cell["arm"])],
        shown(cell, "suspect_trust", 2),
        percent(cell, "honest_weightless"),
        span(cell, "longest_honest_exclusion_rounds"),
        span(cell, "held_rounds"),
        shown(cell, "accuracy_percent", 2),
        shown(cell, "suspect_accuracy_percent", 2),
        shown(cell, "others_accuracy_percent", 2),
        str(len(cell["seeds"])),
    ]
