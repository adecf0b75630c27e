"""A program that is measured, and all that it started."""

from contextlib import suppress

import psutil


def end_tree(pid: int) -> None:
    """Kill a program and all that it started, if any of it still runs."""
    with suppress(psutil.Error):
        program = psutil.Process(pid)
        for each in (*program.children(recursive=True), program):
            with suppress(psutil.Error):
                each.kill()
