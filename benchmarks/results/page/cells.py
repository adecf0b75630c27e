"""What the tables ask of the cells. A cell may lack any figure: then nobody measured it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, Literal

from benchmarks.results.page.markdown import Cell, counted, epsilon_words, mix_words, shown
from matl.simulation.intervals import Interval, interval
from matl.simulation.study import NO_ATTACK, ArmName
from matl_common.modes import MATLMode
from matl_coordinator.core.claim import claimed_tolerance

ENOUGH_SEEDS: Final = 5
"""With fewer nothing is called met."""
HARMFUL_POINTS: Final = 1.0
Kind = Literal["robust", "unseen", "mixless"]
FEDERATION: Final = ("members", "hostile", "mix", "epsilon")


def cells_of_study(studies: Mapping[str, Any], name: str) -> list[Cell]:
    """The cells of one study, or none."""
    return list(studies.get(name, {}).get("cells", []))


def of_kind(studies: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Those of one kind.

    Args:
        kind: ``robust`` is table 2; ``unseen`` is on other seeds and other images than constants
            were chosen on.
    """
    return {name: study for name, study in studies.items() if name.startswith(f"{kind}-")}


def where(cells: Iterable[Cell], **wanted: Any) -> list[Cell]:
    """The cells with these values."""
    return [c for c in cells if all(c[key] == value for key, value in wanted.items())]


def federation(cell: Cell) -> dict[str, Any]:
    """What ``where`` needs to find the cells beside this one, of whatever attack and arm."""
    return {key: cell[key] for key in FEDERATION}


def federations(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Every federation that there are cells of, in their order."""
    distinct = dict.fromkeys(tuple(federation(cell).items()) for cell in cells)
    return [dict(each) for each in distinct]


def figures(cell: Cell, name: str) -> list[float]:
    """A figure of each seed that has it; the mean where seeds were not published."""
    values = _seed_by_seed(cell, name)
    if values is None:
        return [cell[name]["mean"]] if name in cell else []
    return [value for value in values if value is not None]


def by_seed(cell: Cell, name: str) -> dict[int, float]:
    """A figure of each seed; none where seeds were not published."""
    values = _seed_by_seed(cell, name)
    if values is None:
        return {}
    known = zip(cell["seeds"], values, strict=True)
    return {seed: value for seed, value in known if value is not None}


def difference(more: Cell, less: Cell, name: str) -> Interval | None:
    """Of a figure of two cells, over the seeds that both have."""
    there, here = by_seed(more, name), by_seed(less, name)
    return interval(there[seed] - here[seed] for seed in sorted(there.keys() & here.keys()))


def _seed_by_seed(cell: Cell, name: str) -> Sequence[float | None] | None:
    """In the order of its seeds; ``None`` where they were not published."""
    found: Sequence[float | None] | None
    found = {**cell.get("measurements", {}), **cell.get("gaps", {})}.get(name)
    return found


def span(cell: Cell, name: str) -> str:
    """A whole number from its least to its most over seeds; empty where a cell has none."""
    if name not in cell.get("measurements", {}):
        return shown(cell, name, 1)
    values = figures(cell, name)
    least, most = (f"{value:.0f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def mean_percent(cells: Sequence[Cell], name: str) -> str:
    """Of the cells that have the figure."""
    values = [c[name]["mean"] for c in cells if name in c]
    return f"{100 * sum(values) / len(values):.1f} %" if values else ""


def waited(cell: Cell) -> float:
    """Most rounds in a row, over seeds, in which an honest hospital had no say, held ones too."""
    return max(figures(cell, "longest_honest_exclusion_rounds"), default=0.0)


def gap_of(cell: Cell) -> float:
    """Points below the honest hospitals alone."""
    mean: float = cell["below_oracle_points"]["mean"]
    return mean


def with_gap(cells: Iterable[Cell]) -> list[Cell]:
    """Those whose honest hospitals were run alone too."""
    return [c for c in cells if "below_oracle_points" in c]


def of_the_worst_off(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells, with points below the honest alone counted at the worst-off hospital.

    Seed by seed the least accuracy over honest hospitals, each with its own mix of classes: the
    one of the honest alone less the one of this rule. Cells of which that is unknown are left out.

    Args:
        cells: with those of the honest hospitals alone under the same attacks among them.
    """
    alone = {c["study"]: c for c in where(cells, arm=ArmName.ORACLE) if "study" in c}
    there: list[Cell] = []
    for cell in cells:
        whole = by_seed(alone.get(cell.get("study"), {}), "worst_silo_percent")
        here = by_seed(cell, "worst_silo_percent")
        lost = [whole[s] - here[s] if s in whole and s in here else None for s in cell["seeds"]]
        if (found := interval(lost)) is not None:
            gaps = {**cell["gaps"], "below_oracle_points": lost}
            there.append({**cell, "below_oracle_points": asdict(found), "gaps": gaps})
    return there


def lost_without_attackers(cells: Iterable[Cell], cell: Cell) -> float | None:
    """Points that the same rule loses where everybody is honest, if that was run."""
    calm = {**federation(cell), "hostile": 0, "attack": NO_ATTACK, "arm": cell["arm"]}
    found = with_gap(where(cells, **calm))
    return gap_of(found[0]) if found else None


def harms(cells: Iterable[Cell], cell: Cell) -> bool | None:
    """Whether the attack costs FedAvg a point; None where FedAvg was not run under it."""
    same = {**federation(cell), "attack": cell["attack"], "arm": ArmName.MEAN}
    found = with_gap(where(cells, **same))
    return any(gap_of(c) >= HARMFUL_POINTS for c in found) if found else None


def claimed(members: int, mode: MATLMode = MATLMode.MODE1) -> int:
    """Hostile hospitals that the mode claims to stand; MODE1 45 %."""
    return claimed_tolerance(mode, members).f


def share(cell: Cell) -> str:
    """As in ``9 of 20``."""
    return f"{cell['hostile']} of {cell['members']}"


def seed_counts(cells: Sequence[Cell]) -> str:
    """How many seeds these cells have, from the fewest to the most."""
    counts = {len(c["seeds"]) for c in cells}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def fewest_seeds(cells: Sequence[Cell]) -> int:
    """Of the cell that has the fewest."""
    return min(len(c["seeds"]) for c in cells)


def federation_words(cell: Cell) -> str:
    """Which federation, as in ``9 of 20, α = 0.5, ε = 1``."""
    return f"{share(cell)}, {mix_words(cell['mix'])}, {epsilon_words(cell['epsilon'])}"


def place(cell: Cell) -> str:
    """The same with its seeds, as in ``9 of 20, α = 0.5, ε = 1, 5 seeds``."""
    return f"{federation_words(cell)}, {counted(len(cell['seeds']), 'seed')}"
