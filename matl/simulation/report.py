"""The figures of a campaign as cells, as a table and as a plot. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from matl.simulation.campaign import Job
from matl.simulation.intervals import Interval, interval
from matl.simulation.outcome import Outcome
from matl.simulation.study import Study
from matl.terminal import table
from matl_common.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Cell:
    """One study under one arm, over its seeds; accuracies, kappa's apart, in percent."""

    study: Study
    arm: str
    seeds: tuple[int, ...]
    figures: Mapping[str, Interval | None]

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "study": self.study.plain(),
            "arm": self.arm,
            "seeds": list(self.seeds),
        } | {name: None if each is None else asdict(each) for name, each in self.figures.items()}


_FIGURES: Final[Mapping[str, Callable[[Outcome], float | None]]] = {
    "accuracy_percent": lambda run: 100.0 * run.accuracy,
    "balanced_accuracy_percent": lambda run: 100.0 * run.balanced_accuracy,
    "kappa": lambda run: run.kappa,
    "worst_silo_percent": lambda run: 100.0 * run.worst_silo,
    "hostile_weight": lambda run: run.hostile_weight,
    "hostile_excluded": lambda run: run.hostile_excluded,
    "honest_excluded": lambda run: run.honest_excluded,
    "longest_honest_exclusion_rounds": lambda run: float(run.longest_honest_exclusion),
    "detected_in_round": lambda run: None if run.detected_in is None else float(run.detected_in),
    "detected": lambda run: None if not run.hostile else float(run.detected_in is not None),
    "backdoor_success": lambda run: run.backdoor_success,
    "held_rounds": lambda run: float(run.held_rounds),
    "hostile_trust": lambda run: _mean_trust(run, hostile=True),
}


def _mean_trust(run: Outcome, *, hostile: bool) -> float | None:
    found = [each for name, each in run.trust.items() if name.endswith("*") is hostile]
    return sum(found) / len(found) if found else None


def cells_of(found: Iterable[tuple[Job, Sequence[Outcome]]]) -> list[Cell]:
    """Every study under every arm, in the order they were first met."""
    runs: dict[tuple[Study, str], list[Outcome]] = {}
    for job, outcomes in found:
        for outcome in outcomes:
            runs.setdefault((job.study, outcome.arm), []).append(outcome)
    return [
        Cell(
            study,
            arm,
            tuple(run.seed for run in own),
            {name: interval(map(figure, own)) for name, figure in _FIGURES.items()},
        )
        for (study, arm), own in runs.items()
    ]


def shown(cells: Sequence[Cell]) -> Table:
    """For people: what differs between studies, and what each arm made of it."""
    keys = _differing([cell.study for cell in cells])
    rows = [
        [
            *(str(_settings(cell.study)[key]) for key in keys),
            cell.arm,
            *(_text(cell.figures[name], digits) for name, digits in _COLUMNS.values()),
        ]
        for cell in cells
    ]
    return table([*(key.split(".")[1] for key in keys), "who aggregates", *_COLUMNS], rows)


_COLUMNS: Final = {
    "accuracy %": ("accuracy_percent", 2),
    "balanced %": ("balanced_accuracy_percent", 2),
    "kappa": ("kappa", 3),
    "hostile weight": ("hostile_weight", 3),
    "hostile out": ("hostile_excluded", 2),
    "honest out": ("honest_excluded", 2),
    "found in round": ("detected_in_round", 1),
    "rounds held": ("held_rounds", 1),
}


def _differing(studies: Sequence[Study]) -> list[str]:
    """Settings on which these studies do not agree."""
    tables = [_settings(study) for study in studies]
    return [key for key in tables[0] if len({str(each[key]) for each in tables}) > 1]


def _settings(study: Study) -> dict[str, Any]:
    """All of them by section and name, those too that a study's key leaves out."""
    return {
        f"{section}.{name}": getattr(table, name)
        for section, table in study
        for name in type(table).model_fields
    }


def _text(found: Interval | None, digits: int) -> str:
    if found is None:
        return ""
    width = "" if found.half_width is None else f" ± {found.half_width:.{digits}f}"
    return f"{found.mean:.{digits}f}{width}"


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Accuracy of every arm, study by study, with intervals.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise ConfigurationError("plots need matplotlib: pip install 'matl[report]'") from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    keys = _differing([cell.study for cell in cells])
    names = [
        ", ".join(str(_settings(cell.study)[key]) for key in keys) or "study" for cell in cells
    ]
    places, arms = list(dict.fromkeys(names)), list(dict.fromkeys(cell.arm for cell in cells))
    figure, axis = plt.subplots(
        figsize=(6.0, 1.2 + 0.18 * len(places) * (len(arms) + 1)), layout="constrained"
    )
    for number, arm in enumerate(arms):
        own = [(places.index(n), c) for n, c in zip(names, cells, strict=True) if c.arm == arm]
        found = [c.figures["accuracy_percent"] for _, c in own]
        axis.barh(
            [place + 0.8 * (number + 0.5) / len(arms) - 0.4 for place, _ in own],
            [0.0 if each is None else each.mean for each in found],
            xerr=[0.0 if each is None else each.half_width or 0.0 for each in found],
            height=0.75 / len(arms),
            label=arm,
        )
    axis.set_yticks(range(len(places)), places, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("accuracy on the test images, % (bars: 95 % intervals over seeds)", fontsize=8)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
