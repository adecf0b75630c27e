# ruff: noqa: E501  # The page's own lines.
"""What a holdout set without a hospital's camera does to that hospital."""

from collections.abc import Mapping
from typing import Any, Final

from benchmarks.results.gather import SUSPECT_SITE
from benchmarks.results.page.cells import cells_of_study
from benchmarks.results.page.markdown import Cell, epsilon_words, percent, shown, table
from benchmarks.results.page.tutorial import TITLES
from matl.simulation.study import ArmName

STUDY: Final = "minority"


def was_run(studies: Mapping[str, Any]) -> bool:
    """Whether the page may speak of what was measured."""
    return bool(cells_of_study(studies, STUDY))


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
        "with E's patients" if SUSPECT_SITE in cell["holdout_sites"] else "without E's patients",
        epsilon_words(cell["epsilon"]),
        TITLES[ArmName(cell["arm"])],
        shown(cell, "suspect_trust", 2),
        percent(cell, "honest_weightless"),
        shown(cell, "longest_honest_exclusion_rounds", 1),
        shown(cell, "held_rounds", 1),
        shown(cell, "accuracy_percent", 2),
        shown(cell, "suspect_accuracy_percent", 2),
        shown(cell, "others_accuracy_percent", 2),
        str(len(cell["seeds"])),
    ]
