"""What programs and all that they start use of the machine, by the kernel's account.

Samples from a thread; asks the programs nothing.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import psutil

_EVERY_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Usage:
    """All programs at one moment. ``at`` in seconds of Unix time."""

    at: float
    cpu_seconds: Mapping[str, float]
    """Since they began, by program; that of its children, and of those that ended, in it."""
    resident_bytes: Mapping[str, int]


@dataclass(slots=True)
class Watched:
    """Samples programs, each with its children, for the length of a ``with`` block."""

    samples: list[Usage] = field(default_factory=list)
    """Appended by the thread alone."""
    _roots: dict[str, int] = field(default_factory=dict)
    # By process: its program, and the CPU seconds it was last seen with.
    _cpu: dict[tuple[int, float], tuple[str, float]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def add(self, name: str, pid: int) -> None:
        """Watch a program from now on."""
        self._roots[name] = pid

    def __enter__(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            self._sample()

    def _sample(self) -> None:
        resident: dict[str, int] = {}
        for name, pid in list(self._roots.items()):
            for process in _family(pid):
                try:
                    with process.oneshot():
                        key = (process.pid, process.create_time())
                        times = process.cpu_times()
                        resident[name] = resident.get(name, 0) + process.memory_info().rss
                except psutil.Error:
                    continue
                self._cpu[key] = (name, times.user + times.system)
        cpu: dict[str, float] = {}
        for name, seconds in self._cpu.values():
            cpu[name] = cpu.get(name, 0.0) + seconds
        self.samples.append(Usage(time.time(), cpu, resident))


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def cpu_between(samples: list[Usage], start: float, end: float) -> Mapping[str, float]:
    """CPU seconds of each program from one moment to another, between the samples nearest."""
    first, last = (min(samples, key=lambda each: abs(each.at - moment)) for moment in (start, end))
    return {
        name: seconds - first.cpu_seconds.get(name, 0.0)
        for name, seconds in last.cpu_seconds.items()
    }


def peak_between(samples: list[Usage], name: str, start: float, end: float) -> int:
    """Most that a program had resident from one moment to another, in bytes."""
    return max(
        (each.resident_bytes.get(name, 0) for each in samples if start <= each.at <= end),
        default=0,
    )
