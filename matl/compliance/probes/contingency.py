"""164.308(a)(7): the newest backup, restored where it does no harm, and compared."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Engine

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.site import Site, at_coordinator
from matl.log.place import configured, with_data_keys
from matl.log.sources import DatabaseSource
from matl.log.verification import verify_log
from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.tlog.merkle import root_from
from matl_coordinator.backup_check import check_backup
from matl_coordinator.backup_manifest import MANIFEST
from matl_coordinator.config import Config
from matl_coordinator.restore import RestoreError, restore
from matl_coordinator.store.anchor import log_anchor
from matl_coordinator.store.reader import LogReader


def restored(site: Site) -> Outcome:
    """Restore the newest backup into a scratch folder and database, and compare the logs."""
    here = at_coordinator(site)
    newest = _newest(here.registry.places.backups)
    began = time.monotonic()
    try:
        checked = check_backup(here.config, newest.folder, report=_silent)
        with TemporaryDirectory(
            prefix="matl-restore-drill-", dir=here.registry.places.scratch
        ) as scratch:
            made = restore(
                _scratch_config(here.config, Path(scratch)),
                checked,
                verify=lambda engine: _verify(engine, here.config),
                notes=[note for note in (log_anchor(here.state_dir).read(),) if note],
                older=True,
                report=_silent,
            )
    except (IntegrityError, InvalidInputError, RestoreError) as error:
        raise BrokenControlError(
            f"the newest backup, {newest.folder.name}, cannot be restored: {error}",
            "make another at once: matl backup",
        ) from error
    manifest = made.manifest
    size = here.log.reader.size()
    now = root_from(manifest.log_size, here.log.reader.node).hex() if size else ""
    if now != manifest.log_root:
        raise BrokenControlError(
            f"the log of {newest.folder.name} is not the beginning of the one that runs",
            "find out which of them hospitals have cosigned: matl audit verify --checkpoint",
        )
    age = here.now - manifest.made_at
    return passed(
        f"{newest.folder.name}, {age.days} days old, restored with {len(checked.files)} files in "
        f"{time.monotonic() - began:.1f} s: its {manifest.log_size} entries are the first of the "
        f"{size} that the log has, root {manifest.log_root[:16]}…"
    )


@dataclass(frozen=True, slots=True)
class _Backup:
    folder: Path
    made_at: datetime


def _newest(folder: Path | None) -> _Backup:
    if folder is None:
        raise NotTestedError(
            "no folder of backups is known", "name it in [places] backups of safeguards.toml"
        )
    found = [_Backup(each.parent, _written_at(each)) for each in folder.glob(f"*/{MANIFEST}")]
    if not found:
        raise BrokenControlError(
            f"there is no backup in {folder}", f"make one: matl backup {folder}/NAME"
        )
    return max(found, key=lambda each: each.made_at)


def _written_at(manifest: Path) -> datetime:
    return datetime.fromtimestamp(manifest.stat().st_mtime).astimezone()


def _scratch_config(config: Config, scratch: Path) -> Config:
    """The same coordinator with state and database of its own; keys are where they were."""
    log = config.log.model_copy(update={"encryption_key": config.log_encryption_key})
    alone = {"state_dir": scratch, "database": "", "log": log, "standby": None}
    return config.model_copy(update=alone)


def _verify(engine: Engine, config: Config) -> None:
    reader = LogReader(engine)
    verify_log(DatabaseSource(reader), with_data_keys(configured(config), config, reader))


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total
