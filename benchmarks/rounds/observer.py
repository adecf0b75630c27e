"""Daemons watched from outside: what their logs say, and what the kernel says they use.

Asks the daemons nothing, and decides nothing about what they should do.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import psutil

from matl.demo.federation import Layout
from matl.demo.run import Program, Supervisor, log_tail
from matl.demo.study import COORDINATOR
from matl_common.errors import MatlError
from matl_common.ids import NodeId

_SAMPLE_EVERY_SECONDS: Final = 0.05
_LOOK_EVERY_SECONDS: Final = 0.25
# Written to clear_refs: the peak begins anew (proc_pid_clear_refs(5)).
_RESET_PEAK: Final = "5"


class BenchmarkFailedError(MatlError):
    """The round did not end as a round must, so that its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a daemon's log. ``at`` is in seconds of Unix time."""

    at: float
    node: NodeId
    name: str
    facts: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Sample:
    """The coordinator at one moment, without its worker.

    ``peak_bytes`` is the most that was resident since the sample before, by the kernel's
    own account, so that nothing is missed between two samples.
    """

    at: float
    resident_bytes: int
    anonymous_bytes: int
    peak_bytes: int
    cpu_seconds: float
    worker_cpu_seconds: float
    """Of its worker processes so far."""
    machine_busy_seconds: float
    """Of all cores together, whoever used them."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the run. Phases of hospitals overlap."""

    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Cost:
    """What a phase cost the coordinator."""

    phase: Phase
    cpu_seconds: float
    worker_cpu_seconds: float
    busy_cores: float
    """Of the whole machine, other people's work included."""
    peak_bytes: int


@dataclass(slots=True)
class Observer:
    """Watches the daemons from outside. Asks them nothing."""

    layout: Layout
    supervisor: Supervisor
    on_event: Callable[[Event], None]
    samples: list[Sample] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    worker_peaks: dict[NodeId, int] = field(default_factory=dict)
    """Most memory that a node's worker process ever had resident, in bytes."""
    nodes: list[NodeId] = field(default_factory=list)
    _offsets: dict[NodeId, int] = field(default_factory=dict)
    # CPU seconds of every worker process the coordinator has had.
    _worker_cpu: dict[int, float] = field(default_factory=dict)

    def start(self, programs: Sequence[Program]) -> None:
        """Start daemons, and watch them from now on."""
        self.supervisor.start(programs)
        self.nodes += [program.node for program in programs]

    def until(self, reached: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Watch until ``reached``.

        Raises:
            BenchmarkFailedError: it takes too long, or a daemon dies.
            DaemonFailedError: a daemon cannot be kept running.
        """
        deadline, look_at = time.monotonic() + seconds, 0.0
        while True:
            self._sample()
            if time.monotonic() >= look_at:
                self._look()
                if reached():
                    return
                look_at = time.monotonic() + _LOOK_EVERY_SECONDS
            if time.monotonic() > deadline:
                raise BenchmarkFailedError(f"not within {seconds:g} s: {what}")
            time.sleep(_SAMPLE_EVERY_SECONDS)

    def rest(self, name: str, *, seconds: float) -> Phase:
        """Watch for a while in which nothing is to happen."""
        started = time.time()
        self.until(lambda: time.time() >= started + seconds, seconds=2 * seconds, what=name)
        return Phase(name, started, time.time())

    def first(self, name: str, node: NodeId = COORDINATOR, **facts: object) -> float | None:
        """When a daemon first logged this, in seconds of Unix time."""
        return next(
            (
                event.at
                for event in self.events
                if (event.name, event.node) == (name, node)
                and facts.items() <= dict(event.facts).items()
            ),
            None,
        )

    def _look(self) -> None:
        if deaths := self.supervisor.check():
            node = deaths[0].node
            raise BenchmarkFailedError(f"{node} died:\n{log_tail(self.layout.log(node))}")
        for node in self.nodes:
            self._read_log(node)
            for pid in _children(self.supervisor.pid(node)):
                peak = _memory(pid).get("VmHWM", 0)
                self.worker_peaks[node] = max(self.worker_peaks.get(node, 0), peak)
                if node == COORDINATOR:
                    self._worker_cpu[pid] = _cpu_seconds(pid) or self._worker_cpu.get(pid, 0.0)
        if self.first("round_phase", phase="aborted") is not None:
            raise BenchmarkFailedError("the coordinator aborted the round")

    def _read_log(self, node: NodeId) -> None:
        with self.layout.log(node).open("rb") as file:
            file.seek(self._offsets.get(node, 0))
            while (line := file.readline()).endswith(b"\n"):
                self._offsets[node] = file.tell()
                with suppress(ValueError):
                    self._take(node, json.loads(line))

    def _take(self, node: NodeId, facts: Mapping[str, object]) -> None:
        at = datetime.fromisoformat(str(facts["timestamp"])).timestamp()
        event = Event(at, node, str(facts["event"]), facts)
        self.events.append(event)
        self.on_event(event)

    def _sample(self) -> None:
        pid = self.supervisor.pid(COORDINATOR)
        memory = _memory(pid)
        if "VmHWM" not in memory:
            return
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
            machine = psutil.cpu_times()
            self.samples.append(
                Sample(
                    at=time.time(),
                    resident_bytes=memory["VmRSS"],
                    anonymous_bytes=memory["RssAnon"],
                    peak_bytes=memory["VmHWM"],
                    cpu_seconds=_cpu_seconds(pid),
                    worker_cpu_seconds=sum(self._worker_cpu.values()),
                    machine_busy_seconds=sum(machine) - machine.idle - machine.iowait,
                )
            )


def _memory(pid: int) -> Mapping[str, int]:
    """The kernel's account of a process's memory, in bytes; empty for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    fields = (line.split() for line in text.splitlines())
    return {each[0].rstrip(":"): 1024 * int(each[1]) for each in fields if each[2:] == ["kB"]}


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _at(sample: Sample) -> float:
    return sample.at


def cost_of(phase: Phase, samples: Sequence[Sample]) -> Cost:
    """What the samples say about a phase; the one that ends after it belongs to it."""
    inside = [each for each in samples if phase.start < each.at <= phase.end]
    inside += [each for each in samples if each.at > phase.end][:1]
    # The coordinator starts a moment before its first sample.
    first = max((each for each in samples if each.at <= phase.start), key=_at, default=samples[0])
    last = inside[-1]
    return Cost(
        phase,
        cpu_seconds=last.cpu_seconds - first.cpu_seconds,
        worker_cpu_seconds=last.worker_cpu_seconds - first.worker_cpu_seconds,
        busy_cores=(last.machine_busy_seconds - first.machine_busy_seconds) / (last.at - first.at),
        peak_bytes=max(each.peak_bytes for each in inside),
    )
