# ruff: noqa: E501  # The page's own lines.
"""Table 3: privacy, robustness and utility, one row for each share of attackers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.results.page.cells import cells_of_study, groups, seed_counts, where
from benchmarks.results.page.markdown import Cell, mix_words, shown, table
from matl.simulation.study import ArmName

_STUDIES: Final = {"inf": "robust-n20", "1": "robust-n20-eps1"}


def together(studies: Mapping[str, Any]) -> str:
    """The table; empty where nothing was run."""
    found = {epsilon: cells_of_study(studies, name) for epsilon, name in _STUDIES.items()}
    rows = []
    for mix, hostile in groups([*found["inf"], *found["1"]]):
        row = [mix_words(mix), f"{hostile} of 20"]
        for cells in found.values():
            own = where(cells, mix=mix, hostile=hostile)
            matl, mean = where(own, arm=ArmName.MATL), where(own, arm=ArmName.MEAN)
            both = {c["attack"] for c in matl} & {c["attack"] for c in mean}
            row.append(f"{len(both)}, {seed_counts(own)}" if own else "")
            row.append(_range(where(own, arm=ArmName.ORACLE)))
            row.append(_worst([c for c in matl if c["attack"] in both]))
            row.append(_worst([c for c in mean if c["attack"] in both]))
        rows.append(row)
    if not rows:
        return ""
    header = ["classes", "hostile"]
    for words in ("ε = ∞", "ε = 1"):
        header += [f"attacks, seeds, {words}", f"honest alone, {words}"]
        header += [f"MATL worst, {words}", f"FedAvg worst, {words}"]
    return f"""
## Table 3: privacy, robustness and utility together

Accuracy in percent on Fashion-MNIST, 20 hospitals: of the honest hospitals alone, and of MATL and FedAvg under the
worst attack that was run on both. The models differ (a network without noise, a linear head at ε = 1), so the two halves
are read along their rows, not against each other. Empty: not run.

{table(header, rows)}
"""


def _worst(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    worst = min(cells, key=lambda c: c["accuracy_percent"]["mean"])
    return f"{shown(worst, 'accuracy_percent', 1)} ({worst['attack']})"


def _range(cells: Sequence[Cell]) -> str:
    found = [c["accuracy_percent"]["mean"] for c in cells]
    if not found:
        return ""
    low, high = min(found), max(found)
    return f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
