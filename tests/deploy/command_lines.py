"""Whether a program would understand a command line, without running it."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer


def parse(programs: Mapping[str, typer.Typer], words: Sequence[str]) -> None:
    """Parse every word as the program does.

    Raises:
        Exception: the program would refuse them, with its own message.
        KeyError: there is no such program.
    """
    program, *rest = words
    # typer brings a click of its own.
    command: Any = typer.main.get_command(programs[program])
    context: Any = None
    while True:
        context = command.make_context(program, list(rest), parent=context)
        # A group parses up to the name of a command, which parses what follows.
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not rest or not hasattr(command, "resolve_command"):
            return
        _, command, rest = command.resolve_command(context, rest)
