"""``make evidence``: the tables of docs/evidence.md, measured, and written from what was measured.

Runs the studies of benchmarks/studies row by row, goes on where an earlier start was stopped, and
writes docs/results/evidence.json, docs/evidence.md and its plots from every run that is
finished; where none is, it draws page and plots anew from the published figures, and it never
drops a published run unless told to. ``make evidence-quick`` runs a few on digits and
checks the order of the rules.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from benchmarks.results.figures import draw
from benchmarks.results.gather import cells_of, runs_of
from benchmarks.results.known import (
    by_key,
    data_digest,
    feature_files,
    known,
    taken_over,
    unknown,
)
from benchmarks.results.ordering import tutorial_violations, violations
from benchmarks.results.page import evidence_page
from benchmarks.results.peers import FLOWER, peer_jobs, run_peers
from benchmarks.results.peers import NAME as PEERS
from benchmarks.results.peers import studies as peer_studies
from benchmarks.results.publication import (
    document,
    gaps_of,
    merged,
    published_study,
    read_published,
    summary_of,
    text_of,
)
from matl.simulation.campaign import Job, LocalEngine, jobs_of, open_finished, run_jobs
from matl.simulation.datasets import FASHION_FOLDER
from matl.simulation.study import ArmName, Study, StudyFile, read_study
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, MatlError

STUDIES: Final = Path("benchmarks/studies")
OUT: Final = Path("out/evidence")
RESULTS: Final = Path("docs/results/evidence.json")
PAGE: Final = Path("docs/evidence.md")
PLOTS: Final = Path("docs/images")
ORDER: Final = (
    "tutorial-fundus",
    "tutorial-fashion",
    "minority",
    "minority-grade",
    "minority-grade-mean",
    "robust-n20-eps1",
    "robust-n20",
    "head-n20",
    "tuned-fundus-eps1",
    "tuned-fundus-inf",
    "tuned-fashion-eps1",
    "tuned-fashion-inf",
    "robust-n5-eps1",
    "robust-n5",
    "mixless-n20-eps1",
    "mixless-n20",
    "mixless-n5-eps1",
    "mixless-n5",
    "unseen-fundus-eps1",
    "unseen-fundus",
    "unseen-n20-eps1",
    "unseen-n20",
    "unseen-n5-eps1",
    "unseen-n5",
)
QUICK: Final = ("quick", "quick-tutorial")


def studies_of(names: Sequence[str]) -> list[StudyFile]:
    """The study files of these names, in the order of the page.

    Raises:
        ConfigurationError: there is no such study.
    """
    if unknown := [name for name in names if name not in ORDER]:
        raise ConfigurationError(f"{', '.join(unknown)}: choose from {', '.join(ORDER)}")
    return [read_study(STUDIES / f"{name}.toml") for name in ORDER if name in (names or ORDER)]


def row_by_row(files: Sequence[StudyFile]) -> Iterator[StudyFile]:
    """The first row of every study, then the second ones: what matters most stands first."""
    for number in range(max(len(file.rows) for file in files)):
        for file in files:
            if row := file.rows[number : number + 1]:
                yield replace(file, rows=row)


def run_missing(
    file: StudyFile,
    published: Mapping[str, Any],
    console: Console,
    *,
    fashion: Path,
    processes: int,
    out: Path,
) -> None:
    """Run what is neither finished here nor published by the same code.

    Args:
        file: the study file.
        published: studies of whose runs those of this same code count as finished.
        console: for progress.
        fashion: folder of Fashion-MNIST.
        processes: so many jobs at a time.
        out: folder of finished runs and features.

    Raises:
        ConfigurationError: a data set is missing.
    """
    for path in feature_files(file, out):
        # Imports torch, which no study needs.
        from benchmarks.results.features import features_file

        features_file(path.stem, out)
    jobs = jobs_of(file, fashion=fashion, features=out)
    before = published.get(file.name, {"cells": []})
    taken = by_key(taken_over(before, jobs))
    left = unknown(jobs, taken)
    runs = sum(len(job.arms) for job in left)
    said = f", {len(taken)} published" if taken else ""
    if before["cells"] and not taken:
        said = "; none of these is published of this code, data and figures"
    console.print(f"{file.name}, {file.studies[-1].setting}: {runs} runs{said}", highlight=False)
    finished = open_finished(out, file.name)
    run_jobs(left, finished, engine=LocalEngine(processes), console=console)


def run_missing_peers(
    published: Mapping[str, Any], console: Console, *, fashion: Path, out: Path
) -> None:
    """Run other implementations' rules, where Flower's interpreter is here.

    Args:
        published: studies of whose runs those of this same code count as finished.
        console: for progress.
        fashion: folder of Fashion-MNIST.
        out: folder of finished runs.

    Raises:
        ConfigurationError: a data set is missing.
    """
    jobs = peer_jobs(fashion=fashion)
    taken = by_key(taken_over(published.get(PEERS, {"cells": []}), jobs))
    left = unknown(jobs, taken)
    console.print(f"{PEERS}: {sum(len(job.arms) for job in left)} runs", highlight=False)
    if left and not FLOWER.exists():
        console.print(f"{PEERS} is left out: {FLOWER} is missing; make peers", style="yellow")
        return
    run_peers(left, console, out=out)


def gathered(
    files: Sequence[StudyFile], *, out: Path, fashion: Path, published: Mapping[str, Any]
) -> dict[str, Any]:
    """Every study of which a run is finished here, as it is published.

    Args:
        files: all studies of the page.
        out: folder of finished runs and features.
        fashion: folder of Fashion-MNIST.
        published: studies of whose runs those of this same code count as finished here.
    """
    studies: dict[str, Any] = {}
    for file in files:
        features = feature_files(file, out)
        if all(path.exists() for path in features):
            studies[file.name] = _gathered(
                file.name,
                jobs_of(file, fashion=fashion, features=out),
                asked=file.studies,
                out=out,
                published=published,
                command=f"python -m benchmarks.evidence_results --only {file.name}",
                features=features[0] if features else None,
            )
    studies[PEERS] = _gathered(
        PEERS,
        peer_jobs(fashion=fashion),
        asked=peer_studies(),
        out=out,
        published=published,
        command=f"python -m benchmarks.evidence_results --only {PEERS}",
        features=None,
    )
    return {name: study for name, study in studies.items() if study is not None}


def _gathered(
    name: str,
    jobs: Sequence[Job],
    *,
    asked: Sequence[Study],
    out: Path,
    published: Mapping[str, Any],
    command: str,
    features: Path | None,
) -> dict[str, Any] | None:
    written = out / f"{name}-runs.jsonl"
    if not written.exists():
        return None
    before = published.get(name, {})
    taken = by_key(taken_over(before, jobs))
    runs = known(jobs, open_finished(out, name), taken)
    if not runs:
        return None
    here = datetime.fromtimestamp(written.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return published_study(
        runs,
        asked=asked,
        asked_runs=sum(len(job.arms) for job in jobs),
        command=command,
        newest=max(here, before["newest_run"]) if taken else here,
        features=features,
        data=data_digest(jobs[0]),
        carried_over=before.get("carried_over", []) if taken else [],
    )


def to_publish(
    published: Mapping[str, Any], found: Mapping[str, Any], *, command: str, replaced: bool
) -> dict[str, Any]:
    """What is to stand in ``evidence.json``.

    Where nothing is finished here that is what was published, its summary made anew.

    Raises:
        ConfigurationError: less would be published than before, and nobody asked for that; or
            there is nothing to publish.
    """
    if found:
        whole = found if replaced else merged(published["studies"], found, order=(*ORDER, PEERS))
        return document(whole, command)
    if replaced or not published["studies"]:
        raise ConfigurationError("no run is finished: there is nothing to publish")
    return {**published, "summary": summary_of(published["studies"])}


def write(found: Mapping[str, Any]) -> None:
    """Results, page and plots."""
    results, page = text_of(found), evidence_page(found)
    for folder in (RESULTS.parent, PLOTS):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS, [results.encode()], mode=0o644)
    write_atomically(PAGE, [page.encode()], mode=0o644)
    draw(found, PLOTS)


def quick(console: Console, *, processes: int, out: Path) -> None:
    """Some minutes on digits; ends with 1 where the rules are not in their order."""
    robust, tutorial = (
        cells_of(
            runs_of(
                run_jobs(
                    jobs_of(read_study(STUDIES / f"{name}.toml")),
                    open_finished(out, name),
                    engine=LocalEngine(processes),
                    console=console,
                )
            )
        )
        for name in QUICK
    )
    cells = [*robust, *tutorial]
    broken = [*violations(robust), *tutorial_violations(tutorial)]
    summary = {key: gap["mean"] for key, gap in gaps_of(tutorial, skewed=False).items()}
    result = document({}, _command()) | {"summary": summary, "cells": cells, "violations": broken}
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "quick.json", [text.encode() + b"\n"], mode=0o644)
    for line in broken:
        console.print(line, style="red", highlight=False)
    console.print(f"{len(cells)} cells, {len(broken)} out of order; {out / 'quick.json'}")
    if broken:
        raise typer.Exit(1)


def main(
    *,
    is_quick: Annotated[
        bool, typer.Option("--quick", help="Digits, some minutes; checks the order of the rules.")
    ] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Run nothing; write what is finished.")
    ] = False,
    replaced: Annotated[
        bool,
        typer.Option(
            "--replace", help="Publish what is finished here and nothing else, even if it is less."
        ),
    ] = False,
    continued: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="What is published of this same code and data counts as finished: run the rest.",
        ),
    ] = False,
    only: Annotated[str, typer.Option(help="Names of studies, or peers; all unless given.")] = "",
    seeds: Annotated[int, typer.Option(min=0, help="So many seeds; 0 for the studies'.")] = 0,
    arms: Annotated[str, typer.Option(help="Who aggregates; the studies' unless given.")] = "",
    fashion: Annotated[Path, typer.Option(help="Folder of Fashion-MNIST.")] = FASHION_FOLDER,
    processes: Annotated[int, typer.Option(min=1)] = len(os.sched_getaffinity(0)),
    out: Annotated[Path, typer.Option(help="Folder of finished runs and features.")] = OUT,
) -> None:
    """Measure, and write the page.

    Every run is kept in --out as it ends: start again, and it goes on. What is published is
    replaced study by study, never by less.

    make evidence ARGS='--only robust-n5 --seeds 2' runs a part, as a first look.

    make evidence ARGS=--continue runs what is missing, where no run is kept any more: on another
    machine, say.

    make evidence-check asks whether published figures come out again.
    """
    console = Console()
    try:
        if continued and replaced:
            raise ConfigurationError(
                "--continue adds to what is published, and --replace drops it: choose one"
            )
        if is_quick:
            quick(console, processes=processes, out=out)
            return
        before = read_published(RESULTS)
        taken = before["studies"] if continued else {}
        names = [name for name in only.split(",") if name]
        with_peers = not arms and (not names or PEERS in names)
        wanted = [] if names == [PEERS] else studies_of([n for n in names if n != PEERS])
        if not tables:
            chosen = tuple(ArmName(name) for name in arms.split(",") if name)
            asked = [
                replace(
                    file,
                    seeds=file.seeds[:seeds] if seeds else file.seeds,
                    arms=chosen or file.arms,
                )
                for file in wanted
            ]
            for part in row_by_row(asked):
                run_missing(part, taken, console, fashion=fashion, processes=processes, out=out)
            if with_peers:
                run_missing_peers(taken, console, fashion=fashion, out=out)
        found = gathered(studies_of([]), out=out, fashion=fashion, published=taken)
        write(to_publish(before, found, command=_command(), replaced=replaced))
    except (MatlError, ValueError) as error:
        console.print(str(error), style="red", highlight=False)
        raise typer.Exit(1) from error
    if not found:
        console.print(f"No run is finished in {out}: from what was published", highlight=False)
    console.print(f"Written: {PAGE} and {RESULTS}", highlight=False)


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks.evidence_results", *sys.argv[1:]])


if __name__ == "__main__":
    typer.run(main)
