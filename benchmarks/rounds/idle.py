"""What a coordinator costs while nothing happens, alone and with hospitals that wait.

Hospitals wait as the daemon does: one call open each, asked again when it ends, over connections
of their own.
"""

import time
from dataclasses import dataclass
from typing import Final

from benchmarks.rounds.processes import Watched, cpu_between, peak_between
from benchmarks.rounds.site import COORDINATOR, Site
from benchmarks.rounds.study import times_of, wait
from matl.demo.run import Supervisor

_START_SECONDS: Final = 120.0
_SETTLE_SECONDS: Final = 15.0
"""What is done once after a start is over by then."""


@dataclass(frozen=True, slots=True)
class Idle:
    """A stretch of waiting."""

    hospitals: int
    seconds: float
    cpu_seconds: float
    resident_bytes: int

    @property
    def cores(self) -> float:
        return self.cpu_seconds / self.seconds


def run_idle(site: Site, *, seconds: float, processes: int) -> tuple[Idle, Idle]:
    """Watch the coordinator alone, then with all its hospitals waiting.

    Raises:
        BenchmarkFailedError: it did not start, or somebody died.
    """
    site.write()
    with Supervisor() as supervisor, Watched() as watched:
        supervisor.start([site.coordinator_program()])
        watched.add(COORDINATOR, supervisor.pid(COORDINATOR))
        wait(supervisor, site, lambda: bool(times_of(site, "coordinator_ready")), _START_SECONDS)
        alone = _watch(site, supervisor, watched, hospitals=0, seconds=seconds)
        supervisor.start(site.hospital_programs(processes=processes))
        wait(supervisor, site, lambda: _waiting(site, processes), _START_SECONDS)
        together = _watch(site, supervisor, watched, hospitals=len(site.hospitals), seconds=seconds)
    return alone, together


def _waiting(site: Site, processes: int) -> bool:
    programs = site.hospital_programs(processes=processes)
    told = [
        program.log.read_text(encoding="utf-8").count("participant.data_checked")
        for program in programs
    ]
    return sum(told) == len(site.hospitals)


def _watch(
    site: Site, supervisor: Supervisor, watched: Watched, *, hospitals: int, seconds: float
) -> Idle:
    _pause(site, supervisor, _SETTLE_SECONDS)
    start = time.time()
    _pause(site, supervisor, seconds)
    end = time.time()
    return Idle(
        hospitals,
        end - start,
        cpu_between(watched.samples, start, end)[COORDINATOR],
        peak_between(watched.samples, COORDINATOR, start, end),
    )


def _pause(site: Site, supervisor: Supervisor, seconds: float) -> None:
    over = time.monotonic() + seconds
    wait(supervisor, site, lambda: time.monotonic() >= over, seconds + _START_SECONDS)
