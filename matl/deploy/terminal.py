"""A daemon in a process of its own behind a picture of what it does."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from rich.console import Console

from matl.deploy.progress import watch

# What the parent has done already, and its value.
_DONE: Final = frozenset({"--compliance", "--registry"})


def watched(arguments: Sequence[str], *, title: str, expected: int) -> int:
    """Run the daemon that the arguments ask for, draw what it says, and return its exit status.

    Signals go on to the daemon; it decides what to do, and this ends when it does.
    """
    command = [sys.executable, "-m", "matl.deploy.command", *without_done(arguments), "--plain"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # The terminal's Ctrl-C comes here, and is passed on once.
        start_new_session=True,
    )
    assert process.stderr is not None, "it is a pipe"
    with process.stderr as lines, _passed_on(process):
        watch(lines, Console(stderr=True, highlight=False), title=title, expected=expected)
    return process.wait()


def without_done(arguments: Sequence[str]) -> list[str]:
    """The arguments without those whose work is done."""
    left: list[str] = []
    skip = False
    for each in arguments:
        if skip:
            skip = False
        elif each in _DONE:
            skip = True
        elif each.partition("=")[0] not in _DONE:
            left.append(each)
    return left


@contextmanager
def _passed_on(process: subprocess.Popen[str]) -> Iterator[None]:
    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, pass_on) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
