"""What the commands print: tables for people, JSON for machines. Decides nothing."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError, MatlError

EXIT_FAILED: Final = 1
EXIT_WRONG_USE: Final = 2
EXIT_INTERRUPTED: Final = 130
"""By Ctrl-C, as shells have it."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
"""The option of every command that tells something."""

# A table in a file or a pipe is not cut to a terminal's width.
_WIDTH_OF_NO_TERMINAL: Final = 200


def table(columns: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines; without ``columns`` it has no header."""
    found = Table(*(columns or ()), box=None, pad_edge=False, show_header=columns is not None)
    for row in rows:
        found.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    return found


def console() -> Console:
    """Standard output."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(width=_WIDTH_OF_NO_TERMINAL)


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars for whoever waits at a terminal, gone at the end.

    On standard error: what a command prints is another program's to read.
    """
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as bars:
        yield bars


def printable(text: str) -> str:
    """Text that others wrote, which must not steer the terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


@contextmanager
def errors_in_one_line(
    wrong_use: tuple[type[MatlError], ...] = (ConfigurationError,),
) -> Iterator[None]:
    """An error ends the program with one line, and an exit status that tells which kind."""
    try:
        yield
    except (MatlError, OSError) as error:
        typer.echo(f"matl: {printable(_text(error))}", err=True)
        status = EXIT_WRONG_USE if isinstance(error, wrong_use) else EXIT_FAILED
        raise typer.Exit(status) from None


@contextmanager
def verdict_in_one_line() -> Iterator[None]:
    """Like ``errors_in_one_line``, for commands that judge a log.

    Exit status 1 says that the log or proof is bad, and nothing else does; 2 that nothing can be
    said of it.
    """
    try:
        yield
    except (MatlError, OSError) as error:
        typer.echo(f"matl: {printable(_text(error))}", err=True)
        is_bad = isinstance(error, IntegrityError | InvalidInputError)
        raise typer.Exit(EXIT_FAILED if is_bad else EXIT_WRONG_USE) from None


def _text(error: MatlError | OSError) -> str:
    """What went wrong, without the system's number for it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def printable_json(value: object) -> str:
    """Indented JSON whose text cannot steer the terminal."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(map(printable, lines))


def print_json(value: object) -> None:
    """One line of JSON."""
    typer.echo(json.dumps(_plain(value), allow_nan=False))


def _plain(value: Any) -> Any:
    """JSON has neither moments nor numbers that are not finite; those are null."""
    match value:
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return value.isoformat()
    return value
