"""How a daemon's process ends."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("ending", "status"),
    [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('why')", 1), ("None", 0)],
)
def test_a_process_ends_with_its_programs_status_and_takes_nothing_apart(
    ending: str, status: int
) -> None:
    program = (
        "import atexit, sys\n"
        "from matl_common.ending import run_to_the_end\n"
        "atexit.register(print, 'taken apart')\n"
        "print('said', end='')\n"
        f"run_to_the_end(lambda: {ending})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (status, "said")
