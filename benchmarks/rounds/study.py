"""A study of several rounds on one machine, and what its rounds came to.

Rounds follow each other at once; a round is from the moment it opens to the moment the next
one does, so that what is done between two rounds is in it.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Final

from benchmarks.rounds.observer import BenchmarkFailedError
from benchmarks.rounds.processes import Usage, Watched, cpu_between, peak_between
from benchmarks.rounds.site import COORDINATOR, Site
from matl.demo.run import Supervisor, log_tail

_START_SECONDS: Final = 120.0
_LOOK_EVERY_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Cost:
    """One round."""

    seconds: float
    cpu_seconds: Mapping[str, float]
    """By program."""
    phase_seconds: Mapping[str, float]
    """``released``: from then until the next round opens."""
    coordinator_peak_bytes: int

    @property
    def whole_cpu_seconds(self) -> float:
        return sum(self.cpu_seconds.values())


@dataclass(frozen=True, slots=True)
class Found:
    """A study's rounds, but for the first, in which everything is done for the first time."""

    hospitals: int
    costs: tuple[Cost, ...]
    first: Cost
    coordinator_peak_bytes: int
    """Over the whole study."""
    hospitals_peak_bytes: int

    @property
    def seconds(self) -> float:
        return median(each.seconds for each in self.costs)

    @property
    def cpu_seconds(self) -> float:
        return median(each.whole_cpu_seconds for each in self.costs)


def run_study(site: Site, *, processes: int, seconds: float) -> Found:
    """Let the study happen, within so many seconds a round.

    Raises:
        BenchmarkFailedError: it did not end as it must.
        DaemonFailedError: a program cannot be kept running.
    """
    site.write()
    with Supervisor() as supervisor, Watched() as watched:
        coordinator = site.coordinator_program()
        supervisor.start([coordinator])
        watched.add(COORDINATOR, supervisor.pid(COORDINATOR))
        wait(supervisor, site, lambda: bool(times_of(site, "coordinator_ready")), _START_SECONDS)
        programs = site.hospital_programs(processes=processes)
        supervisor.start(programs)
        for each in programs:
            watched.add(each.node, supervisor.pid(each.node))

        def is_over() -> bool:
            return len(times_of(site, "model_released")) == site.rounds

        wait(supervisor, site, is_over, _START_SECONDS + seconds * site.rounds)
        time.sleep(0.5)
    return found_in(site, watched.samples)


def wait(supervisor: Supervisor, site: Site, reached: Callable[[], bool], seconds: float) -> None:
    """Look now and then.

    Raises:
        BenchmarkFailedError: it takes too long, or a program dies.
    """
    deadline = time.monotonic() + seconds
    while not reached():
        if deaths := supervisor.check():
            died = deaths[0].node
            raise BenchmarkFailedError(f"{died} died:\n{log_tail(site.log(died))}")
        if times_of(site, "round_phase", phase="aborted") or times_of(site, "study_paused"):
            raise BenchmarkFailedError(f"a round failed:\n{log_tail(site.log(COORDINATOR))}")
        if time.monotonic() > deadline:
            raise BenchmarkFailedError(f"not over within {seconds:g} s; see {site.folder}")
        time.sleep(_LOOK_EVERY_SECONDS)


def times_of(site: Site, event: str, **facts: object) -> list[float]:
    """When the coordinator logged this, in seconds of Unix time."""
    found = []
    for line in site.log(COORDINATOR).read_bytes().splitlines():
        with suppress(ValueError):
            told = json.loads(line)
            if told["event"] == event and facts.items() <= told.items():
                found.append(datetime.fromisoformat(told["timestamp"]).timestamp())
    return found


def found_in(site: Site, samples: list[Usage]) -> Found:
    """What the log and the samples say."""
    phases = {
        phase: times_of(site, "round_phase", phase=phase)
        for phase in ("collecting", "scoring", "aggregating", "evaluating", "released")
    }
    opened = phases["collecting"]
    costs = []
    # After the last round nothing follows.
    for number, (start, end) in enumerate(pairwise(opened)):
        at = [times[number] for times in phases.values()]
        seconds = [after - before for before, after in pairwise((*at, end))]
        costs.append(
            Cost(
                seconds=end - start,
                cpu_seconds=cpu_between(samples, start, end),
                phase_seconds=dict(zip(phases, seconds, strict=True)),
                coordinator_peak_bytes=peak_between(samples, COORDINATOR, start, end),
            )
        )
    first, *others = costs
    over = phases["released"][-1]
    hospitals = [
        sum(size for name, size in each.resident_bytes.items() if name != COORDINATOR)
        for each in samples
    ]
    return Found(
        hospitals=len(site.hospitals),
        costs=tuple(others),
        first=first,
        coordinator_peak_bytes=peak_between(samples, COORDINATOR, 0.0, over),
        hospitals_peak_bytes=max(hospitals),
    )


def remove(site: Site) -> None:
    """Delete everything of a study."""
    shutil.rmtree(site.folder, ignore_errors=True)
