"""The utility section of ``make evidence-privacy``: what ε costs in accuracy.

Two image sets; centralised without privacy, centralised with noise once, federated with
noise in every hospital. Computes and returns; the command prints and writes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.utility.candidates import NON_PRIVATE, descents, started_descents
from benchmarks.utility.cohort import SHARES, Cohort, fashion_cohorts, fundus_cohort
from benchmarks.utility.extraction import Progress
from benchmarks.utility.levers import EPSILON, Data, Effort, Lever, pull_levers
from benchmarks.utility.mechanisms import DELTA, Federation, Mechanism, Weighting, federated, pooled
from benchmarks.utility.plot import plot_utility
from benchmarks.utility.scores import Interval, interval
from benchmarks.utility.selection import choose
from benchmarks.utility.sources import extract_all, fashion_sources, fundus_sources
from benchmarks.utility.study import EPSILONS, Runs, gap_points, run
from matl.demo.hospitals import TUTORIAL_PATIENTS

CACHE: Final = Path("out/utility")
TARGETS: Final[Mapping[str, float]] = {"fundus": 1.0, "fashion": 2.5}
WEIGHTING: Final = Weighting.SQUARES
TITLES: Final[Mapping[str, str]] = {
    "fundus": "Semi-synthetic fundus photographs, 5 grades",
    "fashion": "Fashion-MNIST, 10 classes",
}
REFERENCE, CENTRAL, LOCAL, STARTED = (
    "centralised, no privacy",
    "centralised, noise once",
    "federated, noise in every hospital",
    "federated, started from public labels",
)
_CANDIDATES: Final[Mapping[str, Callable[[float], Sequence[Mechanism]]]] = {
    CENTRAL: descents,
    LOCAL: descents,
    STARTED: started_descents,
}
_SIZES: Final = tuple(TUTORIAL_PATIENTS * share // sum(SHARES) for share in SHARES)


@dataclass(frozen=True, slots=True)
class Result:
    """What was found on one data set.

    Attributes:
        data_set: its name in summary keys.
        images: of the hospitals, which stand for the tutorial's 21,000 patients.
        reference: centralised without privacy.
        curves: the private arms, one ``Runs`` for each ε.
        levers: the ablation.
    """

    data_set: str
    images: int
    reference: Runs
    curves: Mapping[str, Sequence[Runs]]
    levers: Sequence[Lever]

    def gap(self, arm: str = LOCAL) -> Interval:
        """Points that federated learning at ε = 1 lies below the reference."""
        return gap_points(self.reference, self.at(arm, EPSILON))

    def at(self, arm: str, epsilon: float) -> Runs:
        """The runs of one arm at one ε."""
        return next(runs for runs in self.curves[arm] if runs.epsilon == epsilon)


def load_data(
    data_set: str, *, share: float, splits: int, cache: Path, progress: Progress | None = None
) -> Data:
    """The cohorts of one data set; what is missing of their features is made, which takes long."""
    fundus = data_set == "fundus"
    sources = fundus_sources() if fundus else fashion_sources()
    found = extract_all(sources, cache, hospitals_share=share, progress=progress)

    def cohorts(*, layered: bool) -> tuple[Cohort, ...]:
        if fundus:
            return (fundus_cohort(found, layered=layered),)
        return fashion_cohorts(found, splits=splits, layered=layered)

    return Data(cohorts(layered=False), cohorts(layered=True), TUTORIAL_PATIENTS, _SIZES)


def measure(data_set: str, data: Data, effort: Effort) -> Result:
    """Every arm at every ε, and the levers."""
    cohorts = data.layered
    reference = max(
        (
            run(
                REFERENCE,
                candidate,
                cohorts,
                epsilon=math.inf,
                federation=lambda cohort: pooled(cohort.hospitals, patients=data.patients),
                draws=1,
            )
            for candidate in NON_PRIVATE
        ),
        # On the test images, in its own favour: the gap must not come from a weak reference.
        key=lambda runs: runs.accuracy.mean,
    )
    # Chosen for local noise and used with central noise too: the two differ by the noise alone.
    chosen = {
        (candidates, epsilon): choose_recipe(candidates(epsilon), data, effort, epsilon)
        for candidates in set(_CANDIDATES.values())
        for epsilon in EPSILONS
    }

    def federate(arm: str, cohort: Cohort) -> Federation:
        if arm == CENTRAL:
            return pooled(cohort.hospitals, patients=data.patients)
        return federated(cohort.hospitals, WEIGHTING, patients=data.patients)

    curves = {
        arm: [
            run(
                arm,
                chosen[candidates, epsilon],
                cohorts,
                epsilon=epsilon,
                federation=partial(federate, arm),
                draws=effort.draws,
            )
            for epsilon in EPSILONS
        ]
        for arm, candidates in _CANDIDATES.items()
    }
    images = sum(cohorts[0].sizes)
    return Result(data_set, images, reference, curves, pull_levers(data, effort))


def choose_recipe(
    candidates: Sequence[Mechanism], data: Data, effort: Effort, epsilon: float
) -> Mechanism:
    """The recipe for one ε, from public images and the hospitals' enrolled sizes."""
    return choose(
        candidates,
        data.layered[0].public,
        sizes=data.sizes,
        weighting=WEIGHTING,
        epsilon=epsilon,
        splits=effort.selection_splits,
        draws=effort.selection_draws,
    ).best


def summary(results: Sequence[Result]) -> dict[str, float]:
    """The keys that carry a target."""
    return {
        f"federated_eps1_{key}gap_points_{result.data_set}": round(result.gap(arm).mean, 3)
        for result in results
        for key, arm in (("", LOCAL), ("public_start_", STARTED))
    }


def record(result: Result) -> dict[str, Any]:
    """Everything measured on one data set, for JSON; accuracy in points."""
    return {
        "patients": TUTORIAL_PATIENTS,
        "images": result.images,
        "delta": DELTA,
        "weighting": WEIGHTING.value,
        "target_points": TARGETS[result.data_set],
        "gap_points": asdict(result.gap()),
        "public_start_gap_points": asdict(result.gap(STARTED)),
        "reference": _runs_record(result.reference),
        "curves": {
            arm: [_runs_record(runs) for runs in curve] for arm, curve in result.curves.items()
        },
        "levers": [
            {
                "name": lever.name,
                "cumulative": lever.cumulative,
                "backbone": "efficientnet_lite0_layers" if lever.layered else "efficientnet_lite0",
                "weighting": lever.weighting,
                **_runs_record(lever.runs),
            }
            for lever in result.levers
        ],
    }


def _runs_record(runs: Runs) -> dict[str, Any]:
    every = runs.all_scores
    return {
        "arm": runs.arm,
        "epsilon": "inf" if math.isinf(runs.epsilon) else runs.epsilon,
        "mechanism": {"kind": type(runs.mechanism).__name__, **asdict(runs.mechanism)},
        "runs": len(every),
        "accuracy_points": asdict(runs.accuracy),
        "balanced_accuracy_points": asdict(interval([100.0 * s.balanced_accuracy for s in every])),
        "kappa": asdict(interval([s.kappa for s in every])),
    }


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """For the terminal; the first is the header."""
    lines: list[tuple[str, ...]] = [
        ("Data", "Arm", "ε", "Accuracy %", "Balanced %", "κ", "Below, points")
    ]
    for result in results:
        whole = [result.reference, *(runs for curve in result.curves.values() for runs in curve)]
        lines += [_row(result, runs) for runs in whole]
        lines += [
            _row(result, lever.runs, name=f"{'+ ' if lever.cumulative else '  '}{lever.name}")
            for lever in result.levers
        ]
    return lines


def _row(result: Result, runs: Runs, *, name: str | None = None) -> tuple[str, ...]:
    every = runs.all_scores
    return (
        result.data_set,
        name or runs.arm,
        "∞" if math.isinf(runs.epsilon) else f"{runs.epsilon:g}",
        _plain(runs.accuracy),
        _plain(interval([100.0 * each.balanced_accuracy for each in every])),
        f"{interval([each.kappa for each in every]).mean:.3f}",
        _plain(gap_points(result.reference, runs)),
    )


def _plain(value: Interval) -> str:
    return f"{value.mean:.2f} ± {value.half_width:.2f}"


def draw(records: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The plot of ``docs/privacy.md``, from what ``record`` gave for each data set."""
    plot_utility(
        {
            TITLES[name]: {
                arm: {float(runs["epsilon"]): Interval(**runs["accuracy_points"]) for runs in curve}
                for arm, curve in found["curves"].items()
            }
            for name, found in records.items()
        },
        {
            TITLES[name]: found["reference"]["accuracy_points"]["mean"]
            for name, found in records.items()
        },
        {TITLES[name]: found["target_points"] for name, found in records.items()},
        path,
        note="Bars: 95 % intervals over draws of noise and splits. The fundus photographs are "
        "semi-synthetic.",
    )
