"""From finished runs to the cells of the tables, each with its interval over seeds.

A cell has what was measured seed by seed too, so that anybody can make the intervals again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

from matl.simulation.campaign import Job
from matl.simulation.intervals import interval
from matl.simulation.outcome import Outcome
from matl.simulation.study import NO_ATTACK, ArmName, Study

_DIGITS: Final = 4
SUSPECT: Final = "hospital_e"
SUSPECT_SITE: Final = 4


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run, and the study it is of."""

    study: Study
    outcome: Outcome


def runs_of(found: Iterable[tuple[Job, Sequence[Outcome]]]) -> list[Run]:
    """Every run that is finished."""
    return [Run(job.study, outcome) for job, outcomes in found for outcome in outcomes]


def cells_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One for each study and arm; every figure as mean, half width of its interval, and runs.

    ``measurements`` has every measured figure in the order of ``seeds``. Gaps to another arm are
    differences of two cells' accuracies on the same seed.
    """
    by_cell: dict[tuple[Study, str], list[Run]] = {}
    for run in runs:
        by_cell.setdefault((run.study, run.outcome.arm), []).append(run)
    others = {(run.study, run.outcome.arm, run.outcome.seed): run.outcome for run in runs}
    return [_cell(study, arm, own, others) for (study, arm), own in by_cell.items()]


_Others = Mapping[tuple[Study, str, int], Outcome]


def _cell(study: Study, arm: str, own: Sequence[Run], others: _Others) -> dict[str, Any]:
    outcomes = sorted((run.outcome for run in own), key=lambda outcome: outcome.seed)
    measured = {name: [figure(each) for each in outcomes] for name, figure in _FIGURES.items()}

    def below(reference: ArmName) -> list[float | None]:
        return [
            None
            if (whole := others.get((study, reference, each.seed))) is None
            else 100.0 * (whole.accuracy - each.accuracy)
            for each in outcomes
        ]

    calm = study.model_copy(
        update={"hostile": study.hostile.model_copy(update={"attack": NO_ATTACK})}
    ).settled
    impact = [
        None
        if (before := others.get((calm, arm, each.seed))) is None or study == calm
        else 100.0 * (before.accuracy - each.accuracy)
        for each in outcomes
    ]
    figures = {name: interval(values) for name, values in measured.items()} | {
        "below_centralised_points": interval(below(ArmName.CENTRALISED)),
        "below_oracle_points": interval(below(ArmName.ORACLE)),
        "impact_points": interval(impact),
    }
    return (
        {
            "data": study.data.set.removesuffix(".safetensors"),
            "members": study.members,
            "hostile": study.hostile_count,
            "mix": study.mix_name,
            "epsilon": f"{study.privacy.epsilon:g}",
            "attack": study.hostile.attack,
            "arm": arm,
            "seeds": [each.seed for each in outcomes],
        }
        | ({"holdout_sites": list(sites)} if (sites := study.data.holdout_sites) else {})
        | {name: _rounded(asdict(each)) for name, each in figures.items() if each is not None}
        | {"measurements": _listed(measured)}
    )


def _listed(measured: Mapping[str, Sequence[float | None]]) -> dict[str, list[float | None]]:
    """Rounded, and without those that no run has."""
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


_FIGURES: Final[Mapping[str, Callable[[Outcome], float | None]]] = {
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
