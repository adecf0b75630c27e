"""One aggregation in a process of its own, so that its memory is nobody else's.

Reads a job from the command line and prints what it cost. Imports what the coordinator
imports to aggregate, and nothing of the benchmark's that weighs anything.
"""

import json
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.aggregation_runs.updates import ELEMENTS, update_path
from matl_common.ids import NodeId
from matl_coordinator.aggregation import (
    LocalExecutor,
    Row,
    aggregate_chunks,
    measure,
    sketch_rows,
)
from matl_coordinator.aggregation.rows import read_into
from matl_coordinator.core.robust.compiled import compiled_loops
from matl_coordinator.core.robust.gram import PREVIOUS_AGGREGATE, Gram
from matl_coordinator.core.robust.registry import Choice, make_aggregator

MEAN_PASS: Final = "plain_mean_pass"
"""Not a rule: every file is read once and added up in single precision."""
_SPAN: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Job:
    """What to run."""

    folder: str
    rule: str
    pre: tuple[str, ...]
    n: int
    f: int
    root_rows: int
    """Extra rows in the first pass, as many as the coordinator has root gradients."""
    threads: int


def main() -> None:
    """Run the job given as JSON in the first argument."""
    raw = json.loads(sys.argv[1])
    job = Job(**{**raw, "pre": tuple(raw["pre"])})
    if job.rule != MEAN_PASS and make_aggregator(Choice(job.rule), f=job.f).coordinatewise:
        # As the daemon does at start: part of the idle process, not of a round.
        compiled_loops()
    # The peak begins anew (proc_pid_clear_refs(5)): imports are not part of it.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    idle = _memory("VmRSS:")
    load = os.getloadavg()[0]
    started, cpu = time.perf_counter(), time.process_time()
    first_pass = _mean_pass(job) if job.rule == MEAN_PASS else _aggregate(job)
    document = {
        "seconds": time.perf_counter() - started,
        "first_pass_seconds": first_pass,
        "cpu_seconds": time.process_time() - cpu,
        "idle_bytes": idle,
        "peak_bytes": _memory("VmHWM:"),
        "read_from_disk_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_inblock * 512,
        "load": load,
    }
    print(json.dumps(document))


def _aggregate(job: Job) -> float:
    """Both passes; returns the seconds of the first."""
    folder = Path(job.folder)
    rows = [Row(f"n{i}", update_path(folder, i)) for i in range(job.n)]
    aggregator = make_aggregator(Choice(job.rule), [Choice(each) for each in job.pre], f=job.f)
    needs = aggregator.needs
    extras = [Row(f"root-{i}", update_path(folder, job.n + i)) for i in range(job.root_rows)]
    if needs.previous:
        extras.append(Row(PREVIOUS_AGGREGATE, update_path(folder, job.n)))
    started = time.perf_counter()
    gram = measure(
        rows, extras, elements=ELEMENTS, executor=LocalExecutor(job.threads), needs=needs
    )
    if needs.history:
        gram = _with_history(gram, rows, job)
    plan = aggregator(gram)
    seconds = time.perf_counter() - started
    for _ in aggregate_chunks(
        plan, [*rows, *extras], elements=ELEMENTS, executor=LocalExecutor(job.threads)
    ):
        pass
    return seconds


def _with_history(gram: Gram, rows: list[Row], job: Job) -> Gram:
    histories = sketch_rows(rows, elements=ELEMENTS, seed=0, threads=job.threads)
    nodes = [NodeId(row.name) for row in rows]
    return replace(gram, history=histories.inner_products(nodes))


def _mean_pass(job: Job) -> float:
    """The least that any aggregation does: read every file once, and add."""
    paths = [update_path(Path(job.folder), index) for index in range(job.n)]
    files = [FileIO(path) for path in paths]

    def mean(start: int) -> None:
        total = np.zeros(min(_SPAN, ELEMENTS - start), dtype=np.float32)
        row = np.empty_like(total)
        for file in files:
            read_into(file, row, start)
            total += row
        total /= job.n

    with ThreadPoolExecutor(job.threads) as pool:
        list(pool.map(mean, range(0, ELEMENTS, _SPAN)))
    return 0.0


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = [int(line.split()[1]) for line in lines if line.startswith(key)]
    return kilobytes * 1024


if __name__ == "__main__":
    main()
