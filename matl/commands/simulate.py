"""``matl simulate``: a federation in this process, by the coordinator's own code.

Reads a study file, writes figures, and talks to nobody.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from matl.machine import machine
from matl.terminal import EXIT_FAILED, EXIT_INTERRUPTED, console, errors_in_one_line, print_json
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError

if TYPE_CHECKING:
    from matl.simulation.campaign import Engine
    from matl.simulation.report import Cell
    from matl.simulation.study import StudyFile


class EngineName(StrEnum):
    """Where runs are computed."""

    LOCAL = "local"
    RAY = "ray"


def simulate(
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY.toml", help="What to simulate.")
    ] = None,
    *,
    seeds: Annotated[
        str, typer.Option(help="In place of the file's: a number of seeds, or a list like 3,4.")
    ] = "",
    processes: Annotated[
        int, typer.Option(min=1, help="Runs at the same time; each takes one core.")
    ] = len(os.sched_getaffinity(0)),
    engine: Annotated[
        EngineName,
        typer.Option(help="ray spreads runs, or one run's hospitals, over Ray's workers."),
    ] = EngineName.LOCAL,
    ray_address: Annotated[
        str, typer.Option(metavar="ADDR", help="A Ray cluster that runs; one starts here unless.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder of JSON, plot and finished runs.")] = Path(
        "out/simulate"
    ),
    fashion: Annotated[
        Path | None, typer.Option(help="Folder of Fashion-MNIST, where it is elsewhere.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder of feature files; the study's unless given.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a study file to begin with, and stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON in place of the table.")
    ] = False,
) -> None:
    """Simulate a federation under attack, and compare who aggregates.

    Nobody is connected and nothing leaves this machine. Hospitals are simulated: they train on a
    public image set, or on features that you bring, and attackers craft what they send by
    matl.attacks. What a coordinator decides is decided by the coordinator's own code: admission,
    trust, weights, rules, privacy, rounds. The same updates give the same models as the daemons.

    Begin with:

    ```
    matl simulate --example > study.toml
    matl simulate study.toml
    matl simulate study.toml --seeds 5 --processes 2 --json > figures.json
    ```

    A table under [grid] runs every combination of the values it lists. Runs that are finished are
    kept beside the results, and a second start goes on from there, unless the product or the
    features have changed since.

    With --engine ray the outcomes are the same, to the bit. Studies fewer than workers are run one
    by one, their hospitals spread over all workers; more are run a worker each. On a cluster every
    CPU is used, and every machine needs the same version of MATL.

    A study file is read whole before anything runs: a key or value that cannot be is refused, in
    whichever combination it stands. A combination that turns out not to be possible, as where too
    many are hostile for an attack, is told of, and the others go on. So does the whole after
    Ctrl-C, when started again.

    Exit status: 0 done; 1 all but what cannot be carried out; 2 a study that cannot be, or options
    that are wrong; 130 stopped by Ctrl-C.
    """
    from matl.simulation.study import EXAMPLE, read_study

    if example:
        typer.echo(EXAMPLE, nl=False)
        return
    with errors_in_one_line():
        if study is None:
            raise ConfigurationError(
                "name a study file; matl simulate --example prints one to begin with"
            )
        file = _with_seeds(read_study(study), seeds)
        cells, runs, is_whole = _measured(
            file,
            out,
            engine=_engine(engine, processes=processes, address=ray_address),
            fashion=fashion,
            features=features,
        )
        written = _write(file, out, cells, runs)
    if as_json:
        print_json(written)
    else:
        from matl.simulation.report import shown

        console().print(shown(cells))
        typer.echo(f"Written: {out / file.name}.json and .png")
    if not is_whole:
        raise typer.Exit(EXIT_FAILED)


def _with_seeds(file: StudyFile, text: str) -> StudyFile:
    if not text:
        return file
    parts = text.split(",")
    numbers = tuple(int(part) for part in parts if re.fullmatch(r" *[0-9]{1,9} *", part))
    if len(set(numbers)) < len(parts) or numbers == (0,):
        raise ConfigurationError(
            f"--seeds {text!r}: give a number of seeds, or a list like 3,4 with each once"
        )
    return replace(file, seeds=numbers if len(parts) > 1 else tuple(range(numbers[0])))


def _engine(name: EngineName, *, processes: int, address: str) -> Engine:
    from matl.simulation.campaign import LocalEngine

    if name is EngineName.LOCAL:
        if address:
            raise ConfigurationError("--ray-address is for --engine ray")
        return LocalEngine(processes)
    try:
        from matl.simulation.ray_engine import RayEngine
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigurationError("--engine ray needs Ray: pip install 'matl[ray]'") from None
    return RayEngine(processes=processes, address=address)


def _measured(
    file: StudyFile, out: Path, *, engine: Engine, fashion: Path | None, features: Path | None
) -> tuple[list[Cell], list[dict[str, Any]], bool]:
    """Cells, runs, and whether every run that was asked for is among them."""
    from matl.simulation.campaign import jobs_of, open_finished, plain, run_jobs, unfinished
    from matl.simulation.datasets import FASHION_FOLDER
    from matl.simulation.report import cells_of

    jobs = jobs_of(file, fashion=fashion or FASHION_FOLDER, features=features)
    finished = open_finished(out, file.name)
    try:
        # Standard output is for the figures.
        found = run_jobs(jobs, finished, engine=engine, console=Console(stderr=True))
    except KeyboardInterrupt:
        asked = sum(len(job.arms) for job in jobs)
        left = sum(len(job.arms) for job in unfinished(jobs, finished))
        typer.echo(
            f"matl: stopped; {asked - left} of {asked} runs are kept in {out}, and the same "
            "command goes on from there",
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    runs = [plain(run) for _, outcomes in found for run in outcomes]
    if not runs:
        raise ConfigurationError(f"nothing of {file.name} can be carried out, as said above")
    return cells_of(found), runs, len(runs) == sum(len(job.arms) for job, _ in found)


def _write(
    file: StudyFile, out: Path, cells: list[Cell], runs: list[dict[str, Any]]
) -> dict[str, Any]:
    from matl.simulation.report import draw

    document = {
        "study": file.name,
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["matl", *sys.argv[1:]]),
        "simulated": True,
        "cells": [cell.plain() for cell in cells],
        "runs": runs,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(out / f"{file.name}.json", [text.encode() + b"\n"], mode=0o644)
    draw(cells, out / f"{file.name}.png")
    return document
