"""Faults that hit a federation's processes and links, drawn from a seed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

import psutil

from matl_common.ids import NodeId
from tests.store.proxy import Mode, Proxy
from tests.system.federation import COORDINATOR, Federation
from tests.system.processes import Daemon

_PAUSE_SECONDS: Final = 2.0
# A round is short, and a killed coordinator takes a second or two to start: often enough to
# meet every phase, and seldom enough that most rounds see nothing but a hospital's fault.
_WEIGHTS: Final = {
    "hospital killed": 5,
    "hospital's worker killed": 5,
    "hospital stopped for 2 s": 3,
    "link cut": 5,
    "link silent for 2 s": 3,
    "coordinator killed": 2,
    "coordinator's worker killed": 2,
}


@dataclass(slots=True)
class Processes:
    """The daemons of a federation, each started again after it was killed.

    Every hospital reaches the coordinator through a link of its own.
    """

    federation: Federation
    links: Mapping[NodeId, Proxy]
    running: dict[NodeId, Daemon] = field(default_factory=dict)
    lives: dict[NodeId, int] = field(default_factory=dict)

    def start(self, node: NodeId) -> None:
        """Start a node's daemon; of a coordinator, wait until it answers."""
        self.lives[node] = self.lives.get(node, -1) + 1
        if node == COORDINATOR:
            self.running[node] = self.federation.start_coordinator()
            self.running[node].wait_for("coordinator_ready")
        else:
            address = f"127.0.0.1:{self.links[node].port}"
            # A hospital killed while it trains pays again; with one attempt it would sit the round
            # out, which waits for all.
            self.running[node] = self.federation.start_scripted(
                node, address=address, attempts_per_round=10
            )

    def kill(self, node: NodeId) -> None:
        """SIGKILL, and a new start."""
        self.running[node].kill()
        self.start(node)

    def end(self) -> None:
        """SIGKILL for every daemon that still runs."""
        for daemon in self.running.values():
            if daemon.is_running():
                daemon.kill()

    def kill_worker(self, node: NodeId) -> None:
        """SIGKILL for its child processes; the daemon starts others."""
        for worker in self.running[node].workers():
            try:
                worker.kill()
            except psutil.NoSuchProcess:
                continue


def fault_names() -> tuple[str, ...]:
    """Every fault there is."""
    return tuple(_WEIGHTS)


def draw_fault(chance: Random, hospitals: tuple[NodeId, ...]) -> tuple[str, NodeId]:
    """A fault, and the hospital it hits if it hits one."""
    (name,) = chance.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))
    return name, chance.choice(hospitals)


def inflict(name: str, node: NodeId, processes: Processes) -> None:
    """Do it; returns when what was to come back has been started."""
    acts: Mapping[str, Callable[[], None]] = {
        "hospital killed": lambda: processes.kill(node),
        "hospital's worker killed": lambda: processes.kill_worker(node),
        "hospital stopped for 2 s": lambda: _stop_for_a_while(processes.running[node]),
        "link cut": processes.links[node].cut,
        "link silent for 2 s": lambda: _silence(processes.links[node]),
        "coordinator killed": lambda: processes.kill(COORDINATOR),
        "coordinator's worker killed": lambda: processes.kill_worker(COORDINATOR),
    }
    acts[name]()


def _stop_for_a_while(daemon: Daemon) -> None:
    process = psutil.Process(daemon.pid)
    process.send_signal(signal.SIGSTOP)
    time.sleep(_PAUSE_SECONDS)
    process.send_signal(signal.SIGCONT)


def _silence(link: Proxy) -> None:
    link.mode = Mode.SILENT
    time.sleep(_PAUSE_SECONDS)
    link.mode = Mode.FORWARD
    # What was swallowed cannot be sent again on the same connection.
    link.cut()
