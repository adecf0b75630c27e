"""``make bench-scaling_aggregation``: passes by threads and Ray, and what larger rounds would cost.

The same updates, in a folder that workers share, for every executor; they take turns. The rates of
one worker go into a model of cost, whose figures are extrapolations and say so. Prints tables and
writes out/bench/scaling_aggregation.json.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.aggregation_runs.updates import (
    ELEMENTS,
    UPDATE_BYTES,
    make_updates,
    remove_updates,
    update_path,
)
from benchmarks.scaling_runs.cost import Cost, Federation, Rates, cost_of
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.ids import RoundId
from matl_common.tensors import hash_chunks
from matl_coordinator.aggregation import (
    Executor,
    LocalExecutor,
    RayExecutor,
    Row,
    aggregate_chunks,
    measure,
)
from matl_coordinator.aggregation.ray_executor import LOCAL_CLUSTER
from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.aggregation.stored import SharedPlace
from matl_coordinator.core.robust.plan import Identity, Plan

WIDE_ROWS: Final = 100
WIDE_ELEMENTS: Final = 1 << 20
LINK_BYTES: Final = 1.25e9
"""Ten gigabits a second: what the model assumes of each machine's network."""
PER_MACHINE: Final = 16
LARGER: Final = (
    (20, ELEMENTS, 2),
    (100, 1_000_000_000, 16),
    (1000, 1_000_000_000, 64),
    (1000, 7_000_000_000, 16),
    (1000, 7_000_000_000, 64),
    (1000, 7_000_000_000, 256),
    (1000, 7_000_000_000, 1024),
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Arm:
    """One executor over one place, and the seconds of its turns."""

    name: str
    executor: Executor
    rows: Sequence[Row]
    geometry: list[float] = field(default_factory=list)
    aggregate: list[float] = field(default_factory=list)

    def turn(self) -> None:
        names = tuple(row.name for row in self.rows)
        plan = Plan(names, np.full((1, len(names)), 1 / len(names)), Identity())
        self.geometry.append(
            seconds(lambda: measure(self.rows, elements=ELEMENTS, executor=self.executor))
        )
        chunks = aggregate_chunks(plan, self.rows, elements=ELEMENTS, executor=self.executor)
        self.aggregate.append(seconds(lambda: sum(len(each) for each in chunks)))

    def rate(self, times: Sequence[float]) -> float:
        """Bytes of updates a second."""
        return len(self.rows) * UPDATE_BYTES / median(times)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def multiply_rate(folder: Path) -> float:
    """Products a second of one thread, at so many rows that little else matters."""
    draws = np.random.default_rng(0)
    rows = []
    for index in range(WIDE_ROWS):
        path = folder / f"wide_{index:03}.f32"
        draws.standard_normal(WIDE_ELEMENTS, dtype=np.float32).tofile(path)
        rows.append(Row(path.name, path))
    times = [seconds(lambda: measure(rows, elements=WIDE_ELEMENTS)) for _ in range(3)]
    for row in rows:
        row.path.unlink()
    return WIDE_ROWS**2 * WIDE_ELEMENTS / median(times)


def add_rate() -> float:
    """Bytes of sums a second that one thread adds to a total of a thousand hospitals."""
    total, part = np.zeros(500_500), np.ones(500_500)

    def add() -> None:
        for _ in range(200):
            np.add(total, part, out=total)

    return 200 * part.nbytes / median([seconds(add) for _ in range(3)])


def run_arms(folder: Path, *, n: int, repeats: int) -> list[Arm]:
    """Every executor over the same updates, in turns."""
    own = [Row(f"n{index}", update_path(folder, index)) for index in range(n)]
    shared_folder = folder / "shared"
    shared_folder.mkdir(exist_ok=True)
    store = SharedStore(
        SharedPlace(f"file://{shared_folder}"), federation="benchmark", study="scaling"
    )
    shared = [
        store.shared(row, RoundId(1), chunk_hashes=b"".join(hash_chunks(row.path))) for row in own
    ]

    def cluster(workers: int) -> RayExecutor:
        return RayExecutor(
            address=LOCAL_CLUSTER, workers=workers, local=LocalExecutor(), stall_seconds=60.0
        )

    try:
        with closing(cluster(1)) as one, closing(cluster(2)) as two:
            arms = [
                Arm("own disk, 1 thread", LocalExecutor(1), own),
                Arm("own disk, 2 threads", LocalExecutor(2), own),
                Arm("shared folder, 1 thread", LocalExecutor(1), shared),
                Arm("shared folder, 2 threads", LocalExecutor(2), shared),
                Arm("shared folder, Ray, 1 worker", one, shared),
                Arm("shared folder, Ray, 2 workers", two, shared),
            ]
            for arm in arms:
                # Files into the page cache, workers into being; not counted.
                replace(arm, geometry=[], aggregate=[]).turn()
            for _ in range(repeats):
                for arm in arms:
                    arm.turn()
            if one.driver_pid is None or two.driver_pid is None:
                raise RuntimeError("a Ray cluster was lost, so its figures would not be Ray's")
            return arms
    finally:
        shutil.rmtree(shared_folder)


def show(console: Console, arms: Sequence[Arm], rates: Rates) -> list[dict[str, object]]:
    """Print both tables; returns the figures of the second."""
    table = Table("", "geometry, GB/s", "weighted mean, GB/s", "against 1 thread, own disk")
    first = arms[0]
    for arm in arms:
        ratios = (
            arm.rate(arm.geometry) / first.rate(first.geometry),
            arm.rate(arm.aggregate) / first.rate(first.aggregate),
        )
        table.add_row(
            arm.name,
            f"{arm.rate(arm.geometry) / 1e9:.2f}",
            f"{arm.rate(arm.aggregate) / 1e9:.2f}",
            f"{ratios[0]:.2f}, {ratios[1]:.2f}",
        )
    console.print(table)
    console.print(
        f"One worker: {rates.read / 1e9:.2f} GB/s read, {rates.multiply / 1e9:.1f} G products/s, "
        f"{rates.add / 1e9:.1f} GB/s of sums. Assumed: {rates.link / 1e9:.2f} GB/s a link."
    )
    table = Table(
        "n", "parameters", "workers", "updates", "receive", "pass 1", "its sums", "pass 2",
        "in all", "bottleneck", title="Extrapolated, not measured",
    )  # fmt: skip
    found: list[dict[str, object]] = []
    for n, d, workers in LARGER:
        federation = Federation(n, d, workers, PER_MACHINE)
        cost: Cost = cost_of(federation, rates)
        table.add_row(
            f"{n:,}", f"{d:,}", f"{workers}", size(federation.round_bytes),
            *(
                duration(each)
                for each in (cost.receive, cost.geometry, cost.sums, cost.aggregate, cost.wall)
            ),
            cost.bottleneck,
        )  # fmt: skip
        found.append(
            {
                **asdict(federation),
                **asdict(cost),
                "wall": cost.wall,
                "bottleneck": cost.bottleneck,
                "is_extrapolation": True,
            }
        )
    console.print(table)
    return found


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e12:.1f} TB" if count >= 1e12 else f"{count / 1e9:.1f} GB"


def duration(count: float) -> str:
    """Seconds for people."""
    if count >= 3600:
        return f"{count / 3600:.1f} h"
    return f"{count / 60:.1f} min" if count >= 60 else f"{count:.1f} s"


@app.command()
def command(
    *,
    n: Annotated[int, typer.Option(min=2, help="Updates.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("out/bench"),
) -> None:
    """Measure executors over updates of the size of ResNet-50, and extrapolate."""
    console = Console()
    folder = out.resolve() / "scaling_updates"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        make_updates(folder, n, on_update=lambda: None)
        arms = run_arms(folder, n=n, repeats=repeats)
        one_thread = arms[2]
        rates = Rates(
            read=one_thread.rate(one_thread.aggregate),
            multiply=multiply_rate(folder),
            add=add_rate(),
            link=LINK_BYTES,
        )
    finally:
        remove_updates(folder)
    larger = show(console, arms, rates)
    document = {
        "at": utc_now().isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "n": n,
        "elements": ELEMENTS,
        "arms": [
            {"name": each.name, "geometry_seconds": each.geometry, "mean_seconds": each.aggregate}
            for each in arms
        ],
        "rates_of_one_worker": asdict(rates),
        "extrapolations": larger,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "scaling_aggregation.json", [text.encode() + b"\n"], mode=0o644)
    console.print(f"Figures: {out / 'scaling_aggregation.json'}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.scaling_aggregation")
