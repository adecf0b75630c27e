"""Commands in documentation, and whether a program of ours would take one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from matl import cli
from matl.compliance import commands as compliance
from matl.dashboard import command as dashboard
from matl.deploy import command as deploy
from matl_coordinator import daemon as coordinator
from matl_participant import daemon as participant

ROOT = Path(__file__).parents[2]
APPS: Mapping[str, typer.Typer] = {
    "matl": cli.app,
    "matl-coordinator": coordinator.app,
    "matl-participant": participant.app,
    "deploy_medical_fl.py": deploy.app,
    "verify_hipaa.py": compliance.app,
    "monitor_fl_node.py": dashboard.app,
}
OURS = tuple(APPS)
JOINTS = ";&|()<>"
AS_THE_DAEMON = re.compile(r"\brunuser -u matl -- (?:/opt/matl/bin/)?")


@dataclass(frozen=True, slots=True)
class Shown:
    """A simple command as a page shows it."""

    words: tuple[str, ...]
    is_whole: bool
    """Whether one could type it so; a mention within a sentence may leave things out."""

    @property
    def program(self) -> str:
        words = self.words[1:] if self.words[0] in ("python", "python3") else self.words
        return Path(words[0]).name if words else ""

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.words[2:] if self.words[0] in ("python", "python3") else self.words[1:]


def fenced(text: str) -> list[str]:
    """The scripts of a page."""
    return re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def commands_in(text: str) -> Iterator[Shown]:
    """All commands of fenced scripts, and those of ours that other parts of a page name."""
    text = AS_THE_DAEMON.sub("", text)
    for script in fenced(text):
        for line in _joined(script).splitlines():
            yield from _simple(line, is_whole=True)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in re.findall(r"^ {4,}(\S.*)$", _joined(rest), re.MULTILINE):
        if line.split()[0] in OURS:
            yield from _simple(line, is_whole=True)
    for span in re.findall(r"`([^`]+)`", re.sub(r"^ {4,}.*$", "", rest, flags=re.MULTILINE)):
        if span.split() and span.split()[0] in OURS:
            yield from _simple(" ".join(span.split()), is_whole=False)


def _joined(script: str) -> str:
    return re.sub(r"\\\n\s*", " ", script)


def _simple(line: str, *, is_whole: bool) -> Iterator[Shown]:
    # What another command prints is one word, whatever it is.
    lexer = shlex.shlex(
        re.sub(r"\$\([^()]*\)", "PRINTED", line), posix=True, punctuation_chars=JOINTS
    )
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not set(token) <= set(JOINTS):
            words.append(token)
            continue
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if words:
            yield Shown(tuple(words), is_whole)
        words = []


def refusal(shown: Shown) -> str | None:
    """What is wrong with a command of one of our programs."""
    command = _commands()[shown.program]
    context, rest = None, list(shown.arguments)
    while True:
        context = command.context_class(command, info_name=command.name, parent=context)
        try:
            values, rest, _ = command.make_parser(context).parse_args(rest)
        except Exception as error:  # noqa: BLE001 - of whichever library parses
            return str(error)
        if not hasattr(command, "commands"):
            break
        if not rest:
            return "it names no command" if shown.is_whole else None
        if rest[0] not in command.commands:
            return f"there is no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    if rest:
        return f"too much: {rest}"
    missing = [
        each.name for each in command.params if each.required and values.get(each.name) is None
    ]
    return f"it lacks {missing}" if missing and shown.is_whole else None


@cache
def _commands() -> dict[str, Any]:
    return {program: get_command(app) for program, app in APPS.items()}
