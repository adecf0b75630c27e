"""The demonstration's processes: kept running, stopped in order, never orphaned."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from matl.demo.federation import Layout
from matl.demo.run import DaemonFailedError, Program, Supervisor, daemon_programs, free_port
from matl.demo.study import COORDINATOR, SUSPECT, Attack, Settings
from matl_common.ids import NodeId

HOSPITAL = NodeId("hospital_a")
# Says that it runs, then waits; on SIGTERM it says which node stopped, and when.
DAEMON = """
import signal, sys, time
order = open(sys.argv[1], "a", buffering=1)
def stop(*_):
    print(sys.argv[2], "stopped", file=order)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print(sys.argv[2], "runs", file=order)
time.sleep(60)
"""

pytestmark = pytest.mark.system


def program(folder: Path, node: NodeId, code: str = DAEMON) -> Program:
    argv = (sys.executable, "-c", code, str(folder / "order"), node)
    return Program(node, argv, folder / node / "daemon.log")


def lines(folder: Path) -> list[str]:
    path = folder / "order"
    return path.read_text().splitlines() if path.exists() else []


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "waited 20 seconds in vain"
        time.sleep(0.02)


def test_daemons_are_drained_participants_first(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        supervisor.start([program(tmp_path, COORDINATOR), program(tmp_path, HOSPITAL)])
        wait_until(lambda: len(lines(tmp_path)) == 2)
    assert lines(tmp_path)[2:] == ["hospital_a stopped", "coordinator stopped"]
    assert not supervisor.alive


@pytest.mark.crash
def test_a_daemon_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        supervisor.start([program(tmp_path, HOSPITAL)])
        wait_until(lambda: len(lines(tmp_path)) == 1)
        first = supervisor.pid(HOSPITAL)
        os.kill(first, signal.SIGKILL)
        deaths: list[str] = []

        def noticed() -> bool:
            deaths.extend(map(str, supervisor.check()))
            return bool(deaths)

        wait_until(noticed)
        assert deaths == ["hospital_a died (SIGKILL); starting it again"]
        wait_until(lambda: not supervisor.check() and len(lines(tmp_path)) == 2)
        assert supervisor.pid(HOSPITAL) != first


def test_the_terminals_ctrl_c_does_not_reach_a_daemon(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        supervisor.start([program(tmp_path, HOSPITAL)])
        wait_until(lambda: len(lines(tmp_path)) == 1)
        assert os.getsid(supervisor.pid(HOSPITAL)) == supervisor.pid(HOSPITAL)


def test_a_daemon_that_ends_in_order_is_left_alone(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        supervisor.start([program(tmp_path, HOSPITAL, "pass")])
        wait_until(lambda: not supervisor.alive)
        assert supervisor.check() == ()
        time.sleep(1.2)
        assert supervisor.check() == ()
        assert not supervisor.alive


@pytest.mark.parametrize("status", [2, 3])
def test_a_wrong_configuration_is_not_tried_again_and_its_log_is_shown(
    tmp_path: Path, status: int
) -> None:
    code = f"import sys; print('the key is missing'); sys.exit({status})"
    with Supervisor() as supervisor:
        supervisor.start([program(tmp_path, HOSPITAL, code)])
        wait_until(lambda: not supervisor.alive)
        with pytest.raises(DaemonFailedError, match="the key is missing"):
            supervisor.check()


def test_an_error_in_the_middle_leaves_no_process(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail_in_the_middle() -> None:
        with Supervisor() as supervisor:
            supervisor.start([program(tmp_path, COORDINATOR), program(tmp_path, HOSPITAL)])
            pids.extend([supervisor.pid(COORDINATOR), supervisor.pid(HOSPITAL)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle()
    assert len(pids) == 2
    assert not any(map(psutil.pid_exists, pids))


@pytest.mark.crash
def test_daemons_die_with_a_demonstration_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path.cwd())!r})
from tests.demo.test_federation_processes import *
with Supervisor() as supervisor:
    supervisor.start([program(Path({str(tmp_path)!r}), HOSPITAL)])
    print(supervisor.pid(HOSPITAL), flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        daemon = psutil.Process(int(parent.stdout.readline()))
    wait_until(lambda: lines(tmp_path) == ["hospital_a runs"])
    parent.kill()
    parent.wait()
    wait_until(lambda: not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE)
    assert lines(tmp_path) == ["hospital_a runs"]


def test_only_an_attacked_hospital_runs_the_hostile_program(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "data")
    for attack in (Attack.NONE, Attack.NAN):
        programs = daemon_programs(layout, Settings(attack=attack))
        assert programs[0].node == COORDINATOR
        hostile = {p.node for p in programs if "matl.demo.hostile" in p.argv}
        assert hostile == (set() if attack is Attack.NONE else {SUSPECT})
        honest = [p for p in programs if p.node not in hostile]
        assert all("deploy_medical_fl.py" in p.argv[1] for p in honest)


def test_a_free_port_can_be_listened_on() -> None:
    assert 1024 <= free_port() < 1 << 16
