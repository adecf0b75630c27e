"""``make evidence-robust``: how far hostile hospitals move the model, rule by rule.

A simulation that calls the product's admission, judgement and aggregation for every attack of
``matl.attacks``. Prints tables, writes out/evidence/robust.json and a heat map beside it.
Finished runs are kept in out/evidence, and a second start goes on from there as long as
neither the product nor this benchmark has changed.
"""

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from benchmarks.robust.report import draw, show
from benchmarks.robust.settings import (
    ALPHA,
    EPSILON,
    HEAD,
    attacks_on,
    federation,
    federations,
    under,
)
from benchmarks.robust.summary import HARM_POINTS, cells_of, summarise
from matl.attacks import ATTACKS
from matl.machine import machine
from matl.simulation.campaign import Job, LocalEngine, Places, open_finished, plain, run_jobs
from matl.simulation.datasets import FASHION_FOLDER, DataSet
from matl.simulation.outcome import Outcome
from matl.simulation.study import NO_ATTACK, ArmName
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, MatlError

OUT: Final = Path("out/evidence")
ARMS: Final = (
    ArmName.ORACLE,
    ArmName.MATL,
    ArmName.MEAN,
    ArmName.MEDIAN,
    ArmName.MULTI_KRUM,
    ArmName.NNM_GM,
    ArmName.FLTRUST,
)
QUICK_ATTACKS: Final = (NO_ATTACK, "sign_flip_5", "label_complement", "ipm_2")
QUICK_ARMS: Final = (ArmName.ORACLE, ArmName.MATL, ArmName.MEAN)
_EVERY_SEED: Final = frozenset({ArmName.ORACLE, ArmName.MATL, ArmName.MEAN})
"""The others are there for context, and run on the first split only."""


def quick_jobs() -> list[Job]:
    """A few attacks on digits."""
    return [
        Job(under(federation(DataSet.DIGITS, 20, alpha=ALPHA, private=private), attack), 0, arms)
        for arms in [QUICK_ARMS]
        for private in (False, True)
        for attack in QUICK_ATTACKS
    ]


def arms_of(seed: int, chosen: tuple[ArmName, ...]) -> tuple[ArmName, ...]:
    """Which rules to run: those chosen, else those that are there for context only once.

    The oracle and the mean always: gaps and harm are measured against them.
    """
    wanted = set(chosen or (ARMS if seed == 0 else _EVERY_SEED))
    return tuple(arm for arm in ARMS if arm in wanted | {ArmName.ORACLE, ArmName.MEAN})


def document(outcomes: list[Outcome], settings: dict[str, object]) -> dict[str, object]:
    """``robust.json`` as a value: everything measured, and per data set what it comes to."""
    cells = cells_of(outcomes)
    reported = DataSet.FASHION if any(c.data_set == DataSet.FASHION for c in cells) else None
    by_set = {
        name: summarise([cell for cell in cells if cell.data_set == name]) for name in DataSet
    }
    return {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.evidence_robust", *sys.argv[1:]]),
        "settings": settings,
        "measurements": {
            "runs": [plain(each) for each in outcomes],
            "cells": [asdict(each) for each in cells],
        },
        # The rule was tuned on digits; where both were run, only the other set is a claim.
        "summary": {"data_set": reported or DataSet.DIGITS} | by_set[reported or DataSet.DIGITS],
        "summary_by_data_set": by_set,
    }


def main(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few attacks on digits, in a minute.")
    ] = False,
    datasets: Annotated[str, typer.Option(help="digits, fashion, or both.")] = "digits,fashion",
    attacks: Annotated[str, typer.Option(help="Names from matl.attacks; all unless given.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Splits of each federation.")] = 3,
    members: Annotated[str, typer.Option(help="Federation sizes, 20 or 5.")] = "20,5",
    privacy: Annotated[str, typer.Option(help="none, eps1, or both.")] = "none,eps1",
    arms: Annotated[str, typer.Option(help="Rules to compare; all unless given.")] = "",
    fashion: Annotated[Path, typer.Option(help="Folder of Fashion-MNIST.")] = FASHION_FOLDER,
    processes: Annotated[int, typer.Option(min=1)] = len(os.sched_getaffinity(0)),
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = OUT,
) -> None:
    """Measure every attack against every rule."""
    console = Console()
    try:
        if quick:
            jobs = quick_jobs()
        else:
            jobs = _jobs(
                data_sets=[DataSet(name) for name in _listed(datasets, list(DataSet))],
                members=[int(each) for each in _listed(members, ["20", "5"])],
                private=[each == "eps1" for each in _listed(privacy, ["none", "eps1"])],
                attacks=_listed(attacks, [NO_ATTACK, *ATTACKS]),
                arms=tuple(ArmName(name) for name in _listed(arms, list(ARMS))),
                seeds=seeds,
                fashion=fashion,
            )
        if not jobs:
            raise ConfigurationError(
                "no run fits these options; malformed lengths are not simulated"
            )
        name = "robust-quick" if quick else "robust"
        engine = LocalEngine(processes)
        found = run_jobs(jobs, open_finished(out, name), engine=engine, console=console)
        outcomes = [each for _, outcomes in found for each in outcomes]
        result = document(outcomes, _settings(jobs))
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(out / f"{name}.json", [text.encode() + b"\n"], mode=0o644)
        cells = cells_of(outcomes)
        show(console, cells, result)
        draw(cells, out / f"{name}.png")
        console.print(f"Written: {out / name}.json and {out / name}.png", highlight=False)
    except MatlError as error:
        console.print(str(error), style="red", highlight=False)
        raise typer.Exit(1) from error


def _jobs(
    *,
    data_sets: list[DataSet],
    members: list[int],
    private: list[bool],
    attacks: list[str],
    arms: tuple[ArmName, ...],
    seeds: int,
    fashion: Path,
) -> list[Job]:
    return [
        Job(under(study, attack), seed, arms_of(seed, arms), Places(fashion))
        for data_set in data_sets
        for study in federations(data_set)
        if study.members in members and study.is_private in private
        for seed in range(seeds)
        for attack in attacks_on(study, seed=seed)
        if not attacks or attack in attacks
    ]


def _listed(text: str, valid: list[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in valid]:
        raise ConfigurationError(f"{', '.join(unknown)}: choose from {', '.join(valid)}")
    return names


def _settings(jobs: list[Job]) -> dict[str, object]:
    studies = [job.study for job in jobs]
    return {
        "root_images": sorted({study.data.holdout_images for study in studies}),
        "epsilon": EPSILON,
        "delta": sorted({study.privacy.delta for study in studies}),
        "head": HEAD,
        "arms": sorted({arm for job in jobs for arm in job.arms}),
        "seeds": sorted({job.seed for job in jobs}),
        "harmful_from_points": HARM_POINTS,
        "tuned_on": DataSet.DIGITS,
    }


if __name__ == "__main__":
    typer.run(main)
