"""What an administrator puts away of a coordinator's log: expired months, data keys.

Runs where the coordinator's configuration and keys are, all but ``rewrap`` beside the daemon. What
may be put away, and under which signatures, the coordinator's own rules decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from matl.terminal import Json, console, errors_in_one_line, print_json, table
from matl_common.durable import FolderInUseError
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.key_places import (
    create_wrapping_key,
    load_wrapping_key,
    parse_key_place,
)
from matl_common.identity.wrapping import KeyEncryptionKey
from matl_coordinator.config import Config, load_config
from matl_coordinator.ports import LoggedEntry
from matl_coordinator.service.retention import Retention
from matl_coordinator.stopped import stopped
from matl_coordinator.upkeep import opened_retention

DEFAULT_CONFIG: Final = Path("coordinator.toml")
# A month that is none is for whoever typed it to mend.
_WRONG_USE: Final = (ConfigurationError, InvalidInputError)

retention_app = typer.Typer(
    no_args_is_help=True, help="Put away expired months of the log, and replace its key."
)

ConfigFile = Annotated[
    Path,
    typer.Option("--config", "-c", help="The coordinator's TOML file, for its keys and rules."),
]
Database = Annotated[
    str | None,
    typer.Option(
        envvar="MATL_RETENTION_DATABASE",
        help="The database's URL as matl_log_retention. Default: the configuration's.",
    ),
]
Month = Annotated[str, typer.Argument(metavar="MONTH", help="Such as 2019-01, in UTC.")]
Reason = Annotated[str, typer.Option(help="Why; the log keeps it for good.")]


@retention_app.command()
def months(
    *, config: ConfigFile = DEFAULT_CONFIG, database: Database = None, as_json: Json = False
) -> None:
    """List the months that the log still has, and until when each is kept."""
    with _retention(config, database) as retention:
        standings = retention.months()
    if as_json:
        print_json(
            [
                asdict(each.held) | {"kept_until": each.kept_until, "is_expired": each.is_expired}
                for each in standings
            ]
        )
        return
    rows = (
        (
            each.held.month,
            str(each.held.entries),
            f"{each.kept_until:%Y-%m-%d}",
            "may be dropped" if each.is_expired else "",
            "" if each.held.is_readable else "key erased",
        )
        for each in standings
    )
    console().print(table(("Month", "Entries", "Kept until", "Retention", "Remark"), rows))


@retention_app.command()
def drop(
    month: Month, *, reason: Reason, config: ConfigFile = DEFAULT_CONFIG, database: Database = None
) -> None:
    """Drop a month's entries, for ever.

    Its retention must be over, and a quorum of hospitals must have cosigned a checkpoint that
    covers it. Hashes stay, so every proof still verifies; the data keys go as well, so copies
    in backups cannot be read.
    """
    with _retention(config, database) as retention:
        logged = retention.drop_month(month, reason=reason)
    _print_done(f"{month} is dropped", logged)


@retention_app.command()
def erase(
    month: Month, *, reason: Reason, config: ConfigFile = DEFAULT_CONFIG, database: Database = None
) -> None:
    """Erase a month's data keys, so that nobody can read its entries any more.

    Its retention must be over. Leaves stay, and with them what happened when and to whom.
    """
    with _retention(config, database) as retention:
        logged = retention.erase_key(month, reason=reason)
    _print_done(f"The entries of {month} cannot be read any more", logged)


@retention_app.command()
def rewrap(
    *,
    new_key: Annotated[
        str, typer.Option(help="Path or pkcs11: URI of a key that make-key made. Back it up first.")
    ],
    reason: Reason,
    config: ConfigFile = DEFAULT_CONFIG,
    database: Database = None,
) -> None:
    """Replace the key-encryption key; stop the coordinator first.

    All data keys are wrapped anew in one transaction; no leaf and no payload changes. The old
    key opens nothing of this database afterwards, but still opens old backups.
    """
    with errors_in_one_line(_WRONG_USE):
        key = load_wrapping_key(parse_key_place(new_key))
        with _stopped(load_config(config)), _retention(config, database) as retention:
            logged = retention.rewrap_keys(key, reason=reason)
    _print_done(f"Every data key is under key {key.name}, {key.holder}", logged)
    typer.echo(f"Set log.encryption_key to {new_key} before the coordinator starts again.")


@retention_app.command()
def make_key(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="Path of a new file, or a pkcs11: URI.")
    ],
) -> None:
    """Make a key-encryption key, in a file or in a token, and change nothing else.

    A token's PIN is in the file that pin-source names, or in MATL_PKCS11_PIN. The key cannot be
    taken out of its token, so it is backed up as the token is; without it nobody reads the log.
    """
    with errors_in_one_line(_WRONG_USE):
        _print_key(create_wrapping_key(parse_key_place(place)))


@retention_app.command()
def key(*, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Show which key wraps the log's data keys, what holds it, and what that does not promise."""
    with errors_in_one_line(_WRONG_USE):
        _print_key(load_wrapping_key(load_config(config).log_encryption_key))


@contextmanager
def _stopped(config: Config) -> Iterator[None]:
    """See that no coordinator runs meanwhile: one that did would know the old key only.

    Raises:
        FolderInUseError: it is running.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(stopped(config))
        except FolderInUseError as error:
            raise FolderInUseError(
                f"the coordinator of {config.state_dir} is running; stop it first: it would go on "
                "with the old key, which opens nothing afterwards"
            ) from error
        yield


def _print_key(key: KeyEncryptionKey) -> None:
    typer.echo(f"Key {key.name}, {key.holder}")
    for weakness in key.weaknesses:
        typer.echo(f"Warning: {weakness}", err=True)


def _print_done(what: str, logged: LoggedEntry) -> None:
    typer.echo(f"{what}; entry {logged.index} of the log says so.")


@contextmanager
def _retention(config: Path, database: str | None) -> Iterator[Retention]:
    with (
        errors_in_one_line(_WRONG_USE),
        opened_retention(load_config(config), database=database) as retention,
    ):
        yield retention
