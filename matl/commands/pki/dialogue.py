"""What these commands read, ask and say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import typer

from matl.terminal import console, print_json, printable, table
from matl_common.errors import ConfigurationError
from matl_common.identity.enrolling import MAX_DOCUMENT_BYTES, for_people

SOFTWARE_HELD: Final = "software-held: whoever can read the file has the key"


def say(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print what was done, for people or for machines."""
    if as_json:
        print_json({key.replace(" ", "_"): value for key, value in facts.items()})
    else:
        console().print(table(None, [(key, in_words(value)) for key, value in facts.items()]))


def in_words(value: object) -> str:
    """A value as people read it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return " ".join(map(str, value)) or "none"
        case dict():
            return "; ".join(f"{key}: {each}" for key, each in value.items())
        case None:
            return "none"
        case _:
            return str(value)


def compare(what: str, digest: str, *, yes: bool) -> None:
    """Have a fingerprint compared by a person, unless it was.

    Raises:
        ConfigurationError: it differs, or nobody looked.
    """
    if yes:
        return
    typer.echo(f"{printable(what)}\n  {for_people(digest)}", err=True)
    question = "Does the other side, over a line that you trust, read out the same?"
    if not typer.confirm(question, err=True):
        raise ConfigurationError("the fingerprints differ, or were not compared; nothing was done")


def read_document(path: Path) -> bytes:
    """Read a request or an answer, and one byte more than either may have.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


def file_to_write(out: Path | None, default: str) -> Path:
    """Where a file goes; nothing is done whose result could not be written.

    Raises:
        ConfigurationError: there is no such folder.
    """
    path = out or Path(default)
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no folder {path.parent} for {path.name}; make it first")
    return path
