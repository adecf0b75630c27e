"""A backup looked over: whose it is, and whether it is what was backed up. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.identity.held_keys import load_p256_key
from matl_common.ids import Digest, digest_of, digest_of_file
from matl_common.version import __version__
from matl_coordinator.backup import Report
from matl_coordinator.backup_manifest import (
    DATABASE,
    MANIFEST,
    SUMS,
    Manifest,
    open_manifest,
    parse_sums,
)
from matl_coordinator.config import Config
from matl_coordinator.store.migrate import head, revisions


@dataclass(frozen=True, slots=True)
class CheckedBackup:
    """A backup whose signature and digests hold, for this coordinator."""

    folder: Path
    manifest: Manifest
    files: tuple[str, ...]


def check_backup(config: Config, folder: Path, *, report: Report) -> CheckedBackup:
    """Verify a backup's signature and every digest, and that it is this coordinator's.

    Raises:
        ConfigurationError: it is another's, of a newer version, or under another key.
        IntegrityError, InvalidInputError: it is not what was backed up.
        TokenError: a key's token cannot be used.
    """
    signer = load_p256_key(config.identity.signing_key)
    manifest = open_manifest(_read(folder / MANIFEST), signer.public_key)
    named = (manifest.federation, manifest.study, manifest.node)
    ours = (config.federation.id, config.federation.study, config.federation.node_id)
    if named != ours:
        raise ConfigurationError(
            f"the backup is of {' / '.join(named)} (federation / study / coordinator), and the "
            f"configuration of {' / '.join(ours)}"
        )
    if manifest.schema not in revisions():
        raise ConfigurationError(
            f"MATL {manifest.version} wrote this backup, with tables of version {manifest.schema}; "
            f"this is MATL {__version__}, with {head()}: install that version or a newer one"
        )
    listed = _read(folder / SUMS)
    if digest_of(listed) != manifest.sums:
        raise IntegrityError(f"{folder / SUMS} is not the list that the manifest was signed over")
    sums = parse_sums(listed)
    _check_files(folder, sums, report)
    return CheckedBackup(folder, manifest, tuple(sorted(sums)))


def _check_files(folder: Path, sums: Mapping[str, Digest], report: Report) -> None:
    there = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    if strangers := sorted(there - sums.keys() - {MANIFEST, SUMS}):
        raise IntegrityError(f"{folder} holds {strangers[0]}, which is no part of the backup")
    if lost := sorted(sums.keys() - there):
        raise IntegrityError(f"the backup {folder} lacks {lost[0]}")
    for number, (name, digest) in enumerate(sorted(sums.items()), start=1):
        path = folder / name
        if path.is_symlink() or digest_of_file(path) != digest:
            raise IntegrityError(
                f"{path} is not what was backed up: its SHA-256 is another; use another backup"
            )
        report("checking", number, len(sums))
    if DATABASE not in sums:
        raise IntegrityError(f"the backup {folder} holds no database")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path.parent} is no backup: it has no {path.name}") from error
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
