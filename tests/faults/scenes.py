"""Faults of what is around the daemons: disks, clocks, names, certificates, and signals.

A scene is one study with such a fault in it. What came of it is judged as a march is. Links are
in ``links``, and what a coordinator may miss for a while in ``absences``.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from matl_common.identity.keys import load_private_key
from matl_common.ids import NodeId
from tests.faults.elsewhere import Surroundings, start_elsewhere
from tests.faults.marches import (
    PATIENCE_SECONDS,
    Ending,
    Verdict,
    finish,
    found,
    judge,
    start,
    start_all,
)
from tests.faults.points import Mode, Plan
from tests.system.federation import COORDINATOR, HOSPITALS, Federation, Material
from tests.system.processes import Daemon, until
from tests.system.renewing import replace_files

Facts = Mapping[str, object]
VICTIM, *OTHERS = HOSPITALS
PHASES = ("collecting", "scoring", "aggregating", "evaluating")
DISK_MEGABYTES = 48
NAME = "coordinator.hospital-a.test"
NOWHERE = "(?!)"


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a scene."""

    facts: Facts
    """What shows that the fault was there, and what it cost."""
    verdict: Verdict
    seconds: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A fault, and how to put a study through it."""

    name: str
    what: str
    disturb: Callable[[Federation, ExitStack], Facts]
    """Runs the study to its end; every daemon that it starts is on the stack."""

    def play(self, folder: Path, material: Material, expected: Ending) -> Played:
        """Run the study and judge it."""
        began = time.monotonic()
        federation = found(folder, material)
        with ExitStack() as running:
            facts = self.disturb(federation, running)
        seconds = round(time.monotonic() - began, 1)
        return Played(facts, judge(federation, expected, struck={}), seconds)


def drained_coordinator(federation: Federation, running: ExitStack) -> Facts:
    """SIGTERM in every phase that is still there when it comes."""
    daemons = start_all(federation, running)
    drained = 0
    for number, phases in ((1, PHASES[:2]), (2, PHASES[2:])):
        for phase in phases:
            daemons[COORDINATOR].wait_for("round_phase", round=number, phase=phase)
            assert daemons[COORDINATOR].drain() == 0
            drained += 1
            daemons[COORDINATOR] = running.enter_context(federation.start_coordinator())
            ready = daemons[COORDINATOR].wait_for("coordinator_ready")
            if ready["rounds_released"] == number:
                break
    finish(federation, daemons)
    return {"drained": drained}


def drained_hospital(federation: Federation, running: ExitStack) -> Facts:
    """SIGTERM while it trains, which it finishes, and before it sends."""
    federation.control(VICTIM).write_text("wait")
    daemons = start_all(federation, running)
    until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
    daemons[VICTIM].terminate()
    daemons[VICTIM].wait_for("participant.draining")
    federation.control(VICTIM).unlink()
    assert daemons[VICTIM].wait() == 0
    daemons[VICTIM] = running.enter_context(start(federation, VICTIM))
    daemons[VICTIM].wait_for("participant.update_admitted", round=1)
    with suppress(AssertionError):
        daemons[VICTIM].wait_for("participant.update_sealed", round=2)
        assert daemons[VICTIM].drain() == 0
    daemons[VICTIM] = running.enter_context(start(federation, VICTIM))
    finish(federation, daemons)
    charged = len(federation.account(VICTIM).attempts)
    assert charged == 2, f"{charged} attempts charged"
    return {"drained": 2, "charges": charged}


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own at ``folder``; needs root."""
    folder.mkdir(mode=0o700)
    size = f"size={DISK_MEGABYTES}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take what room a disk has left."""
    balloon = disk / "balloon"
    with balloon.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    return balloon


def full_disks(federation: Federation, running: ExitStack) -> Facts:
    """The coordinator's disk and a hospital's, full for 15 s in the middle of a round."""
    nodes = (COORDINATOR, VICTIM)
    with ExitStack() as mounted:
        disks = {
            node: mounted.enter_context(small_disk(federation.folder / f"{node}.disk"))
            for node in nodes
        }
        # The state folders are on the disks, under the names that everything else knows.
        for node, disk in disks.items():
            (disk / "state").mkdir(mode=0o700)
            (federation.folder / node).symlink_to(disk / "state")
        federation.control(VICTIM).write_text("wait")
        with ExitStack() as inside:
            daemons = start_all(
                federation, inside, {node: kept_alive(federation, node) for node in nodes}
            )
            until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
            daemons[COORDINATOR].wait_for("update_admitted", node=OTHERS[0], round=1)
            balloons = [fill(disk) for disk in disks.values()]
            federation.control(VICTIM).unlink()
            time.sleep(15.0)
            for balloon in balloons:
                balloon.unlink()
            finish(federation, daemons)
            lives = {
                f"lives of {node}": len(daemons[node].events("supervised.ended")) for node in nodes
            }
        for node, disk in disks.items():
            (federation.folder / node).unlink()
            shutil.copytree(disk / "state", federation.folder / node)
    charged = len(federation.account(VICTIM).attempts)
    return {"seconds": 15, **lives, "charges of 2 rounds": charged}


def kept_alive(federation: Federation, node: NodeId) -> Plan:
    """Nothing strikes, but whoever ends with a failure is started again."""
    return Plan(
        root=str(federation.folder / node),
        mode=Mode.KILL_BEFORE,
        visited=str(federation.folder / f"{node}.visited"),
        only=NOWHERE,
    )


def jumping_clocks(federation: Federation, running: ExitStack) -> Facts:
    """Clocks jump in both rounds, beyond a round's deadline only where that has to be harmless."""
    clocks = {node: federation.folder / f"{node}.clock" for node in (COORDINATOR, *HOSPITALS)}

    def set_clocks(**ahead: float) -> None:
        for node, file in clocks.items():
            new = file.with_suffix(".new")
            new.write_text(str(ahead.get(node, 0.0)))
            new.rename(file)

    set_clocks()
    federation.control(VICTIM).write_text("wait")
    daemons: dict[NodeId, Daemon] = {}
    for node in (COORDINATOR, *HOSPITALS):
        surroundings = Surroundings(clock=str(clocks[node]))
        daemons[node] = running.enter_context(start_elsewhere(federation, node, surroundings))
        if node == COORDINATOR:
            daemons[node].wait_for("coordinator_ready")
    until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
    set_clocks(coordinator=240.0, hospital_a=240.0, hospital_b=-1800.0)
    federation.control(VICTIM).unlink()
    daemons[VICTIM].wait_for("participant.update_admitted", round=1)
    set_clocks(coordinator=-240.0, hospital_a=-1800.0, hospital_b=120.0)
    finish(federation, daemons)
    return {"coordinator": "+240 s, -240 s", "hospitals": "+240 s, -1800 s"}


def lost_names(federation: Federation, running: ExitStack) -> Facts:
    """The coordinator moves to another address while its name cannot be looked up for 20 s."""
    hosts = federation.folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {NAME}\n")
    there = Surroundings(hosts=str(hosts))
    federation.control(VICTIM).write_text("wait")
    daemons = {COORDINATOR: running.enter_context(federation.start_coordinator())}
    daemons[COORDINATOR].wait_for("coordinator_ready")
    for node in HOSPITALS:
        address = f"{NAME}:{federation.port}"
        daemons[node] = running.enter_context(
            start_elsewhere(federation, node, there, address=address)
        )
    until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
    hosts.write_text("127.0.0.1 localhost\n")
    daemons[COORDINATOR].kill()
    federation.control(VICTIM).unlink()
    daemons[VICTIM].wait_for("participant.retrying")
    time.sleep(20.0)
    retries = len(daemons[VICTIM].events("participant.retrying"))
    moved = replace(
        federation,
        sections={
            "listen": {
                "address": f"127.0.0.2:{federation.port}",
                "metrics": f"127.0.0.1:{federation.metrics_port}",
            }
        },
    )
    daemons[COORDINATOR] = running.enter_context(moved.start_coordinator())
    hosts.write_text(f"127.0.0.1 localhost\n127.0.0.2 {NAME}\n")
    began = time.monotonic()
    daemons[VICTIM].wait_for("participant.update_admitted", round=1, seconds=PATIENCE_SECONDS)
    back = round(time.monotonic() - began, 1)
    for node in HOSPITALS:
        assert daemons[node].wait(seconds=PATIENCE_SECONDS) == 0
    assert daemons[COORDINATOR].drain() == 0
    return {"seconds": 20, "retries": retries, "admitted after": f"{back} s"}


def expired_certificate(federation: Federation, running: ExitStack) -> Facts:
    """A hospital's certificate ends while it trains; a new one comes 10 s after it was refused."""
    federation.control(VICTIM).write_text("wait")
    daemons = start_all(federation, running)
    until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
    key = load_private_key(federation.keys[VICTIM].tls.private_key)
    replace_files(federation, VICTIM, key, valid_for=timedelta(seconds=6))
    daemons[VICTIM].wait_for("participant.tls_renewed")
    time.sleep(7.0)
    daemons[COORDINATOR].kill()
    daemons[COORDINATOR] = running.enter_context(federation.start_coordinator())
    daemons[COORDINATOR].wait_for("coordinator_ready")
    federation.control(VICTIM).unlink()
    daemons[VICTIM].wait_for("participant.retrying")
    time.sleep(10.0)
    retries = len(daemons[VICTIM].events("participant.retrying"))
    assert not daemons[VICTIM].events("participant.update_admitted")
    replace_files(federation, VICTIM, key)
    finish(federation, daemons)
    return {"expired for": "10 s", "retries": retries}


SCENES: tuple[Scene, ...] = (
    Scene(
        "drain-coordinator", "SIGTERM to the coordinator, phase after phase", drained_coordinator
    ),
    Scene(
        "drain-hospital", "SIGTERM to a hospital that trains, and one that sends", drained_hospital
    ),
    Scene("full-disks", "the disks of coordinator and hospital full in mid-round", full_disks),
    Scene("clocks", "clocks jump ahead in one round, back in the next", jumping_clocks),
    Scene("names", "name lookup fails, and the coordinator's address changes", lost_names),
    Scene("certificate", "a certificate expires in mid-round", expired_certificate),
)
