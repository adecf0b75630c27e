import subprocess
import sys

import psutil

from benchmarks.program_tree import end_tree

PROGRAM = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


def test_a_program_is_ended_with_all_that_it_started() -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        child = psutil.Process(int(program.stdout.readline()))
        end_tree(program.pid)
        assert program.wait(30) != 0
    assert not psutil.wait_procs([child], timeout=30)[1]
    # Of a program that is over there is nothing to end.
    end_tree(program.pid)
