# ruff: noqa: E501  # The page's own lines.
"""Runs in which attackers held most of the weight, whatever they did with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.results.page.cells import Kind, by_seed, claimed, federation_words, of_kind, where
from benchmarks.results.page.markdown import Cell, counted
from matl.simulation.study import ArmName

_MOST: Final = 0.5
_KINDS: Final[Mapping[Kind, str]] = {
    "robust": "in table 2",
    "unseen": "on other seeds and images",
    "mixless": "without class mixes",
}


@dataclass(frozen=True, slots=True)
class _Run:
    cell: Cell
    seed: int
    weight: float
    """Of all attackers, the mean over released rounds."""

    @property
    def words(self) -> str:
        cell = self.cell
        out = by_seed(cell, "honest_excluded").get(self.seed, 0.0)
        return f"{100 * self.weight:.0f} %, with {100 * out:.0f} % of the honest excluded at the end (`{cell['attack']}`, {federation_words(cell)}, seed {self.seed})"


def takeover(studies: Mapping[str, Any]) -> str:
    """In how many single runs, of each kind of study, within MATL's claim and beyond it."""
    within: list[str] = []
    beyond: list[str] = []
    for kind, words in _KINDS.items():
        cells = [c for study in of_kind(studies, kind).values() for c in study["cells"]]
        runs = _runs(where(cells, arm=ArmName.MATL))
        is_within = [r.cell["hostile"] <= claimed(r.cell["members"]) for r in runs]
        for said, wanted in ((within, True), (beyond, False)):
            if own := [run for run, found in zip(runs, is_within, strict=True) if found is wanted]:
                said.append(f"{words}, {_counts(own)}")
    if not within and not beyond:
        return "Who held the weight was not measured."
    return (
        "**Takeover** is attackers with more than half of the weight, as the mean over a run's released rounds. With no more of them than MATL "
        f"claims to stand: {'; '.join(within) or 'not run'}. With more: {'; '.join(beyond) or 'not run'}. Such a model may be as accurate as the honest "
        "one's, and is the attackers' to turn; no attack that was run excludes the honest first and turns then."
    )


def _counts(runs: Sequence[_Run]) -> str:
    taken = [run for run in runs if run.weight > _MOST]
    text = f"{len(taken)} of {counted(len(runs), 'run')}"
    return f"{text}, at worst {max(taken, key=lambda run: run.weight).words}" if taken else text


def _runs(cells: Sequence[Cell]) -> list[_Run]:
    return [
        _Run(cell, seed, weight)
        for cell in cells
        if cell["hostile"]
        for seed, weight in by_seed(cell, "hostile_weight").items()
    ]
