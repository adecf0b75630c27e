"""``make bench-heads``: three private ways to train a head, on the demonstration's images.

The linear head over a public projection, the tutorial's 512 hidden units with the first layer
public, and one-shot noisy least squares: each with its own hyper-parameters, chosen on public
images, federated over five hospitals that add their own noise. Prints a table and writes
out/bench/heads-fundus.json.
"""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.utility.candidates import descents, least_squares
from benchmarks.utility.evidence import CACHE, WEIGHTING, load_data
from benchmarks.utility.mechanisms import Mechanism, federated
from benchmarks.utility.selection import choose
from benchmarks.utility.study import Runs, run
from matl.demo.hospitals import DEMO_PATIENTS, TUTORIAL_PATIENTS
from matl.machine import machine
from matl_common.clock import utc_now
from matl_common.durable import write_atomically

EPSILONS: Final = (0.5, 1.0, 4.0, math.inf)
CANDIDATES: Final[Mapping[str, Sequence[Mechanism]]] = {
    "linear head": descents(),
    "512 hidden units, first layer public": descents(hidden=True),
    "one-shot least squares": least_squares(),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("out/bench"),
    patients: Annotated[
        int,
        typer.Option(min=420, max=TUTORIAL_PATIENTS, help="Of the five hospitals together."),
    ] = DEMO_PATIENTS,
    draws: Annotated[int, typer.Option(min=2, help="Draws of noise for each figure.")] = 10,
    data_set: Annotated[str, typer.Option(help="fundus or fashion.")] = "fundus",
) -> None:
    """Compare the mechanisms. The images are semi-synthetic."""
    console = Console(highlight=False)
    whole = load_data(data_set, share=patients / TUTORIAL_PATIENTS, splits=1, cache=CACHE)
    sizes = whole.plain[0].sizes
    data = replace(whole, patients=sum(sizes), sizes=sizes)
    found: dict[str, list[Runs]] = {name: [] for name in CANDIDATES}
    for name, candidates in CANDIDATES.items():
        for epsilon in EPSILONS:
            best = choose(
                candidates,
                data.plain[0].public,
                sizes=data.sizes,
                weighting=WEIGHTING,
                epsilon=epsilon,
                splits=2,
                draws=1,
            ).best
            found[name].append(
                run(
                    name,
                    best,
                    data.plain,
                    epsilon=epsilon,
                    federation=lambda cohort: federated(
                        cohort.hospitals, WEIGHTING, patients=data.patients
                    ),
                    draws=draws,
                )
            )
    _show(console, found)
    document = {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.heads", *sys.argv[1:]]),
        "measurements": {
            "data_set": data_set,
            "backbone": "efficientnet_lite0",
            "patients": data.patients,
            "weighting": WEIGHTING.value,
            "accuracy_points": {
                name: [_record(runs) for runs in each] for name, each in found.items()
            },
        },
        "summary": {
            f"eps1_points_{name.replace(' ', '_').replace(',', '')}": runs.accuracy.mean
            for name, each in found.items()
            for runs in each
            if runs.epsilon == 1.0
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    path = out / f"heads-{data_set}.json"
    write_atomically(path, [text.encode() + b"\n"], mode=0o644)
    console.print(f"Figures: {path}", soft_wrap=True)


def _record(runs: Runs) -> dict[str, object]:
    return {
        "epsilon": "inf" if math.isinf(runs.epsilon) else runs.epsilon,
        "mechanism": asdict(runs.mechanism),
        "runs": len(runs.all_scores),
        **asdict(runs.accuracy),
    }


def _show(console: Console, found: Mapping[str, Sequence[Runs]]) -> None:
    names = ["∞" if math.isinf(epsilon) else f"{epsilon:g}" for epsilon in EPSILONS]
    table = Table(
        "Mechanism",
        *(f"ε = {name}" for name in names),
        title="Accuracy, %, with 95 % intervals over draws of noise",
        box=box.SIMPLE,
        title_justify="left",
    )
    for name, each in found.items():
        figures = (f"{r.accuracy.mean:.1f} ± {r.accuracy.half_width:.1f}" for r in each)
        table.add_row(name, *figures)
    console.print(table)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.heads")
