"""From finished runs to the cells of the tables, each with its interval over seeds, and back.

A cell has what was measured seed by seed too, so that anybody can make the intervals again, or go
on from runs that somebody else has published.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from statistics import fmean
from typing import Any, Final

from matl.simulation.campaign import Job
from matl.simulation.datasets import FEATURES_SUFFIX
from matl.simulation.intervals import interval
from matl.simulation.outcome import Outcome
from matl.simulation.study import NO_ATTACK, ArmName, Study

_DIGITS: Final = 4
SUSPECT: Final = "hospital_e"
SUSPECT_SITE: Final = 4


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run: whose it is, and what was measured in it."""

    study: Study
    arm: str
    seed: int
    figures: Mapping[str, float | None]
    """By name, rounded as they are published; ``None`` where nothing was to be measured."""


def run_of(study: Study, outcome: Outcome) -> Run:
    """What is published of a run."""
    measured = {name: figure(outcome) for name, figure in FIGURES.items()}
    figures = {
        name: None if value is None else round(value, _DIGITS) for name, value in measured.items()
    }
    return Run(study, outcome.arm, outcome.seed, figures)


def runs_of(found: Iterable[tuple[Job, Sequence[Outcome]]]) -> list[Run]:
    """Every run that is finished."""
    return [run_of(job.study, outcome) for job, outcomes in found for outcome in outcomes]


def runs_in(cells: Iterable[Mapping[str, Any]], jobs: Iterable[Job]) -> list[Run]:
    """Those runs of ``jobs`` that are in published cells, figures and all.

    Cells of an older form, which have no study or no measurements, are left out.
    """
    published = {
        (cell["study"], cell["arm"]): cell
        for cell in cells
        if {"study", "measurements"} <= cell.keys()
    }
    found = []
    for job in jobs:
        for arm in job.arms:
            cell = published.get((study_digest(job.study), arm), {"seeds": []})
            if job.seed in cell["seeds"]:
                index, measured = cell["seeds"].index(job.seed), cell["measurements"]
                figures = {
                    name: measured[name][index] if name in measured else None for name in FIGURES
                }
                found.append(Run(job.study, arm, job.seed, figures))
    return found


@cache
def study_digest(study: Study) -> str:
    """Names everything that a study asks for."""
    return sha256(study.key().encode()).hexdigest()[:16]


def cells_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One for each study and arm; every figure as mean, half width of its interval, and runs.

    ``measurements`` has every measured figure in the order of ``seeds``, and ``gaps`` every gap to
    another arm or to the same one without its attackers: differences of two cells' accuracies on
    the same seed.
    """
    by_cell: dict[tuple[Study, str], list[Run]] = {}
    for run in runs:
        by_cell.setdefault((run.study, run.arm), []).append(run)
    accuracies = {(r.study, r.arm, r.seed): r.figures["accuracy_percent"] for r in runs}
    return [_cell(study, arm, own, accuracies) for (study, arm), own in by_cell.items()]


_Accuracies = Mapping[tuple[Study, str, int], float | None]


def _cell(study: Study, arm: str, own: Sequence[Run], accuracies: _Accuracies) -> dict[str, Any]:
    runs = sorted(own, key=lambda run: run.seed)
    measured = {name: [run.figures[name] for run in runs] for name in FIGURES}
    calm = study.model_copy(
        update={"hostile": study.hostile.model_copy(update={"attack": NO_ATTACK})}
    ).settled

    def below(reference: Study, whose: str) -> list[float | None]:
        return [
            None
            if (whole := accuracies.get((reference, whose, run.seed))) is None
            or (here := run.figures["accuracy_percent"]) is None
            else whole - here
            for run in runs
        ]

    gaps = {
        "below_centralised_points": below(study, ArmName.CENTRALISED),
        "below_oracle_points": below(study, ArmName.ORACLE),
        "below_fedavg_points": below(study, ArmName.MEAN) if arm != ArmName.MEAN else [],
        "impact_points": below(calm, arm) if study != calm else [],
    }
    figures = {name: interval(values) for name, values in {**measured, **gaps}.items()}
    return (
        {
            "data": study.data.set.removesuffix(FEATURES_SUFFIX),
            "members": study.members,
            "hostile": study.hostile_count,
            "mix": study.mix_name,
            "epsilon": f"{study.privacy.epsilon:g}",
            "attack": study.hostile.attack,
            "arm": arm,
            "study": study_digest(study),
            "seeds": [run.seed for run in runs],
        }
        | ({"holdout_sites": list(sites)} if (sites := study.data.holdout_sites) else {})
        | {name: _rounded(asdict(each)) for name, each in figures.items() if each is not None}
        | {"measurements": _listed(measured), "gaps": _listed(gaps)}
    )


def _listed(measured: Mapping[str, Sequence[float | None]]) -> dict[str, list[float | None]]:
    """Without those that no run has."""
    return {
        name: [None if value is None else round(value, _DIGITS) for value in values]
        for name, values in measured.items()
        if any(value is not None for value in values)
    }


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _at_suspects_site(run: Outcome) -> float | None:
    return 100.0 * run.site_accuracy[SUSPECT_SITE] if run.site_accuracy else None


def _at_other_sites(run: Outcome) -> float | None:
    others = [share for site, share in enumerate(run.site_accuracy) if site != SUSPECT_SITE]
    return 100.0 * fmean(others) if others else None


# What is published is taken for what these give: measured otherwise, a figure needs a new name.
FIGURES: Final[Mapping[str, Callable[[Outcome], float | None]]] = {
    "accuracy_percent": lambda run: 100.0 * run.accuracy,
    "balanced_accuracy_percent": lambda run: 100.0 * run.balanced_accuracy,
    "worst_silo_percent": lambda run: 100.0 * run.worst_silo,
    "kappa": lambda run: run.kappa,
    "hostile_weight": lambda run: run.hostile_weight,
    "hostile_excluded": lambda run: run.hostile_excluded,
    "honest_excluded": lambda run: run.honest_excluded,
    "hostile_weightless": lambda run: run.hostile_weightless,
    "honest_weightless": lambda run: run.honest_weightless,
    "longest_honest_exclusion_rounds": lambda run: float(run.longest_honest_exclusion),
    "detected_in_round": lambda run: _number(run.detected_in),
    "backdoor_success": lambda run: run.backdoor_success,
    "held_rounds": lambda run: float(run.held_rounds),
    "rounds": lambda run: float(run.rounds),
    "suspect_accuracy_percent": _at_suspects_site,
    "others_accuracy_percent": _at_other_sites,
    "suspect_trust": lambda run: run.trust.get(SUSPECT, run.trust.get(f"{SUSPECT}*")),
}


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {
        key: round(value, _DIGITS) if isinstance(value, float) else value
        for key, value in found.items()
    }
