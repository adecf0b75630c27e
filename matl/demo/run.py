"""The demonstration's processes: started, watched, started again, drained; never orphaned.

A daemon that dies unasked is started again, as systemd would. Every process is a session
of its own, so that Ctrl-C reaches only the demonstration, which then drains them in order;
and the kernel kills them if the demonstration itself is killed. Decides nothing about the
study and prints nothing.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from matl.demo.federation import Layout, is_attacked
from matl.demo.study import COORDINATOR, Settings
from matl_common.errors import MatlError
from matl_common.ids import NodeId

DRAIN_SECONDS: Final = 25.0
_MAX_RESTARTS: Final = 20
_RESTART_AFTER_SECONDS: Final = 1.0
_TAIL_BYTES: Final = 2000
# A wrong configuration stays wrong, and a halted participant stays halted.
_FINAL_STATUSES: Final = frozenset({2, 3})

DEPLOY: Final = Path(__file__).resolve().parents[2] / "scripts" / "deploy_medical_fl.py"

# Runs before the daemon's own program, in the same process: the kernel kills the daemon
# when the demonstration dies. Its state is durable, so that loses nothing.
_TRAMPOLINE: Final = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the demonstration died while a daemon started")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class DaemonFailedError(MatlError):
    """A daemon cannot be kept running."""


class StopRequestedError(MatlError):
    """Somebody pressed Ctrl-C or sent SIGTERM."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run for a node, and where its output goes."""

    node: NodeId
    argv: tuple[str, ...]
    log: Path


@dataclass(slots=True)
class _Daemon:
    """One program and its present process. Owned by its ``Supervisor``."""

    program: Program
    process: subprocess.Popen[bytes]
    restarts: int = 0
    start_again_at: float | None = None
    ended: bool = False
    """Ended of its own accord, with status 0."""


@dataclass(frozen=True, slots=True)
class Death:
    """A daemon ended although nobody asked it to; it is being started again."""

    node: NodeId
    status: int

    def __str__(self) -> str:
        how = f"status {self.status}"
        if self.status < 0:
            how = signal.Signals(-self.status).name
        return f"{self.node} died ({how}); starting it again"


def daemon_programs(layout: Layout, settings: Settings) -> tuple[Program, ...]:
    """The coordinator's, then those of hospitals A to E."""
    nodes = [COORDINATOR, *(spec.node_id for spec in settings.hospitals)]
    return tuple(Program(node, _argv(layout, settings, node), layout.log(node)) for node in nodes)


def _argv(layout: Layout, settings: Settings, node: NodeId) -> tuple[str, ...]:
    config = str(layout.config(node))
    if is_attacked(settings, node):
        attack = settings.attack.value
        return (sys.executable, "-m", "matl.demo.hostile", "--config", config, "--attack", attack)
    role = "coordinator" if node == COORDINATOR else "participant"
    return (sys.executable, str(DEPLOY), "--role", role, "--config", config)


def free_port() -> int:
    """A port of the loopback interface on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass(slots=True)
class Supervisor:
    """Keeps daemons running for the length of a ``with`` block; leaves none behind."""

    clock: Callable[[], float] = time.monotonic
    _daemons: dict[NodeId, _Daemon] = field(default_factory=dict, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.drain()
        finally:
            self._kill_all()

    @property
    def alive(self) -> frozenset[NodeId]:
        return frozenset(
            node for node, daemon in self._daemons.items() if daemon.process.poll() is None
        )

    def start(self, programs: Iterable[Program]) -> None:
        """Start these programs, which are watched from now on."""
        for program in programs:
            self._daemons[program.node] = _Daemon(program, _start(program))

    def pid(self, node: NodeId) -> int:
        """The id of a daemon's present or last process."""
        return self._daemons[node].process.pid

    def check(self) -> tuple[Death, ...]:
        """Look at every process; start again what died, after a moment.

        Returns:
            Deaths noticed by this call.

        Raises:
            DaemonFailedError: one cannot be kept running; the message ends with its log.
        """
        deaths: list[Death] = []
        for daemon in self._daemons.values():
            if daemon.ended:
                continue
            if daemon.start_again_at is not None:
                if self.clock() >= daemon.start_again_at:
                    daemon.start_again_at = None
                    daemon.process = _start(daemon.program)
                continue
            status = daemon.process.poll()
            if status == 0:
                daemon.ended = True
            elif status is not None:
                deaths.append(self._died(daemon, status))
        return tuple(deaths)

    def drain(self, nodes: Iterable[NodeId] | None = None) -> tuple[NodeId, ...]:
        """Ask daemons to stop, participants before the coordinator, and wait for them.

        Returns:
            Those that had to be killed.
        """
        wanted = set(self._daemons if nodes is None else nodes)
        participants = [d for n, d in self._daemons.items() if n in wanted and n != COORDINATOR]
        coordinator = [d for n, d in self._daemons.items() if n in wanted and n == COORDINATOR]
        return (*_drain_together(participants), *_drain_together(coordinator))

    def _died(self, daemon: _Daemon, status: int) -> Death:
        node = daemon.program.node
        daemon.restarts += 1
        if status in _FINAL_STATUSES or daemon.restarts > _MAX_RESTARTS:
            raise DaemonFailedError(
                f"{node} ended with status {status} and will not be started again; the end of "
                f"{daemon.program.log}:\n{log_tail(daemon.program.log)}"
            )
        daemon.start_again_at = self.clock() + _RESTART_AFTER_SECONDS
        return Death(node, status)

    def _kill_all(self) -> None:
        for daemon in self._daemons.values():
            if daemon.process.poll() is None:
                # Its session has its workers too.
                with suppress(ProcessLookupError):
                    os.killpg(daemon.process.pid, signal.SIGKILL)
                daemon.process.wait()


def log_tail(path: Path) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return "(no log)"


def stop_on_signals() -> None:
    """Turn Ctrl-C and SIGTERM into ``StopRequestedError``, raised in the main thread."""

    def stop(number: int, _: FrameType | None) -> None:
        # A second one, while daemons drain, must not interrupt the draining.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise StopRequestedError(f"stopped by {signal.Signals(number).name}")

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def _start(program: Program) -> subprocess.Popen[bytes]:
    program.log.parent.mkdir(parents=True, exist_ok=True)
    trampoline = (sys.executable, "-c", _TRAMPOLINE, str(os.getpid()))
    with program.log.open("ab") as log:
        return subprocess.Popen(
            (*trampoline, *program.argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _drain_together(daemons: list[_Daemon]) -> tuple[NodeId, ...]:
    running = [daemon for daemon in daemons if daemon.process.poll() is None]
    for daemon in running:
        daemon.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + DRAIN_SECONDS
    killed: list[NodeId] = []
    for daemon in running:
        try:
            daemon.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()
            killed.append(daemon.program.node)
    for daemon in daemons:
        daemon.ended = True
    return tuple(killed)
