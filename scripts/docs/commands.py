"""The reference of a program's commands, as Markdown, from the program itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer


def command_reference(app: typer.Typer, *, program: str) -> str:
    """Every command of ``app``, with its options, each under a heading of its own."""
    command: Any = typer.main.get_command(app)
    return "\n".join(_sections(command, program))


def _sections(command: Any, path: str) -> Iterator[str]:
    subcommands = getattr(command, "commands", {})
    yield f"## {path}\n"
    yield f"```text\n{_usage(command, path, is_group=bool(subcommands))}\n```\n"
    yield f"{_prose(command.help or '')}\n"
    rows = [_row(each) for each in command.params if not getattr(each, "hidden", False)]
    if rows:
        yield "| | | |\n|---|---|---|"
        yield from rows
        yield ""
    for name, each in subcommands.items():
        if not each.hidden:
            yield from _sections(each, f"{path} {name}")


def _usage(command: Any, path: str, *, is_group: bool) -> str:
    words = [path]
    if any(each.param_type_name == "option" for each in command.params):
        words.append("[OPTIONS]")
    for each in command.params:
        if each.param_type_name == "argument":
            words.append(_metavar(each) if each.required else f"[{_metavar(each)}]")
    return " ".join([*words, *(["COMMAND"] if is_group else [])])


def _metavar(parameter: Any) -> str:
    text = str(parameter.metavar or parameter.name).upper()
    return f"{text}..." if parameter.nargs == -1 else text


def _row(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if is_option else [_metavar(parameter)]
    said = [_prose(parameter.help or "").replace("\n", " ")]
    if parameter.required and is_option:
        said.append("Required.")
    shown = parameter.default
    if shown not in (None, False, (), []) and not callable(shown):
        said.append(f"Default: `{getattr(shown, 'value', shown)}`.")
    if parameter.envvar:
        said.append(f"Or `{parameter.envvar}`.")
    taken = "" if getattr(parameter, "is_flag", False) or not is_option else _taken(parameter)
    return f"| {', '.join(f'`{each}`' for each in names)} | {taken} | {_cell(' '.join(said))} |"


def _taken(parameter: Any) -> str:
    """The kind of an option's value, or all there are."""
    shown = str(parameter.metavar or parameter.display_type(None))
    kinds = shown.strip("<>").lower().removesuffix(" range").split("|")
    return ", ".join(f"`{each}`" for each in kinds)


def _prose(text: str) -> str:
    # What comes after a form feed is not for people.
    clean = inspect.cleandoc(text.partition("\f")[0])
    # Literals in the style of docstrings.
    return re.sub(r"(?<!`)``([^`\n]+)``(?!`)", r"`\1`", clean)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").strip()
