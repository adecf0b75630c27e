"""CPU time of a program and all that it starts, whoever waits for whom."""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

import psutil

from benchmarks.program_tree import end_tree
from matl_common.errors import MatlError

_SECONDS_BETWEEN_LOOKS: Final = 0.25


class RunFailedError(MatlError):
    """A program that is measured ended with an error, or did not end."""


def run_counted(
    command: Sequence[str], environment: Mapping[str, str], *, seconds: float
) -> tuple[str, float]:
    """Its last line, and the CPU seconds of its processes, up to a look before each one's end.

    Raises:
        RunFailedError: it failed, or took longer than ``seconds``.
    """
    used: dict[tuple[int, float], float] = {}
    until = monotonic() + seconds
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as program:
        while True:
            with suppress(subprocess.TimeoutExpired):
                said, complained = program.communicate(timeout=_SECONDS_BETWEEN_LOOKS)
                break
            _look(program.pid, used)
            if monotonic() > until:
                end_tree(program.pid)
                raise RunFailedError(f"{' '.join(command[:4])} … did not end in {seconds:.0f} s")
    lines = said.splitlines()
    if program.returncode or not lines:
        raise RunFailedError(f"{' '.join(command[:4])} … failed: {complained.strip()[-800:]}")
    return lines[-1], sum(used.values())


def _look(pid: int, used: dict[tuple[int, float], float]) -> None:
    with suppress(psutil.Error):
        program = psutil.Process(pid)
        for each in (program, *program.children(recursive=True)):
            with suppress(psutil.Error):
                times = each.cpu_times()
                used[each.pid, each.create_time()] = times.user + times.system
