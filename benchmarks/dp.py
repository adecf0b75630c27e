"""``make bench-dp``: what exact per-sample clipping costs the ``full`` recipe.

A step of ResNet-50 with GroupNorm without privacy, with Opacus's hooks, with Opacus's ghost
clipping and with ours, at three image sizes. Every measurement has a process of its own, and
the arms take turns. Prints a table and writes out/bench/dp.json.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmarks.clipping.arms import MAX_GRAD_NORM, NETWORK, Arm, Figures, release_seconds
from benchmarks.clipping.report import Run, document, show
from matl_common.durable import write_atomically
from matl_common.errors import MatlError

BATCHES: Final[Mapping[int, int]] = {64: 16, 128: 8, 224: 8}
"""Images that pass through the network together, by pixels a side."""
REPEATS: Final = 3
STEPS: Final = 3
_PROCESS_SECONDS: Final = 900.0
# Between sums of clipped gradients in single precision, where one ReLU may turn over at zero.
_SAME_NORM: Final = 0.02
EXIT_FAILED: Final = 1

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class BenchmarkFailedError(MatlError):
    """The arms did not compute the same, or one did not end, so that figures mean nothing."""


def measure(console: Console, *, sizes: Sequence[int], repeats: int, steps: int) -> Run:
    """Every arm at every size, in turns.

    Raises:
        BenchmarkFailedError: an arm failed, or sums up something else than the others.
    """
    figures: dict[tuple[int, Arm], list[Figures]] = {
        (size, arm): [] for size in sizes for arm in Arm
    }
    busy, start = _busy_seconds(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("measuring", total=repeats * len(figures))
        for _ in range(repeats):
            for (size, arm), found in figures.items():
                progress.update(bar, description=f"{arm.value} at {size} pixels")
                found.append(_measured_apart(arm, size, steps=steps))
                progress.advance(bar)
    busy_cores = (_busy_seconds() - busy) / (time.monotonic() - start)
    _check_same_sums(figures)
    settings = {
        "network": NETWORK,
        "batches": {str(size): BATCHES[size] for size in sizes},
        "max_grad_norm": MAX_GRAD_NORM,
        "repeats": repeats,
        "steps_per_repeat": steps,
        "threads": os.environ.get("OMP_NUM_THREADS", "all cores"),
    }
    return Run(settings, figures, release_seconds(), busy_cores)


def _measured_apart(arm: Arm, size: int, *, steps: int) -> Figures:
    options = ["--batch", str(BATCHES[size]), "--steps", str(steps)]
    argv = [sys.executable, "-W", "ignore", "-m", "benchmarks.clipping.arms", arm, str(size)]
    try:
        done = subprocess.run(
            [*argv, *options],
            capture_output=True,
            text=True,
            timeout=_PROCESS_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().rpartition("\n")[2]
        raise BenchmarkFailedError(f"{arm.value} at {size} pixels failed: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise BenchmarkFailedError(
            f"{arm.value} at {size} pixels took over {_PROCESS_SECONDS:.0f} s; try fewer --steps"
        ) from error
    return Figures(**json.loads(done.stdout))


def _check_same_sums(figures: Mapping[tuple[int, Arm], Sequence[Figures]]) -> None:
    for (size, arm), found in figures.items():
        if arm is Arm.NON_PRIVATE:
            continue
        ours = figures[size, Arm.MIXED][0].gradient_norm
        norm = found[0].gradient_norm
        if not (ours > 0.0 and math.isclose(norm, ours, rel_tol=_SAME_NORM)):
            raise BenchmarkFailedError(
                f"at {size} pixels {arm.value} sums up to {norm:.6g} and mixed to {ours:.6g}"
            )


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


@app.command()
def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("out/bench"),
    size: Annotated[list[int] | None, typer.Option(help="Pixels; several are fine.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Processes for each arm and size.")] = REPEATS,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps in each process.")] = STEPS,
) -> None:
    """Measure the cost of per-sample clipping."""
    console = Console()
    sizes = size or list(BATCHES)
    if unknown := set(sizes) - set(BATCHES):
        raise typer.BadParameter(f"sizes are {', '.join(map(str, BATCHES))}, not {unknown}")
    try:
        run = measure(console, sizes=sizes, repeats=repeats, steps=steps)
    except MatlError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from None
    show(console, run)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document(run), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "dp.json", [text.encode() + b"\n"], mode=0o644)
    console.print(f"Figures: {out / 'dp.json'}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.dp")
