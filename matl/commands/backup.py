"""``matl backup`` and ``matl restore``: a coordinator's state on another disk, and back from it.

Both run where the coordinator's configuration and keys are; the coordinator may run during the
first and not during the second. No key is in a backup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import TaskID
from sqlalchemy import Engine

from matl.log.place import configured, read_note, with_data_keys
from matl.log.sources import DatabaseSource
from matl.log.verification import verify_log
from matl.terminal import Json, console, errors_in_one_line, print_json, printable, progress, table
from matl_common.durable import FolderInUseError
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_coordinator.backup import Report, write_backup
from matl_coordinator.backup_check import CheckedBackup, check_backup
from matl_coordinator.backup_manifest import Manifest
from matl_coordinator.config import Config, load_config
from matl_coordinator.core.rounds import Phase
from matl_coordinator.restore import Restored
from matl_coordinator.restore import restore as restore_backup
from matl_coordinator.store.reader import LogReader

DEFAULT_CONFIG: Final = Path("coordinator.toml")

ConfigFile = Annotated[
    Path,
    typer.Option("--config", "-c", help="The coordinator's TOML file, for its state and keys."),
]


def backup(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder that is not there, on another disk.")
    ],
    *,
    config: ConfigFile = DEFAULT_CONFIG,
    without_spool: Annotated[
        bool,
        typer.Option(
            "--without-spool",
            help="Leave out updates of the round that is open. Restored, that round is given up "
            "and the study paused; what it cost hospitals stays spent.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Back a coordinator up while it runs: database, models, published proofs, open round.

    The database is copied as it stands at one moment, from SQLite and PostgreSQL into the same
    form. Every file's SHA-256 is in SHA256SUMS, and the list is signed with the coordinator's
    signing key. OUT appears when it is whole and durable, or not at all. The log tells of it.

    **No key is in it**: keep private keys, certificates, configuration and allow-list apart, and
    above all the key-encryption key, which is named at the end: without it nobody reads the log.

    Exit status: 0 written; 1 it could not be, and nothing is left of it; 2 wrong options or
    configuration.
    """
    with errors_in_one_line(), _reporting() as report:
        made = write_backup(load_config(config), out, with_spool=not without_spool, report=report)
    if as_json:
        print_json(
            asdict(made.manifest)
            | {"folder": str(out), "byte_count": made.byte_count, "entry": made.entry}
        )
        return
    rows = [
        ("Backup", f"{out}, {made.byte_count / 1e6:.1f} MB"),
        *_rows(made.manifest),
        *_open_round(made.manifest),
        ("On record", f"entry {made.entry} of the log"),
        ("Not in it", "private keys, certificates, configuration, allow-list: keep them apart"),
        ("It needs", f"the key-encryption key {made.manifest.encryption_key}, to read the log"),
    ]
    console().print(table(None, rows))


def restore(
    folder: Annotated[
        Path, typer.Argument(metavar="BACKUP", help="A folder that `matl backup` wrote.")
    ],
    *,
    config: ConfigFile = DEFAULT_CONFIG,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="MATL_OWNER_DATABASE",
            help="The database's URL, as a user that may create tables. Default: the "
            "configuration's.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="A hospital's log-checkpoint.txt, to be compared with; may be given several times."
        ),
    ] = None,
    older: Annotated[
        bool,
        typer.Option("--older", help="Go back behind a checkpoint that was signed; see below."),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Put aside what is in state_dir, into replaced-<time>."),
    ] = False,
    damaged: Annotated[
        bool,
        typer.Option(
            "--damaged", help="Restore a log that was damaged when it was backed up, as it was."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Verify the backup, beside a running coordinator too; write nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Restore a coordinator from a backup, where nothing is.

    Before anything is written: the manifest's signature, every file's SHA-256, and the whole log,
    recomputed from its leaves, against the manifest, the coordinator's last checkpoint if that is
    still in state_dir, and those that hospitals keep (`--checkpoint`). Afterwards the log is gone
    over again where it now is. Tables of an earlier version are brought to this one's.

    A backup that is older than a checkpoint is refused: hospitals that cosigned it stop when the
    log goes back. Where there is none newer, read docs/runbooks/restore-drill.md, and then say
    `--older`.

    Exit status: 0 restored; 1 the backup is not sound or it could not be written; 2 wrong options,
    another coordinator's backup, or something is there already.
    """
    with errors_in_one_line(), _reporting() as report:
        loaded = load_config(config)
        notes = [read_note(path) for path in checkpoint or ()]
        checked = check_backup(loaded, folder, report=report)
        told: list[str] = []
        try:
            done = restore_backup(
                loaded,
                checked,
                verify=_verifier(loaded, told.append if damaged else None, report),
                notes=notes,
                database=database,
                older=older,
                replace=replace,
                dry_run=dry_run,
                report=report,
            )
        except FolderInUseError as error:
            raise ConfigurationError(
                f"the coordinator of {loaded.state_dir} is running; stop it first"
            ) from error
    _tell(done, checked, told, dry_run=dry_run, as_json=as_json)


def _tell(
    done: Restored, checked: CheckedBackup, damage: Sequence[str], *, dry_run: bool, as_json: bool
) -> None:
    if as_json:
        facts = {"log_size_now": done.log_size, "behind": done.behind, "dry_run": dry_run}
        print_json(asdict(done.manifest) | facts | {"files": len(checked.files)})
        return
    end = "nothing was written" if dry_run else f"the log has {done.log_size} entries now"
    rows = [
        ("Sound" if dry_run else "Restored", f"{len(checked.files)} files of {checked.folder}"),
        *_rows(done.manifest),
        ("Done", end),
    ]
    if done.behind:
        lost = "are not in it" if dry_run else "are lost"
        rows.append(("Warning", f"{done.behind} entries that were signed {lost}"))
    rows += [("Warning", f"damaged as it was backed up: {each}") for each in dict.fromkeys(damage)]
    console().print(table(None, rows))


def _rows(manifest: Manifest) -> list[tuple[str, str]]:
    stood = f"round {manifest.round}, {manifest.phase}" if manifest.round else "before round 1"
    return [
        ("Study", f"{manifest.study} in {manifest.federation}: {stood}"),
        ("As of", manifest.made_at.isoformat(" ", "seconds")),
        ("Log", f"{manifest.log_size} entries, root {manifest.log_root}"),
        ("Written by", f"MATL {manifest.version}, tables of version {manifest.schema}"),
    ]


def _open_round(manifest: Manifest) -> list[tuple[str, str]]:
    """What becomes of the round that was under way; nothing where none was."""
    if not manifest.phase or Phase(manifest.phase).is_final:
        return []
    if manifest.has_spool:
        return [
            ("Open round", "its admitted updates are in it; what was half received is sent again")
        ]
    return [("Open round", "without updates: restored, it is given up")]


def _verifier(
    config: Config, on_damage: Callable[[str], None] | None, report: Report
) -> Callable[[Engine], None]:
    """Goes over a log as ``matl audit verify`` does, with the coordinator's keys."""

    def verify(engine: Engine) -> None:
        reader = LogReader(engine)
        size, done = reader.size(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report("log", done, size)

        try:
            believed = with_data_keys(configured(config), config, reader)
            verify_log(DatabaseSource(reader), believed, on_progress=advance)
        except (IntegrityError, InvalidInputError) as error:
            if on_damage is None:
                raise
            on_damage(printable(str(error)))

    return verify


@contextmanager
def _reporting() -> Iterator[Report]:
    with progress() as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report
