"""A backup put back where nothing is: verified whole before the first byte is written.

While it is written, ``restore.part/writing`` in ``state_dir`` keeps the coordinator from starting;
what an interrupted restore left is cleared away by the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from sqlalchemy import Engine, make_url

from matl_common.clock import utc_now
from matl_common.durable import fsync_directory, write_atomically
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError, MatlError
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.key_places import load_wrapping_key
from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.ids import parse_digest
from matl_common.tensors import MODEL_SUFFIX
from matl_common.tlog.checkpoint import SignedCheckpoint, open_checkpoint
from matl_common.tlog.disclosure import parse_disclosure
from matl_common.tlog.entry import Entry, parse_entry
from matl_common.tlog.merkle import root_from
from matl_common.tlog.note import VerifierKey
from matl_common.version import __version__
from matl_coordinator.backup import Report
from matl_coordinator.backup_check import CheckedBackup
from matl_coordinator.backup_manifest import DATABASE, Manifest
from matl_coordinator.config import Config
from matl_coordinator.log_identity import load_log_signer
from matl_coordinator.os_account import current_account
from matl_coordinator.ports import CheckpointRecord
from matl_coordinator.service.entries import entry
from matl_coordinator.stopped import stopped
from matl_coordinator.store.anchor import anchor_files, log_anchor
from matl_coordinator.store.appending import append_beside
from matl_coordinator.store.copying import copy_file, make_folders
from matl_coordinator.store.database import create_database_engine, reading
from matl_coordinator.store.files import PRIVATE_FOLDER_MODE
from matl_coordinator.store.migrate import schema_version, upgrade_to_head
from matl_coordinator.store.reader import LogReader
from matl_coordinator.store.snapshot import fill_database, require_empty

_STAGE: Final = "restore.part"
_WRITING: Final = "writing"
_STATE: Final = ("models", "released", "histories", "spool", "log-schema.txt")
"""What of a coordinator is in its ``state_dir``, beside a SQLite database, keys and checkpoints."""

Verify = Callable[[Engine], None]
"""Goes over the log in a database. Raises ``IntegrityError`` where it is not sound."""


class RestoreError(MatlError):
    """The backup was not restored."""


class BackupTooOldError(RestoreError):
    """A signed checkpoint is of more entries than the backup's log has."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A coordinator that can be started."""

    manifest: Manifest
    log_size: int
    """With the entry that tells of it."""
    behind: int
    """How many entries the newest known checkpoint is ahead of the backup."""


def refuse_unfinished(state_dir: Path) -> None:
    """Keep a coordinator from starting on half of a backup.

    Raises:
        ConfigurationError: a restore has begun to write, and not ended.
    """
    if (state_dir / _STAGE / _WRITING).exists():
        raise ConfigurationError(
            f"a restore into {state_dir} was interrupted; run 'matl restore' again"
        )


def restore(
    config: Config,
    backup: CheckedBackup,
    *,
    verify: Verify,
    notes: Sequence[bytes] = (),
    database: str | None = None,
    older: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    report: Report,
) -> Restored:
    """Restore a backup, or only go over it.

    Args:
        config: of the coordinator, which must not be running.
        backup: what ``check_backup`` found sound.
        verify: goes over the log whole, in the backup and again where it was restored to.
        notes: checkpoints that hospitals keep; the coordinator's own is looked at as well.
        database: another user's URL of the database, who may make tables.
        older: accept that a checkpoint is of more entries than the backup's log has.
        replace: put what is in ``state_dir`` aside, in a folder of its own.
        dry_run: write nothing, and only say how far the backup is behind a checkpoint.
        report: told of progress.

    Raises:
        FolderInUseError: the coordinator is running.
        ConfigurationError: something is there already, or the key of the log is not.
        BackupTooOldError: the backup is older than a checkpoint.
        IntegrityError: the log is damaged, or is not the one that was signed.
        RestoreError: a file could not be written.
        StoreError: the database did not confirm, or the checkpoint could not be written.
    """
    url = database or config.database_url
    wrapping_key = _wrapping_key(config, backup.manifest)
    log_key = load_log_signer(config, load_allowlist(config.federation.allowlist)).key
    with ExitStack() as stack:
        if dry_run:
            # Beside a coordinator that runs, and has signed more since.
            stage = Path(stack.enter_context(TemporaryDirectory(prefix="matl-restore-"))) / _STAGE
        else:
            stack.enter_context(stopped(config))
            stage = config.state_dir / _STAGE
        own = log_anchor(config.state_dir).read()
        was_interrupted = (stage / _WRITING).exists()
        if not dry_run:
            _require_room(config, url, was_interrupted=was_interrupted, replace=replace)
        staged = stack.enter_context(_staged_database(backup, stage, keep=was_interrupted))
        newest, behind = _check_log(
            LogReader(staged),
            backup.manifest,
            [open_checkpoint(each, [log_key]) for each in (*notes, *([own] if own else []))],
            log_key=log_key,
            older=older or dry_run,
        )
        verify(staged)
        if dry_run:
            return Restored(backup.manifest, backup.manifest.log_size, behind)
        aside = config.state_dir / f"replaced-{utc_now():%Y%m%dT%H%M%S}"
        try:
            # What an interrupted restore left is its own, for all else was put aside before its
            # mark was written.
            for path in _held(config, url):
                if was_interrupted:
                    _remove(path)
                else:
                    _put_aside(path, aside)
            fsync_directory(config.state_dir)
            write_atomically(stage / _WRITING, [backup.manifest.sums.encode()])
            _write_files(config, backup, report)
            # Last, so that a restore that is done again still knows how far the log has been.
            _replace_checkpoint(config, newest, aside)
        except OSError as error:
            raise RestoreError(
                f"cannot write to {config.state_dir}: {error.strerror}; see that the disk has "
                "room, and run it again"
            ) from error
        _write_database(
            url, staged, backup.manifest, verify, report, was_interrupted=was_interrupted
        )
        written = _restored_entry(backup.manifest, behind=behind)
        logged = append_beside(url, written, log_origin=log_key.name, log_key=wrapping_key)
        (stage / _WRITING).unlink()
    return Restored(backup.manifest, logged.index + 1, behind)


def _wrapping_key(config: Config, manifest: Manifest) -> KeyEncryptionKey:
    place = config.log_encryption_key
    if isinstance(place, Path) and not place.exists():
        raise ConfigurationError(
            f"the backup's entries are under the key-encryption key {manifest.encryption_key}, "
            f"which is in no backup; put it at {place} first"
        )
    key = load_wrapping_key(place)
    if key.name != manifest.encryption_key:
        raise ConfigurationError(
            f"the backup's entries are under the key-encryption key {manifest.encryption_key}, and "
            f"log.encryption_key is {key.name}"
        )
    return key


def _require_room(config: Config, url: str, *, was_interrupted: bool, replace: bool) -> None:
    """See that nothing is there that a restore would have to overwrite."""
    if not (was_interrupted or replace) and (held := _held(config, url)):
        raise ConfigurationError(
            f"{held[0]} is there already; restore into an empty state_dir, or say --replace to "
            "put what is there aside"
        )
    if _sqlite_file(url) is not None:
        return
    engine = create_database_engine(url)
    try:
        with reading(engine) as connection:
            # What an interrupted restore has filled is filled whole.
            if not was_interrupted:
                require_empty(connection)
    finally:
        engine.dispose()


def _sqlite_file(url: str) -> Path | None:
    parsed = make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    return Path(parsed.database) if is_sqlite and parsed.database else None


@contextmanager
def _staged_database(backup: CheckedBackup, stage: Path, *, keep: bool) -> Iterator[Engine]:
    """The backup's database as a copy of this version's tables; gone with the block.

    ``keep`` leaves the mark of a restore that has begun to write.
    """
    copy = stage / DATABASE
    stage.mkdir(mode=PRIVATE_FOLDER_MODE, exist_ok=True)
    for left in stage.iterdir():
        if not (keep and left.name == _WRITING):
            left.unlink()
    try:
        try:
            copy_file(backup.folder / DATABASE, copy)
        except OSError as error:
            raise RestoreError(f"cannot write to {stage}: {error.strerror}") from error
        engine = create_database_engine(f"sqlite:///{copy}")
        try:
            upgrade_to_head(engine)
            yield engine
        finally:
            engine.dispose()
    finally:
        if not (stage / _WRITING).exists():
            shutil.rmtree(stage)


def _check_log(
    reader: LogReader,
    manifest: Manifest,
    known: Sequence[SignedCheckpoint],
    *,
    log_key: VerifierKey,
    older: bool,
) -> tuple[bytes | None, int]:
    """Compare the log with the manifest and with checkpoints; returns its own newest one.

    Raises:
        BackupTooOldError: a checkpoint is of more entries.
        IntegrityError: it is another log.
    """
    size = reader.size()
    root = root_from(size, reader.node).hex()
    if (size, root) != (manifest.log_size, manifest.log_root):
        raise IntegrityError(
            f"the backup's log has {size} entries and the root {root}; its manifest says "
            f"{manifest.log_size} and {manifest.log_root}"
        )
    behind = max((each.checkpoint.size for each in known), default=0) - size
    if behind > 0 and not older:
        raise BackupTooOldError(
            f"the backup's log has {size} entries, and a checkpoint of {size + behind} was signed: "
            "hospitals that cosigned it will refuse a log that went back, and stop. Use a newer "
            "backup; if there is none, see docs/runbooks/restore-drill.md, and say --older"
        )
    for each in known:
        if each.checkpoint.size <= size and (
            root_from(each.checkpoint.size, reader.node) != each.checkpoint.root
        ):
            raise IntegrityError(
                f"the first {each.checkpoint.size} entries of the backup's log are not those of a "
                "checkpoint that was signed: one of the two is of another history"
            )
    return _newest_note(reader.checkpoints(), log_key), max(0, behind)


def _newest_note(records: Sequence[CheckpointRecord], log_key: VerifierKey) -> bytes | None:
    for record in reversed(records):
        try:
            signed = open_checkpoint(record.note, [log_key])
        except (IntegrityError, InvalidInputError):
            # Somebody else's row, which a verification names.
            continue
        if signed.checkpoint.size == record.size:
            return record.note
    return None


def _held(config: Config, url: str) -> list[Path]:
    """What is there of a coordinator, but for its checkpoints."""
    database = _sqlite_file(url)
    files = [config.state_dir / name for name in _STATE]
    if database is not None:
        files += [database.with_name(f"{database.name}{end}") for end in ("", "-wal", "-shm")]
    return [path for path in files if path.is_file() or (path.is_dir() and any(path.iterdir()))]


def _put_aside(path: Path, folder: Path) -> None:
    folder.mkdir(mode=PRIVATE_FOLDER_MODE, exist_ok=True)
    shutil.move(path, folder / path.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _replace_checkpoint(config: Config, newest: bytes | None, aside: Path) -> None:
    """Leave the restored log's own; the coordinator would not start beyond the end of its log."""
    for path in anchor_files(config.state_dir):
        _put_aside(path, aside)
    if newest is not None:
        log_anchor(config.state_dir, daemon=config.daemon).write(newest)


def _write_files(config: Config, backup: CheckedBackup, report: Report) -> None:
    names = [name for name in backup.files if name != DATABASE]
    for number, name in enumerate(names, start=1):
        target = config.state_dir / name
        make_folders(target.parent, below=config.state_dir)
        copy_file(backup.folder / name, target)
        report("files", number, len(names))
    for parent in sorted({(config.state_dir / name).parent for name in names}):
        if parent.parent.name == "released":
            _link_model(config.state_dir, parent)
        fsync_directory(parent)
    write_atomically(config.state_dir / "log-schema.txt", [backup.manifest.schema.encode()])


def _link_model(state_dir: Path, release: Path) -> None:
    """The model that a release is about, unless it was put away before the backup."""
    said = parse_entry(parse_disclosure((release / "entry.json").read_bytes()).entry)
    name = f"{parse_digest(str(said['model']))}{MODEL_SUFFIX}"
    if (state_dir / "models" / name).is_file():
        os.link(state_dir / "models" / name, release / name)


def _write_database(
    url: str,
    staged: Engine,
    manifest: Manifest,
    verify: Verify,
    report: Report,
    *,
    was_interrupted: bool,
) -> None:
    """Fill the database, and go over what it then holds."""
    target = create_database_engine(url)
    try:
        reader = LogReader(target)
        if not (was_interrupted and _holds(target, reader, manifest)):
            fill_database(target, staged, on_progress=lambda done, of: report("database", done, of))
        if not _holds(target, reader, manifest):
            raise IntegrityError(f"the restored log has another root than {manifest.log_root}")
        verify(target)
    finally:
        target.dispose()


def _holds(target: Engine, reader: LogReader, manifest: Manifest) -> bool:
    """Whether a database has the backup's log."""
    with reading(target) as connection:
        if schema_version(connection) is None:
            return False
    size = manifest.log_size
    return reader.size() >= size and root_from(size, reader.node).hex() == manifest.log_root


def _restored_entry(manifest: Manifest, *, behind: int) -> Entry:
    return entry(
        "backup_restored",
        at=utc_now(),
        account=current_account(),
        made_at=manifest.made_at.isoformat(),
        size=manifest.log_size,
        root=manifest.log_root,
        behind=behind,
        made_by=manifest.version,
        version=__version__,
    )
