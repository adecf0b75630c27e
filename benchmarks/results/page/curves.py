"""The worst attack on each rule as more hospitals turn hostile."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

from benchmarks.results.page.cells import (
    ENOUGH_SEEDS,
    cells_of_study,
    claimed,
    federations,
    fewest_seeds,
    gap_of,
    of_kind,
    where,
    with_gap,
)
from benchmarks.results.page.markdown import Cell, mix_words, noise_words
from matl.simulation.study import NO_ATTACK, ArmName

TARGET_MIX: Final = "dirichlet-0.5"
"""That nobody may wait long at, and that is drawn."""


@dataclass(frozen=True, slots=True)
class Attacked:
    """One federation under whatever attacks it was run."""

    members: int
    hostile: int
    mix: str
    epsilon: str
    cells: list[Cell]
    """Without the honest hospitals alone, whom all others are compared with."""

    @property
    def words(self) -> str:
        """For a plot, whose space is short."""
        return f"{mix_words(self.mix)}, {noise_words(self.epsilon)}"

    def worst(self, arm: str) -> Mapping[str, Any] | None:
        """Most points below the honest hospitals alone, with its interval."""
        own = [c for c in self.cells if c["arm"] == arm]
        return max(own, key=gap_of)["below_oracle_points"] if own else None


def attacked(studies: Mapping[str, Any], names: Iterable[str]) -> list[Attacked]:
    """Every federation of these studies."""
    cells = [
        cell
        for name in names
        for cell in with_gap(cells_of_study(studies, name))
        if cell["arm"] != ArmName.ORACLE
    ]
    return [Attacked(**each, cells=where(cells, **each)) for each in federations(cells)]


def at_target(studies: Mapping[str, Any]) -> list[Attacked]:
    """Twenty hospitals where MATL's targets are: as many hostile as MODE1 claims, or more."""
    return [
        each
        for each in attacked(studies, ("robust-n20-eps1", "robust-n20"))
        if each.mix == TARGET_MIX and each.hostile >= claimed(each.members)
    ]


def curves_of(studies: Mapping[str, Any]) -> dict[str, list[Attacked]]:
    """Those of table 2."""
    return whole_federations(of_kind(studies, "robust"))


def whole_federations(studies: Mapping[str, Any]) -> dict[str, list[Attacked]]:
    """Study by study, every federation with those rules that met all attacks asked for, and enough
    seeds of each."""
    return {
        name: [whole for each in attacked(studies, [name]) if (whole := _whole(each, study)).cells]
        for name, study in studies.items()
        if "asked_attacks" in study
    }


def _whole(federation: Attacked, study: Mapping[str, Any]) -> Attacked:
    asked = set(study["asked_attacks"]) if federation.hostile else {NO_ATTACK}
    arms: dict[str, list[Cell]] = {}
    for cell in federation.cells:
        arms.setdefault(cell["arm"], []).append(cell)
    whole = [
        cells
        for cells in arms.values()
        if {cell["attack"] for cell in cells} >= asked and fewest_seeds(cells) >= ENOUGH_SEEDS
    ]
    return replace(federation, cells=list(chain.from_iterable(whole)))
