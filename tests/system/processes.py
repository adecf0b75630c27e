"""Daemons as child processes whose log lines a test can wait for.

Nothing is left behind: a child is killed by the kernel when the test run dies, however
that happens. Nothing here knows what the daemons do.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 90.0
"""How long a busy machine may take for any one thing; never measured against."""
PR_SET_PDEATHSIG = 1
# Loaded here, since a child between fork and exec must not load libraries.
LIBC = ctypes.CDLL(None)

END_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""Before a command: the kernel kills it when its parent dies.

Not a ``preexec_fn``: that makes Python fork, and gRPC, which tests also use as clients, may bring
the child down before it is a program of its own.
"""

Line = Mapping[str, Any]


class Daemon:
    """One lifetime of one process."""

    def __init__(self, *argv: str, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [*END_WITH_PARENT, sys.executable, *argv],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # Guards _lines; notified with every line and at the end.
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_running():
            self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """Everything it has written so far, for the message of a failed test."""
        with self._changed:
            return "\n".join(self._lines)

    def events(self, event: str, **facts: object) -> list[Line]:
        """The log lines so far with this event and these facts."""
        with self._changed:
            return _matching(self._lines, event, facts)

    def wait_for(self, event: str, *, seconds: float = PATIENCE_SECONDS, **facts: object) -> Line:
        """The first log line with this event and these facts, past or to come."""
        deadline = time.monotonic() + seconds
        seen = 0
        with self._changed:
            while True:
                found = _matching(self._lines[seen:], event, facts)
                if found:
                    return found[0]
                seen = len(self._lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    what = "ended" if self._ended else f"did not say in {seconds:g} s"
                    text = "\n".join(self._lines[-60:])
                    raise AssertionError(f"the process {what}: {event} {facts}\n{text}")
                self._changed.wait(left)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """As a power cut would, for this process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def suspend(self) -> None:
        """Let it do nothing at all, while its connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a suspension."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to drain."""
        self._process.send_signal(signal.SIGTERM)

    def read_again(self) -> None:
        """Have it read again the files that may change while it runs."""
        self._process.send_signal(signal.SIGHUP)

    def wait(self, *, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit status, once it has ended."""
        try:
            status = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process goes on:\n{self.output[-6000:]}") from None
        self._reader.join()
        return status

    def drain(self) -> int:
        """Ask it to stop and wait for its exit status."""
        self.terminate()
        return self.wait()

    def workers(self) -> list[psutil.Process]:
        """Its child processes."""
        return psutil.Process(self.pid).children(recursive=True)

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line.decode(errors="replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def until(condition: Callable[[], object], *, what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Look again and again until something outside this process is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def _matching(lines: Iterable[str], event: str, facts: Mapping[str, object]) -> list[Line]:
    found = []
    for line in lines:
        if event not in line or not line.startswith("{"):
            continue
        parsed = json.loads(line)
        if parsed.get("event") == event and facts.items() <= parsed.items():
            found.append(parsed)
    return found


def end_with_parent() -> None:
    """In the child, before exec: be killed when the parent dies (prctl(2))."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
