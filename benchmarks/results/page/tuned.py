# ruff: noqa: E501  # The page's own lines.
"""Table 1 once more, with a recipe that was chosen for accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.results.page.cells import figures, where
from benchmarks.results.page.markdown import Cell, epsilon_words, percent, shown, table
from benchmarks.results.page.tutorial import HONEST_HEADER, TITLES, honest_columns
from matl.simulation.study import NO_ATTACK, ArmName

_ARMS: Final = (ArmName.CENTRALISED, ArmName.MEAN, ArmName.MATL, ArmName.ORACLE)


def tuned_cells(studies: Mapping[str, Any]) -> list[Cell]:
    """Of every study with such a recipe."""
    return [
        cell
        for name, study in studies.items()
        if name.startswith("tuned-")
        for cell in study["cells"]
    ]


def tuned(studies: Mapping[str, Any]) -> str:
    """The table; empty where nothing was run."""
    cells = [cell for cell in tuned_cells(studies) if cell["arm"] in _ARMS]
    if not cells:
        return ""
    rows = [
        [
            cell["data"],
            epsilon_words(cell["epsilon"]),
            "right" if cell["attack"] == NO_ATTACK else "all wrong",
            TITLES[ArmName(cell["arm"])],
            shown(cell, "accuracy_percent", 2),
            shown(cell, "below_centralised_points", 2),
            shown(cell, "suspect_trust", 2),
            *honest_columns(cell),
            str(len(cell["seeds"])),
        ]
        for cell in cells
    ]
    header = ["data", "ε", "E's labels", "who aggregates", "accuracy %", "below centralised"]
    header += ["trust of E", *HONEST_HEADER, "seeds"]
    return f"""
### The same with a recipe chosen for accuracy

[privacy.md](privacy.md) chooses recipes on public images for accuracy alone: learning rates of 256 and 512.{_excluded(cells)}

{table(header, rows)}
"""


def _excluded(cells: Sequence[Cell]) -> str:
    """What MATL's gap with such a recipe was had at."""
    ours = [c for c in where(cells, arm=ArmName.MATL) if "honest_excluded" in c]
    worst = max(ours, key=lambda c: float(c["honest_excluded"]["mean"]), default=None)
    if worst is None or not worst["honest_excluded"]["mean"]:
        return ""
    return (
        f" MATL's gap is had at the price of honest hospitals: at worst {percent(worst, 'honest_excluded')} of them "
        f"are excluded at the end ({worst['data']}, {epsilon_words(worst['epsilon'])})."
    )


def long_steps(studies: Mapping[str, Any]) -> str:
    """What such steps did to honest hospitals, as far as it was run."""
    cells = where(tuned_cells(studies), arm=ArmName.MATL)
    said = []
    for cell in cells:
        rounds = figures(cell, "longest_honest_exclusion_rounds")
        labels = "right" if cell["attack"] == NO_ATTACK else "wrong"
        said.append(
            f"{cell['data']}, {epsilon_words(cell['epsilon'])}, E's labels {labels}: "
            f"{max(rounds, default=0.0):.0f} rounds"
        )
    return "; ".join(said)
