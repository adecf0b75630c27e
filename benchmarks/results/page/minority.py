# ruff: noqa: E501  # The page's own lines.
"""What a holdout set without a hospital's camera does to that hospital."""

from collections.abc import Mapping
from typing import Any, Final

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
    header += ["longest, rounds", "rounds held", "accuracy %", "on E's own images %"]
    header += ["worst hospital's classes %", "seeds"]
    return f"""
## A minority hospital

Fundus photographs by site, everybody honest: the holdout set with hospital E's camera, and without. *Worst hospital's
classes* is the least test accuracy at any hospital's mix of classes. Empty: not measured.

{table(header, [_row(cell) for cell in cells])}
"""


def _row(cell: Cell) -> list[str]:
    return [
        "without E's camera" if cell.get("holdout_without_sites") else "with E's camera",
        epsilon_words(cell["epsilon"]),
        TITLES[ArmName(cell["arm"])],
        shown(cell, "suspect_trust", 2),
        percent(cell, "honest_weightless"),
        shown(cell, "longest_honest_exclusion_rounds", 1),
        shown(cell, "held_rounds", 1),
        shown(cell, "accuracy_percent", 2),
        shown(cell, "suspect_accuracy_percent", 2),
        shown(cell, "worst_silo_percent", 2),
        str(len(cell["seeds"])),
    ]
