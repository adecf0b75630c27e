"""A coordinator's state as one folder, written beside the daemon: see ``docs/runbooks``.

    manifest.json              what it is, signed with the coordinator's signing key
    SHA256SUMS                 every other file
    database.sqlite            the database at one moment, of SQLite and PostgreSQL alike
    models/<digest>.safetensors
    released/0003/…            entry, proof and policy of each published model
    histories/<round>.histories
    spool/<round>/<node>.update    admitted updates of the round that is open

No key is in it. The folder appears under its name when all of it is durable, or not at all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from matl_common.clock import utc_now
from matl_common.durable import fsync_directory, write_atomically
from matl_common.errors import ConfigurationError, IntegrityError, MatlError
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.key_places import load_wrapping_key
from matl_common.ids import Digest, digest_of, digest_of_file
from matl_common.signing import Signer
from matl_common.tensors import MODEL_SUFFIX
from matl_common.version import __version__
from matl_coordinator.anchor_check import check_anchored
from matl_coordinator.backup_manifest import (
    DATABASE,
    FORMAT,
    MANIFEST,
    SUMS,
    Manifest,
    encode_sums,
    sign_manifest,
)
from matl_coordinator.config import Config
from matl_coordinator.last_backup import note_completed
from matl_coordinator.log_identity import configured_origin
from matl_coordinator.os_account import current_account
from matl_coordinator.ports import State, UpdateStatus
from matl_coordinator.service.entries import entry
from matl_coordinator.store.appending import append_beside
from matl_coordinator.store.copying import copy_file, make_folders
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.files import PRIVATE_FOLDER_MODE
from matl_coordinator.store.histories import SUFFIX as HISTORY_SUFFIX
from matl_coordinator.store.releases import INDEX
from matl_coordinator.store.snapshot import taken_snapshot
from matl_coordinator.store.spool import COMPLETE_SUFFIX

_RELEASE_FILES = ("entry.json", "entry.tlog-proof", "policy", INDEX)

Report = Callable[[str, int, int], None]
"""Told what is under way, how much of it is done, of how much."""


class BackupError(MatlError):
    """The backup was not made, and nothing is left of it."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is durable."""

    folder: Path
    manifest: Manifest
    byte_count: int
    entry: int
    """Of the log, and in the backup: who made it."""


@dataclass(frozen=True, slots=True)
class _File:
    """One file to be copied, and the digest it must have where its name says so."""

    source: Path
    name: str
    named: Digest | None = None


def write_backup(
    config: Config,
    out: Path,
    *,
    with_spool: bool = True,
    report: Report = lambda _, __, ___: None,
) -> Backup:
    """Back a coordinator up, running or not, into a folder that is not there yet.

    Args:
        config: of the coordinator.
        out: the folder.
        with_spool: also the admitted updates of an open round. Without them a restored
            coordinator gives that round up and pauses, and what it cost the hospitals is spent.
        report: told of progress.

    Raises:
        ConfigurationError: the folder is there, there is no database, or a key is missing.
        LogRewrittenError: the database is older than what the coordinator has signed.
        IntegrityError: a model or the log's tree is damaged.
        BackupError: a file could not be written, or went away meanwhile.
        StoreError: the database did not answer.
        TokenError: a key's token cannot be used.
    """
    if out.exists():
        raise ConfigurationError(f"{out} is there already; name a folder that is not")
    _require_database(config)
    signer = load_p256_key(config.identity.signing_key)
    wrapping_key = load_wrapping_key(config.log_encryption_key)
    origin = configured_origin(config)
    check_anchored(config)
    # Before the moment of the snapshot: every checkpoint that they bear witness to is in it.
    releases = list(_releases(config))
    written = entry("backup_begun", at=utc_now(), account=current_account(), version=__version__)
    logged = append_beside(config.database_url, written, log_origin=origin, log_key=wrapping_key)
    with _appearing_folder(out) as folder:
        engine = create_database_engine(config.database_url)
        try:
            with taken_snapshot(engine) as snapshot:
                made_at = utc_now()
                state, head = snapshot.state(), snapshot.log_head()
                # At once: a round that ends replaces them.
                sums = _copy_all(_histories(config, state), folder, report)
                models = snapshot.models()
                snapshot.copy_to(
                    folder / DATABASE, on_progress=lambda done, of: report("database", done, of)
                )
        finally:
            engine.dispose()
        sums[DATABASE] = digest_of_file(folder / DATABASE)
        files = [
            *_models(config, models, state),
            *releases,
            *(_spooled(config, state) if with_spool else ()),
        ]
        sums |= _copy_all(files, folder, report)
        listed = encode_sums(sums)
        write_atomically(folder / SUMS, [listed])
        manifest = Manifest(
            format=FORMAT,
            version=__version__,
            schema=snapshot.schema,
            made_at=made_at,
            federation=config.federation.id,
            study=config.federation.study,
            node=config.federation.node_id,
            log_origin=origin,
            log_size=head.size,
            log_root=head.root,
            encryption_key=wrapping_key.name,
            round=0 if state.round is None else state.round.round_id,
            phase="" if state.round is None else state.round.phase.value,
            has_spool=with_spool,
            sums=digest_of(listed),
        )
        _write_manifest(folder, manifest, signer)
        byte_count = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    try:
        note_completed(config.state_dir, utc_now())
    except OSError as error:
        raise BackupError(
            f"{out} is whole, but {config.state_dir} cannot be told so ({error.strerror}), and an "
            "alert will ask for a backup; run matl backup as the coordinator's account"
        ) from error
    return Backup(out, manifest, byte_count, logged.index)


def _require_database(config: Config) -> None:
    url = make_url(config.database_url)
    # Opening it would make it.
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise ConfigurationError(f"there is no database {url.database} to back up")


def _histories(config: Config, state: State) -> list[_File]:
    folder = config.state_dir / "histories"
    found = sorted(folder.glob(f"*{HISTORY_SUFFIX}")) if folder.is_dir() else []
    newest = 0 if state.round is None else state.round.round_id
    if any(int(path.stem) > newest for path in found):
        raise BackupError("a round ended while the backup began; run it again")
    return [_File(path, f"histories/{path.name}") for path in found]


def _models(config: Config, named: frozenset[Digest], state: State) -> list[_File]:
    """The models that are there; those that the study goes on from have to be."""
    rnd, latest = state.round, state.latest_model
    needed = set() if latest is None else {latest.digest, latest.base}
    if rnd is not None and not rnd.phase.is_final:
        wanted = (rnd.base_model, rnd.candidate, rnd.to_release)
        needed |= {each for each in wanted if each is not None}
    files = [
        _File(config.state_dir / name, name, digest)
        for digest in sorted(named | needed)
        for name in [f"models/{digest}{MODEL_SUFFIX}"]
    ]
    lost = [each.named for each in files if each.named in needed and not each.source.is_file()]
    if lost:
        raise IntegrityError(
            f"the study goes on from model {lost[0]}, and it is not in {config.state_dir}/models; "
            "restore it from another backup"
        )
    # Others may have been put away by limits.keep_models.
    return [each for each in files if each.source.is_file()]


def _releases(config: Config) -> Iterator[_File]:
    """Published proofs; the models beside them are those of the model folder."""
    released = config.state_dir / "released"
    for folder in sorted(released.iterdir()) if released.is_dir() else ():
        if folder.name.isdecimal():
            for name in _RELEASE_FILES:
                yield _File(folder / name, f"released/{folder.name}/{name}")


def _spooled(config: Config, state: State) -> Iterator[_File]:
    rnd = state.round
    if rnd is None or rnd.phase.is_final:
        return
    for update in state.updates:
        if update.status is UpdateStatus.ADMITTED:
            name = f"spool/{rnd.round_id}/{update.node_id}{COMPLETE_SUFFIX}"
            yield _File(config.state_dir / name, name)


def _copy_all(files: list[_File], folder: Path, report: Report) -> dict[str, Digest]:
    """Copy files, durably; returns their digests by name."""
    found: dict[str, Digest] = {}
    for number, each in enumerate(files, start=1):
        target = folder / each.name
        make_folders(target.parent, below=folder)
        try:
            digest = copy_file(each.source, target)
        except FileNotFoundError as error:
            raise BackupError(
                f"{each.source} went away while it was backed up: its round ended; run it again"
            ) from error
        if each.named not in (None, digest):
            raise IntegrityError(
                f"{each.source} has the SHA-256 {digest}; it is damaged: restore it from another "
                "backup"
            )
        found[each.name] = digest
        report("files", number, len(files))
    for parent in {(folder / name).parent for name in found}:
        fsync_directory(parent)
    return found


def _write_manifest(folder: Path, manifest: Manifest, signer: Signer) -> None:
    write_atomically(folder / MANIFEST, [sign_manifest(manifest, signer)])


@contextmanager
def _appearing_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which has its name once the block is left, and is gone on an error.

    What a killed backup left of the same name is cleared away.
    """
    part = out.with_name(f"{out.name}.part")
    try:
        part.mkdir(mode=PRIVATE_FOLDER_MODE, exist_ok=True)
        held = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigurationError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        _hold(held, part)
        for left in part.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield part
            fsync_directory(part)
            part.rename(out)
            fsync_directory(out.parent)
        except BaseException as error:
            with suppress(OSError):
                shutil.rmtree(part)
            if isinstance(error, OSError):
                raise BackupError(
                    f"the backup {out} was not written: {error.strerror}; see that its disk has "
                    "room"
                ) from error
            raise
    finally:
        os.close(held)


def _hold(descriptor: int, part: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigurationError(f"another backup is being written to {part}") from error
    if not part.exists() or not os.path.samestat(os.fstat(descriptor), part.stat()):
        raise ConfigurationError(f"another backup was being written to {part}; look at it first")
