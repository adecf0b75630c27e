# ruff: noqa: E501  # The page's own lines.
"""Table 3: privacy, robustness and utility, one row for each share of attackers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.results.page.cells import cells_of_study, difference, seed_counts, share, where
from benchmarks.results.page.markdown import Cell, interval_text, mix_words, shown, table
from benchmarks.results.page.tutorial import IMAGES
from matl.simulation.study import NO_ATTACK, ArmName


@dataclass(frozen=True, slots=True)
class _Pair:
    """The same federations without noise and with it."""

    noiseless: str
    private: str

    def cells(self, studies: Mapping[str, Any]) -> tuple[list[Cell], list[Cell]]:
        """Of both, none where one was not run."""
        return cells_of_study(studies, self.noiseless), cells_of_study(studies, self.private)


_ALIKE: Final = (
    _Pair("head-n20", "robust-n20-eps1"),
    _Pair("unseen-fundus", "unseen-fundus-eps1"),
)
"""Model and recipe too are the same."""
_UNLIKE: Final = _Pair("robust-n20", "robust-n20-eps1")
_TITLE: Final = "## Table 3: privacy, robustness and utility together"


def together(studies: Mapping[str, Any]) -> str:
    """Both tables; empty where nothing was run."""
    parts = [part for part in (_alike(studies), _unlike(studies)) if part]
    return "\n\n".join(["\n" + _TITLE, *parts]) if parts else ""


def _alike(studies: Mapping[str, Any]) -> str:
    """What ε costs, and what the attackers cost, with one model and recipe."""
    rows = []
    for pair in _ALIKE:
        noiseless, private = pair.cells(studies)
        for key in _federations(noiseless):
            there, here = _of(noiseless, key), _of(private, key)
            attacks = {c["attack"] for c in there} & {c["attack"] for c in here}
            if not attacks:
                continue
            both = [[c for c in cells if c["attack"] in attacks] for cells in (there, here)]
            first = both[0][0]
            row = [IMAGES[first["data"]], mix_words(first["mix"]), share(first)]
            row += [str(len(attacks - {NO_ATTACK})), seed_counts([*both[0], *both[1]])]
            for arm in (ArmName.ORACLE, ArmName.MATL, ArmName.MEAN):
                worst = [_worst_of(where(cells, arm=arm)) for cells in both]
                row += [_words(cell) for cell in worst]
                if arm is not ArmName.MEAN:
                    row.append(_price(*worst))
            rows.append(row)
    if not rows:
        return ""
    header = ["images", "classes", "hostile", "attacks", "seeds"]
    header += ["honest alone, ε = ∞", "ε = 1", "price of ε"]
    header += ["MATL worst, ε = ∞", "ε = 1", "price of ε"]
    header += ["FedAvg worst, ε = ∞", "ε = 1"]
    return f"""\
Accuracy in percent under the worst of the attacks that were run at both ε, and nobody's where none is hostile. Model and recipe (a
linear head, chosen for ε = 1) are the same on both sides, so that the difference, in points and seed by seed, is the price of ε: of the noise alone
without attackers, and of what hides in the noise with them. A recipe that was chosen without noise would do better without it.

{table(header, rows)}"""


def _unlike(studies: Mapping[str, Any]) -> str:
    """Every share of attackers and every spread of classes, each ε with its own model."""
    found = dict(zip(("ε = ∞", "ε = 1"), _UNLIKE.cells(studies), strict=True))
    keys = sorted(
        {
            key
            for cells in found.values()
            for key in _federations([c for c in cells if c["attack"] != NO_ATTACK])
        }
    )
    rows = []
    for mix, hostile in keys:
        row = [mix_words(mix), f"{hostile} of 20"]
        for cells in found.values():
            own = _of(cells, (mix, hostile))
            matl, mean = where(own, arm=ArmName.MATL), where(own, arm=ArmName.MEAN)
            both = {c["attack"] for c in matl} & {c["attack"] for c in mean}
            row.append(f"{len(both)}, {seed_counts(own)}" if own else "")
            row.append(_range(where(own, arm=ArmName.ORACLE)))
            row += [
                _words(_worst_of([c for c in cells if c["attack"] in both]))
                for cells in (matl, mean)
            ]
        rows.append(row)
    if not rows:
        return ""
    header = ["classes", "hostile"]
    for words in found:
        header += [f"attacks, seeds, {words}", f"honest alone, {words}"]
        header += [f"MATL worst, {words}", f"FedAvg worst, {words}"]
    return f"""\
All shares and spreads of table 2, Fashion-MNIST, 20 hospitals. Here each ε has a model of its own (a network without noise, a linear
head at ε = 1), so the two halves are read along their rows, not against each other. Empty: not run.

{table(header, rows)}"""


def _federations(cells: Sequence[Cell]) -> list[tuple[str, int]]:
    """Spread of classes and number of hostile ones, in order."""
    return sorted({(c["mix"], c["hostile"]) for c in cells})


def _of(cells: Sequence[Cell], key: tuple[str, int]) -> list[Cell]:
    mix, hostile = key
    return where(cells, mix=mix, hostile=hostile)


def _worst_of(cells: Sequence[Cell]) -> Cell | None:
    """The attack that left the least accuracy."""
    return min(cells, key=lambda c: c["accuracy_percent"]["mean"], default=None)


def _words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = shown(cell, "accuracy_percent", 1)
    is_attacked = cell["attack"] != NO_ATTACK and cell["arm"] != ArmName.ORACLE
    return f"{text} ({cell['attack']})" if is_attacked else text


def _price(noiseless: Cell | None, private: Cell | None) -> str:
    """Points, seed by seed where both have the seed."""
    if noiseless is None or private is None:
        return ""
    found = difference(noiseless, private, "accuracy_percent")
    return "" if found is None else interval_text(asdict(found), 1)


def _range(cells: Sequence[Cell]) -> str:
    found = [c["accuracy_percent"]["mean"] for c in cells]
    if not found:
        return ""
    low, high = min(found), max(found)
    return f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
