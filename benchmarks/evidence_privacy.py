"""``make evidence-privacy``: what attacks learn from what a hospital releases, and ε beside PLD.

The attacks of ``tests/privacy``, more often and with more canaries. Prints tables and writes
out/evidence/privacy.json. ``SECTIONS`` is the list of what is measured: each adds its own
measurements, and its own keys to the summary.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Final

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from scipy import stats

from benchmarks.utility import evidence as utility_evidence
from benchmarks.utility.levers import Data
from benchmarks.utility.levers import Effort as UtilityEffort
from matl.machine import machine
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.privacy.budget import calibrate_noise, gaussian_epsilon, gaussian_mu
from matl_common.privacy.mechanisms import PoissonSampledGaussianEvent
from matl_common.privacy.poisson import poisson_guarantee
from tests.privacy.attacks import (
    CLAIMED_EPSILON,
    CLIP,
    CONFIDENCE,
    DELTA,
    FAULTS,
    Audit,
    canary_audit,
    claimed,
    gradient_sum,
    identity_head,
    target_scores,
)

OUT: Final = Path("out/evidence")
UTILITY_PLOT: Final = OUT / "privacy_utility.png"
ALARM: Final = 0.6
"""Between what 20,000 canaries show of the mechanism as claimed and with its noise halved."""
DETECTED_SHARE: Final = 0.95
FALSE_ALARM_SHARE: Final = 0.05
RELATION: Final = "add-or-remove-one patient"
_PLD_INTERVAL: Final = 1e-5
_MILLION: Final = 1_000_000
_COLUMNS: Final = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each attack is repeated."""

    audits: int
    large_audits: int
    releases: int
    draws: int
    utility: UtilityEffort
    utility_splits: int
    utility_images: tuple[str, ...]
    fundus_share: float
    """Of the hospitals' photographs; fewer than all stand for all, by sums scaled up."""


FULL: Final = Effort(
    audits=40,
    large_audits=10,
    releases=40_000,
    draws=_MILLION,
    utility=UtilityEffort(selection_splits=3, selection_draws=1, draws=5),
    utility_splits=3,
    utility_images=tuple(utility_evidence.TARGETS),
    fundus_share=1.0,
)
QUICK: Final = Effort(
    audits=3,
    large_audits=1,
    releases=2_000,
    draws=100_000,
    utility=UtilityEffort(selection_splits=1, selection_draws=1, draws=3),
    utility_splits=1,
    utility_images=tuple(utility_evidence.TARGETS),
    fundus_share=0.05,
)


@dataclass(frozen=True, slots=True)
class Section:
    """What one part of the evidence found."""

    measurements: Mapping[str, object]
    summary: Mapping[str, float | int]
    rows: Sequence[tuple[str, ...]] = field(default=())
    """For the table on the terminal; the first is its header."""


@dataclass(frozen=True, slots=True)
class Arena:
    """How many canaries an audit has, and of how many it guesses."""

    classes: int
    dimensions: int
    guessed_share: float
    faults: tuple[str, ...]

    @property
    def canaries(self) -> int:
        return self.classes * self.dimensions


SMALL: Final = Arena(50, 80, 0.2, tuple(FAULTS))
MEDIUM: Final = Arena(100, 200, 0.2, ("none", "noise halved", "noise quartered", "no noise"))
LARGE: Final = Arena(200, 250, 0.05, ("none", "noise halved"))


def audits(effort: Effort) -> Section:
    """One-run canary audits of the mechanism as it is, and of planted faults."""
    found = {
        (arena.canaries, fault): [
            canary_audit(
                FAULTS[fault],
                classes=arena.classes,
                dimensions=arena.dimensions,
                guessed_share=arena.guessed_share,
            )
            for _ in range(effort.large_audits if arena is LARGE else effort.audits)
        ]
        for arena in (SMALL, MEDIUM, LARGE)
        for fault in arena.faults
    }
    runs = [_audit_record(fault, each) for (_, fault), each in found.items()]
    sound, halved = found[MEDIUM.canaries, "none"], found[MEDIUM.canaries, "noise halved"]
    every_sound = [a for (_, fault), each in found.items() if fault == "none" for a in each]
    detects = (
        _share_above(halved, ALARM) >= DETECTED_SHARE
        and _share_above(sound, ALARM) <= FALSE_ALARM_SHARE
    )
    return Section(
        {
            "claimed_epsilon": CLAIMED_EPSILON,
            "delta": DELTA,
            "confidence": CONFIDENCE,
            "alarm_epsilon": ALARM,
            "runs": runs,
        },
        {
            # The greatest refuted by any audit of the sound mechanism; a claim below it is false.
            "audit_epsilon_lower_bound": max(a.epsilon_lower_bound for a in every_sound),
            "audit_epsilon_lower_bound_median": float(_bounds(sound)[len(sound) // 2]),
            "audit_detects_halved_noise": int(detects),
            "audit_halved_noise_alarm_share": _share_above(halved, ALARM),
            "audit_false_alarm_share": _share_above(sound, ALARM),
            "audit_halved_noise_refutes_claim_share": _share_above(
                found[LARGE.canaries, "noise halved"], CLAIMED_EPSILON
            ),
        },
        [
            ("Canaries", "Fault", "Runs", "ε refuted: median", "least", "greatest", "above claim"),
            *(_audit_row(canaries, fault, each) for (canaries, fault), each in found.items()),
        ],
    )


def _audit_record(fault: str, audits: Sequence[Audit]) -> dict[str, object]:
    return {
        "fault": fault,
        "mechanism": asdict(FAULTS[fault]),
        "canaries": audits[0].canaries,
        "guesses": audits[0].guesses,
        "correct": [each.correct for each in audits],
        "epsilon_lower_bounds": [round(each.epsilon_lower_bound, 4) for each in audits],
        "share_above_alarm": _share_above(audits, ALARM),
        "share_above_claim": _share_above(audits, CLAIMED_EPSILON),
    }


def _audit_row(canaries: int, fault: str, audits: Sequence[Audit]) -> tuple[str, ...]:
    bounds = _bounds(audits)
    middle = bounds[len(bounds) // 2]
    return (
        f"{canaries:,}",
        fault,
        str(len(audits)),
        f"{middle:.2f}",
        f"{bounds[0]:.2f}",
        f"{bounds[-1]:.2f}",
        f"{_share_above(audits, CLAIMED_EPSILON):.0%}",
    )


def _bounds(audits: Sequence[Audit]) -> list[float]:
    return sorted(each.epsilon_lower_bound for each in audits)


def _share_above(audits: Sequence[Audit], limit: float) -> float:
    return sum(each.epsilon_lower_bound > limit for each in audits) / len(audits)


def membership(effort: Effort) -> Section:
    """The best membership attack on the released model, against the bound for its ε."""
    mu = gaussian_mu(CLAIMED_EPSILON, DELTA)
    present, absent = target_scores(claimed(steps=1), trials=effort.releases)
    middle = (present.mean() + absent.mean()) / 2.0
    accuracy = float(((present > middle).mean() + (absent <= middle).mean()) / 2.0)
    rates = (0.01, 0.05, 0.2)
    positives = {rate: float((present > np.quantile(absent, 1.0 - rate)).mean()) for rate in rates}
    bounds = {rate: float(stats.norm.cdf(stats.norm.ppf(rate) + mu)) for rate in rates}
    accuracy_bound = float(stats.norm.cdf(mu / 2.0))
    # The attack is the best there is, so it reaches the bound: by chance as often above as below.
    # Of a rate twice the variance, for its threshold is an estimate, too.
    chance = {
        rate: 1.96 * math.sqrt(2.0 * bound * (1.0 - bound) / effort.releases)
        for rate, bound in bounds.items()
    }
    accuracy_chance = 1.96 * math.sqrt(0.125 / effort.releases)
    return Section(
        {
            "releases_each": effort.releases,
            "accuracy": accuracy,
            "accuracy_bound": accuracy_bound,
            "accuracy_half_width": accuracy_chance,
            "true_positive_rate": {str(rate): positives[rate] for rate in rates},
            "true_positive_rate_bound": {str(rate): bounds[rate] for rate in rates},
            "true_positive_rate_half_width": {str(rate): chance[rate] for rate in rates},
        },
        {"membership_accuracy": accuracy, "membership_accuracy_bound": accuracy_bound},
        [
            ("Membership", "Measured, 95 % interval", "Bound"),
            (
                "accuracy",
                f"{accuracy:.3f} ± {accuracy_chance:.3f}",
                f"{accuracy_bound:.3f}",
            ),
            *(
                (
                    f"found at {rate:.0%} false alarms",
                    f"{positives[rate]:.3f} ± {chance[rate]:.3f}",
                    f"{bounds[rate]:.3f}",
                )
                for rate in rates
            ),
        ],
    )


def noise(effort: Effort) -> Section:
    """The variance of what leaves a hospital without patients, and how rounds correlate."""
    head = identity_head(200, 100)
    nobody = np.zeros((0, 200)), np.zeros(0, dtype=np.int64)
    mechanism = claimed(steps=2)
    stddev = mechanism.noise_multiplier * CLIP * math.sqrt(mechanism.steps)
    size = head.weight.size + head.bias.size
    rounds = np.stack(
        [
            gradient_sum(head, *nobody, mechanism).ravel() / stddev
            for _ in range(max(2, effort.draws // size))
        ]
    )
    tail = float(stats.chi2.sf(np.square(rounds).sum(), df=rounds.size))
    correlations = np.asarray(np.corrcoef(rounds))[np.triu_indices(len(rounds), k=1)]
    worst = float(np.abs(correlations).max())
    ratio = float(np.square(rounds).mean())
    # Five and a half standard errors.
    limit = 5.5 / math.sqrt(size)
    return Section(
        {
            "draws": rounds.size,
            "variance_over_stated": ratio,
            "chi_squared_upper_tail": tail,
            "largest_correlation_between_rounds": worst,
            "largest_correlation_by_chance": limit,
        },
        {"noise_variance_over_stated": ratio},
        [
            ("Noise", "Measured", "Expected"),
            ("variance over stated", f"{ratio:.4f}", f"1 ± {math.sqrt(2 / rounds.size):.4f}"),
            ("largest correlation of two rounds", f"{worst:.4f}", f"below {limit:.4f}"),
        ],
    )


PLANS: Final = (
    PoissonSampledGaussianEvent(16.622, 0.128, 1200),
    PoissonSampledGaussianEvent(22.922, 0.25, 600),
    PoissonSampledGaussianEvent(3.0, 0.05, 100),
    PoissonSampledGaussianEvent(1.0, 0.01, 1000),
)


def accounting(_: Effort) -> Section:
    """The ε that is told, beside privacy loss distributions on a ten times finer grid."""
    told: list[dict[str, float]] = []
    for epsilon in (0.5, 1.0, 2.0, 4.0, 8.0):
        sigma = calibrate_noise(epsilon, DELTA, steps=150)
        ours = gaussian_epsilon(math.sqrt(150) / sigma, DELTA)
        told.append(_beside_pld(sigma, 1.0, 150, ours))
    told += [
        _beside_pld(
            plan.noise_multiplier,
            plan.sample_rate,
            plan.steps,
            poisson_guarantee(plan, DELTA).epsilon,
        )
        for plan in PLANS
    ]
    worst = max(abs(each["epsilon_told"] - each["epsilon_pld"]) for each in told)
    return Section(
        {"delta": DELTA, "pld_grid": _PLD_INTERVAL, "plans": told},
        {"epsilon_vs_pld_error": worst},
        [
            ("σ", "q", "T", f"ε told ({RELATION})", "ε by PLD"),
            *(
                (
                    f"{each['noise_multiplier']:.3f}",
                    f"{each['sample_rate']:g}",
                    f"{each['steps']:g}",
                    f"{each['epsilon_told']:.5f}",
                    f"{each['epsilon_pld']:.5f}",
                )
                for each in told
            ),
        ],
    )


def _beside_pld(sigma: float, rate: float, steps: int, told: float) -> dict[str, float]:
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=_PLD_INTERVAL,
    )
    gaussian = dp_accounting.GaussianDpEvent(sigma)
    event = gaussian if rate == 1.0 else dp_accounting.PoissonSampledDpEvent(rate, gaussian)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    return {
        "noise_multiplier": sigma,
        "sample_rate": rate,
        "steps": steps,
        "epsilon_told": told,
        "epsilon_pld": float(accountant.get_epsilon(DELTA)),
    }


def utility(effort: Effort) -> Section:
    """What ε costs in accuracy. Images without cached features are drawn first, for an hour."""
    results = []
    for data_set in effort.utility_images:
        data = _utility_data(data_set, effort)
        results.append(utility_evidence.measure(data_set, data, effort.utility))
    records = {result.data_set: utility_evidence.record(result) for result in results}
    utility_evidence.draw(records, UTILITY_PLOT)
    return Section(
        records,
        utility_evidence.summary(results),
        utility_evidence.rows(results),
    )


def _utility_data(data_set: str, effort: Effort) -> Data:
    with Progress(*_COLUMNS, transient=True) as bars:
        bar = bars.add_task(data_set)
        return utility_evidence.load_data(
            data_set,
            share=effort.fundus_share if data_set == "fundus" else 1.0,
            splits=effort.utility_splits,
            cache=utility_evidence.CACHE,
            progress=lambda name, done, total: bars.update(
                bar, description=name, completed=done, total=total
            ),
        )


SECTIONS: Final[Mapping[str, Callable[[Effort], Section]]] = {
    "audit": audits,
    "membership": membership,
    "noise": noise,
    "accounting": accounting,
    "utility": utility,
}


@app.command()
def evidence_privacy(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few runs of each but utility, in a minute.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Sections: {', '.join(SECTIONS)}. Default: all.")
    ] = None,
    fundus_share: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Of the hospitals' photographs, drawn at 11 a second and core; sums are scaled up "
            "to stand for all.",
        ),
    ] = None,
    splits: Annotated[
        int | None, typer.Option(min=1, help="Ways to deal Fashion-MNIST to hospitals.")
    ] = None,
    selection_cuts: Annotated[
        int | None, typer.Option(min=1, help="Ways to cut the public images when choosing.")
    ] = None,
    selection_draws: Annotated[
        int | None, typer.Option(min=1, help="Of noise for each cut when choosing.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help=f"For utility: {', '.join(utility_evidence.TARGETS)}. Default: all."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where privacy.json goes.")] = OUT,
) -> None:
    """Attack what hospitals release, and compare the ε they are told with an accountant's.

    Exit status: 0 nothing refutes the claimed ε; 1 an audit does.
    """
    console = Console(highlight=False)
    effort = QUICK if quick else FULL
    cuts = selection_cuts or effort.utility.selection_splits
    effort = replace(
        effort,
        utility=replace(
            effort.utility,
            selection_splits=cuts,
            selection_draws=selection_draws or effort.utility.selection_draws,
        ),
        utility_splits=splits or effort.utility_splits,
        utility_images=tuple(images or effort.utility_images),
        fundus_share=fundus_share or effort.fundus_share,
    )
    if strange := set(effort.utility_images) - set(utility_evidence.TARGETS):
        raise typer.BadParameter(f"images are {', '.join(utility_evidence.TARGETS)}, not {strange}")
    found: dict[str, Section] = {}
    seconds: dict[str, float] = {}
    if unknown := set(only or ()) - set(SECTIONS):
        raise typer.BadParameter(f"sections are {', '.join(SECTIONS)}, not {unknown}")
    wanted = set(only or SECTIONS) - (set() if only or not quick else {"utility"})
    for name, measure in SECTIONS.items():
        if name not in wanted:
            continue
        started = perf_counter()
        found[name] = measure(effort)
        seconds[name] = round(perf_counter() - started, 1)
        _show(console, found[name], title=f"{name}, {seconds[name]} s")
    document = {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.evidence_privacy", *sys.argv[1:]]),
        "neighbouring_relation": RELATION,
        "measurements": {
            name: {**section.measurements, "seconds": seconds[name]}
            for name, section in found.items()
        },
        "summary": {
            key: value for section in found.values() for key, value in section.summary.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{'-'.join(['privacy', *sorted(only or ()), *(['quick'] if quick else [])])}.json"
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, [text.encode()], mode=0o644)
    console.print(f"\nWrote {path}")
    if "audit" not in found:
        return
    refuted = found["audit"].summary["audit_epsilon_lower_bound"]
    if refuted > CLAIMED_EPSILON:
        console.print(
            f"[red]The claimed ε = {CLAIMED_EPSILON:g} is refuted: ε > {refuted:.2f}[/red]"
        )
        raise typer.Exit(1)


def _show(console: Console, section: Section, *, title: str) -> None:
    header, *rows = section.rows
    table = Table(*header, title=title, box=box.SIMPLE, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.evidence_privacy")
