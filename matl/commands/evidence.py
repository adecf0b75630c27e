"""``matl audit evidence``: what a hospital's evidence against a log is worth.

Reads files on this machine and nothing else; nobody is asked and nothing is believed but the
keys that are given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from matl.terminal import Json, print_json, printable
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.identity.keys import load_verifier_key, parse_public_key
from matl_common.log_evidence import SHOWS, Finding, Weight, check_evidence, parse_evidence

EXIT_REFUTED, EXIT_WRONG_USE, EXIT_TESTIMONY = 1, 2, 3
_EXIT: Final = {Weight.PROVEN: 0, Weight.TESTIMONY: EXIT_TESTIMONY}


def evidence(
    file: Annotated[Path, typer.Argument(help="From a participant's log-evidence folder.")],
    *,
    log_key: Annotated[
        Path,
        typer.Option("--log-key", help="The log's verifier key, one line (log.vkey)."),
    ],
    coordinator_key: Annotated[
        Path | None,
        typer.Option(
            "--coordinator-key",
            help="The coordinator's public signing key in PEM, for evidence about a receipt.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a hospital's evidence that the log misbehaved, trusting neither of them.

    Take the keys from where you would take them without the evidence, never from whoever
    brought it.

    Exit status: 0 it proves what it says; 3 its signatures hold, and the rest is the hospital's
    word; 1 it does not show what it says; 2 wrong options or an unreadable file.
    """
    try:
        found, told = _check(file, log_key, coordinator_key)
    except (ConfigurationError, InvalidInputError, OSError) as error:
        typer.echo(f"matl: {printable(str(error))}", err=True)
        raise typer.Exit(EXIT_WRONG_USE) from None
    except IntegrityError as error:
        typer.echo(f"matl: REFUTED: {printable(str(error))}", err=True)
        raise typer.Exit(EXIT_REFUTED) from None
    if as_json:
        print_json(told)
    else:
        typer.echo(f"{found.weight.value.upper()}: {printable(found.says)}")
        typer.echo(f"Found by {told['found_by']} at {told['found_at']}. {told['shows']}")
    raise typer.Exit(_EXIT[found.weight])


def _check(
    file: Path, log_key: Path, coordinator_key: Path | None
) -> tuple[Finding, dict[str, str]]:
    parsed = parse_evidence(file.read_bytes())
    found = check_evidence(
        parsed,
        log_key=load_verifier_key(log_key),
        coordinator_key=None
        if coordinator_key is None
        else parse_public_key(coordinator_key.read_bytes()),
    )
    return found, {
        "kind": parsed.kind.value,
        "weight": found.weight.value,
        "says": found.says,
        "shows": SHOWS[parsed.kind],
        "found_by": parsed.node_id,
        "found_at": parsed.found_at.isoformat(),
    }
