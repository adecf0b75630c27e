"""``make evidence-faults``: studies through kills, full disks, bad links, and what is left of them.

Every cell is one study of three hospitals, real daemons and real sockets; only the training is
scripted. What came of it is compared with an undisturbed one. A cell that has ended is kept in
out/evidence/faults, and not run again as long as the code is the same, unless ``--fresh``. Prints
tables of all cells that are kept and writes
out/evidence/faults.json and a plot of where the kills struck.
"""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import json
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Final

import matplotlib.pyplot as plt
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from matl_common.clock import utc_now
from matl.machine import machine
from matl.sources import sources_hash
from matl_common.durable import write_atomically
from tests.faults.absences import ABSENCES, Absence
from tests.faults.links import LINKS, LargeUpload
from tests.faults.marches import Ending, Verdict, march, undisturbed
from tests.faults.points import Mode
from tests.faults.scenes import SCENES, Scene
from tests.faults.warm_worker import warm_workers
from tests.system.federation import COORDINATOR, HOSPITALS, Material, prepare_material

OUT: Final = Path("out/evidence")
CELLS: Final = OUT / "faults"
PLOT: Final = OUT / "faults.png"
COUNTS: Final = ("different_digest", "log_lost_or_doubled", "epsilon_misspent", "left_over")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all studies share."""

    material: Material
    expected: Ending
    python: str
    """What coordinators that live for seconds start their workers with."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One study, and how to run it."""

    name: str
    run: Callable[[Path, Shared], Mapping[str, Any]]


def _marched(victim: str, mode: Mode, folder: Path, shared: Shared) -> Mapping[str, Any]:
    node = COORDINATOR if victim == "coordinator" else HOSPITALS[0]
    found = march(
        folder, shared.material, shared.expected, victim=node, mode=mode, python=shared.python
    )
    return {
        "victim": victim,
        "mode": mode.value,
        "points": list(found.points),
        "lives": found.lives,
        "starts_by_hand": found.by_hand,
        "seconds": found.seconds,
        **_counts(found.verdict),
    }


def _acted(scene: Scene | Absence | LargeUpload, folder: Path, shared: Shared) -> Mapping[str, Any]:
    found = scene.play(folder, shared.material, shared.expected)
    return {
        "what": scene.what,
        "facts": dict(found.facts),
        "seconds": found.seconds,
        **_counts(found.verdict),
    }


def _counts(verdict: Verdict) -> Mapping[str, Any]:
    return {
        **{key: getattr(verdict, key) for key in COUNTS},
        "findings": list(verdict.findings),
    }


def cells() -> list[Cell]:
    """Every study of a full run, the marches first."""
    marches = [
        Cell(f"{victim}-{mode.name.lower().replace('_', '-')}", partial(_marched, victim, mode))
        for mode in Mode
        for victim in ("coordinator", "hospital")
    ]
    scenes = (*SCENES, *ABSENCES, *LINKS)
    return [*marches, *(Cell(scene.name, partial(_acted, scene)) for scene in scenes)]


@app.command()
def evidence_faults(
    *,
    only: Annotated[
        list[str] | None, typer.Option(help="Cells by the beginning of their names; default: all.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what has been run.")] = False,
    at_once: Annotated[int, typer.Option(min=1, help="Studies at the same time.")] = 2,
) -> None:
    """Put studies through every fault, and compare what came of them.

    Exit status: 0 all came to what an undisturbed study comes to; 1 one did not.
    """
    console = Console(highlight=False)
    wanted = [
        cell for cell in cells() if not only or any(cell.name.startswith(each) for each in only)
    ]
    if not wanted:
        raise typer.BadParameter(f"the cells are {', '.join(cell.name for cell in cells())}")
    if fresh:
        for cell in wanted:
            (CELLS / f"{cell.name}.json").unlink(missing_ok=True)
    CELLS.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in wanted if _kept(cell) is None]
    with tempfile.TemporaryDirectory(prefix="matl-faults-") as scratch:
        if missing:
            _run(console, missing, Path(scratch), at_once=at_once)
    found = {cell.name: kept for cell in cells() if (kept := _kept(cell)) is not None}
    summary = _summary(found)
    _show(console, found)
    _draw(found)
    document = {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.evidence_faults", *sys.argv[1:]]),
        "measurements": found,
        "summary": summary,
    }
    path = OUT / "faults.json"
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, [text.encode()], mode=0o644)
    console.print(f"\n{summary}\nWrote {path} and {PLOT}")
    wrong = any(summary[key] for key in COUNTS) or any(cell.name not in found for cell in wanted)
    raise typer.Exit(int(wrong))


def _kept(cell: Cell) -> dict[str, Any] | None:
    """What came of a cell, if the code that it came of is today's."""
    path = CELLS / f"{cell.name}.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result.get("code") == fingerprint() else None


@cache
def fingerprint() -> str:
    """Of everything that a result may hang on: the product and what puts it through faults."""
    folders = (
        "matl_coordinator",
        "matl_participant",
        "matl_common",
        "tests/faults",
        "tests/system",
    )
    return sources_hash(folders).hexdigest()[:16]


def _run(console: Console, missing: list[Cell], scratch: Path, *, at_once: int) -> None:
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        TimeElapsedColumn(),
    )
    # A process each: daemons are forked from here, and gRPC does not like that beside threads.
    pool = ProcessPoolExecutor(at_once, mp_context=get_context("spawn"))
    with Progress(*columns, console=console) as bars, warm_workers(scratch) as python, pool:
        bar = bars.add_task("the undisturbed study", total=len(missing))
        material = prepare_material(scratch / "material")
        expected = pool.submit(undisturbed, scratch / "undisturbed", material).result()
        shared = Shared(material, expected, python)
        running = {
            pool.submit(_run_cell, cell.name, scratch / cell.name, shared): cell for cell in missing
        }
        for each in as_completed(running):
            cell = running[each]
            bars.update(bar, advance=1, description=cell.name)
            if (error := each.exception()) is not None:
                console.print(f"{cell.name} did not end: {str(error)[-4000:]}", markup=False)
                continue
            result = {
                "date": utc_now().isoformat(timespec="seconds"),
                "code": fingerprint(),
                **each.result(),
            }
            text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
            write_atomically(CELLS / f"{cell.name}.json", [text.encode()], mode=0o644)
            shutil.rmtree(scratch / cell.name, ignore_errors=True)


def _run_cell(name: str, folder: Path, shared: Shared) -> Mapping[str, Any]:
    """Run one study; by its name, because what it does cannot be sent to another process."""
    (cell,) = (each for each in cells() if each.name == name)
    return cell.run(folder, shared)


def _summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    struck = [(each["mode"], len(each["points"])) for each in found.values() if "mode" in each]
    return {
        "kill_points": sum(number for mode, number in struck if Mode(mode).kills),
        "failed_writes": sum(number for mode, number in struck if not Mode(mode).kills),
        "scenes": sum("what" in each for each in found.values()),
        **{key: sum(each[key] for each in found.values()) for key in COUNTS},
    }


def _show(console: Console, found: Mapping[str, Mapping[str, Any]]) -> None:
    def verdict(each: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(each[key]) for key in COUNTS)

    heads = ("other digest", "log lost or doubled", "ε misspent", "left over")
    _table(
        console,
        ("Victim", "At each durable write", "Points", "Lives", *heads, "s"),
        (
            (
                each["victim"],
                each["mode"],
                str(len(each["points"])),
                str(each["lives"]),
                *verdict(each),
                f"{each['seconds']:.0f}",
            )
            for each in found.values()
            if "mode" in each
        ),
    )
    _table(
        console,
        ("What happens", "Seen", *heads, "s"),
        (
            (
                each["what"],
                ", ".join(f"{key} {value}" for key, value in each["facts"].items()),
                *verdict(each),
                f"{each['seconds']:.0f}",
            )
            for each in found.values()
            if "what" in each
        ),
    )
    for name, each in found.items():
        for finding in each["findings"][:20]:
            console.print(f"[red]{name}[/red]: {finding}")


def _table(console: Console, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(*head, box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console.print(table)


def _draw(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Where faults struck, by the kind of what was written."""
    kinds = {
        name: Counter(kind_of(point) for point in each["points"])
        for name, each in found.items()
        if "mode" in each
    }
    if not kinds:
        return
    labels = sorted({kind for each in kinds.values() for kind in each})
    figure, axes = plt.subplots(figsize=(9.0, 0.35 * len(kinds) + 1.8), layout="constrained")
    left = dict.fromkeys(kinds, 0)
    # There are more kinds than colours that come by themselves.
    for label, colour in zip(labels, map(plt.get_cmap("tab20"), range(20)), strict=False):
        widths = [each[label] for each in kinds.values()]
        axes.barh(list(kinds), widths, left=list(left.values()), label=label, color=colour)
        left = {name: left[name] + each[label] for name, each in kinds.items()}
    axes.invert_yaxis()
    axes.set_xlabel("points at which the fault struck")
    axes.legend(fontsize="small", ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(PLOT, dpi=150)
    plt.close(figure)


def kind_of(point: str) -> str:
    """What a fault point writes to."""
    if point.startswith("commit"):
        return "database"
    for part, kind in (
        (".ledger", "ledger"),
        ("/ledger", "ledger"),
        ("/spool", "spool"),
        ("/models", "models"),
        ("/sealed", "sealed update"),
        ("/work", "training result"),
        ("/receipts", "receipt"),
        ("/proofs", "log proof"),
        ("/released", "released model"),
        ("log-", "log's own files"),
    ):
        if part in point:
            return kind
    return "other"


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.evidence_faults")
