"""A daemon that is started again whenever it dies, as systemd would.

    python -m tests.faults.supervised <plan.json> coordinator <coordinator.toml>
    python -m tests.faults.supervised <plan.json> hospital <participant.toml> <control> <direction>

Every life is a process of its own, forked from one that has loaded the program and begun nothing,
for a start from nothing takes seconds. Ends with the daemon's status once that is neither a
failure nor a kill.
"""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path

from matl_coordinator import daemon as coordinator
from tests.faults.points import Mode, Plan, install
from tests.faults.power import restore
from tests.system import scripted_hospital
from tests.system.processes import end_with_parent

MOST_LIVES = 2000
CRASHED = 70
NEEDS_A_PERSON = 2
STOPPED: list[int] = []
"""The signals by which this process was asked to end."""
PROGRAMS = {"coordinator": coordinator.main, "hospital": scripted_hospital.main}


def main() -> None:
    """Live, die and live again."""
    plan = Plan(**json.loads(Path(sys.argv[1]).read_text()))
    program, arguments = sys.argv[2], sys.argv[3:]
    Path(plan.root).mkdir(parents=True, exist_ok=True, mode=0o700)
    for life in range(1, MOST_LIVES + 1):
        child = os.fork()
        if child == 0:
            _live(plan, program, arguments)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, partial(_hand_on, child))
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        is_cut = restore(Path(plan.root), plan.image)
        told = {"event": "supervised.ended", "life": life, "status": code, "power_cut": is_cut}
        print(json.dumps(told), file=sys.stderr, flush=True)
        # With status 2 a daemon asks for a person, who finds that the disk works again.
        if code not in (1, -signal.SIGKILL) and (code != NEEDS_A_PERSON or Mode(plan.mode).kills):
            sys.exit(code)
        if STOPPED:
            # Who dies while it is asked to stop is not started again.
            sys.exit(0)
        if code > 0:
            # RestartSec: what a daemon ends for may take a moment to pass.
            time.sleep(0.2)
    sys.exit(CRASHED)


def _hand_on(child: int, number: int, _: object) -> None:
    if number != signal.SIGHUP:
        STOPPED.append(number)
    # It may have died a moment ago.
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _live(plan: Plan, program: str, arguments: list[str]) -> None:
    end_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    sys.argv = [program, *(("-c",) if program == "coordinator" else ()), *arguments]
    sys.executable = plan.python or sys.executable
    status = CRASHED
    try:
        install(plan)
        PROGRAMS[program]()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
