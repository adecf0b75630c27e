"""164.308(a)(7): the newest backup, restored where it does no harm, and compared."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Engine

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.site import Site, at_coordinator
from matl.log.place import configured, with_data_keys
from matl.log.sources import DatabaseSource
from matl.log.verification import verify_log
from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.identity.held_keys import load_p256_key
from matl_common.tlog.merkle import root_from
from matl_coordinator.backup_check import check_backup
from matl_coordinator.backup_manifest import MANIFEST, Manifest, open_manifest
from matl_coordinator.config import Config
from matl_coordinator.restore import RestoreError, restore
from matl_coordinator.store.anchor import log_anchor
from matl_coordinator.store.reader import LogReader


def restored(site: Site) -> Outcome:
    """Restore the newest backup into a scratch folder and database, and compare the logs."""
    here = at_coordinator(site)
    places = here.registry.places
    if places.backups is None:
        raise NotTestedError(
            "no folder of backups is known", "name it in [places] backups of safeguards.toml"
        )
    own = load_p256_key(here.config.identity.signing_key).public_key
    newest = newest_backup(places.backups, own, now=here.now, days=places.backup_days)
    began = time.monotonic()
    try:
        checked = check_backup(here.config, newest.folder, report=_silent)
        with TemporaryDirectory(prefix="matl-restore-drill-", dir=places.scratch) as scratch:
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
        f"{size} that the log has, root {manifest.log_root[:16]}…{newest.besides}"
    )


@dataclass(frozen=True, slots=True)
class Backup:
    """The newest of a folder.

    Attributes:
        folder: it.
        manifest: as this coordinator has signed it.
        undated: other backups whose manifests it has not signed like that.
    """

    folder: Path
    manifest: Manifest
    undated: tuple[str, ...]

    @property
    def besides(self) -> str:
        """What to say of those that cannot be dated."""
        named = ", ".join(self.undated)
        return f"; not signed by this coordinator's key of today: {named}" if named else ""


def newest_backup(
    folder: Path, own: ec.EllipticCurvePublicKey, *, now: datetime, days: int
) -> Backup:
    """The backup that was made last, by what its manifest says and not by when it was copied here.

    Args:
        folder: that holds backups.
        own: the coordinator's signing key; under an older one a backup is of no time that counts.
        now: when it is asked.
        days: how old it may be.

    Raises:
        BrokenControlError: there is none that this coordinator has signed, or it is too old.
    """
    dated, undated = [], []
    for each in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            dated.append((each.parent, open_manifest(each.read_bytes(), own)))
        except (IntegrityError, InvalidInputError):
            undated.append(each.parent.name)
    if not dated:
        unknown = f" that this coordinator has signed; found {', '.join(undated)}"
        raise BrokenControlError(
            f"there is no backup in {folder}{unknown if undated else ''}",
            f"make one: matl backup {folder}/NAME",
        )
    newest, manifest = max(dated, key=lambda each: each[1].made_at)
    if now - manifest.made_at > timedelta(days=days):
        raise BrokenControlError(
            f"the newest backup, {newest.name}, is {(now - manifest.made_at).days} days old; "
            f"{days} are allowed",
            f"make another: matl backup {folder}/NAME",
        )
    return Backup(newest, manifest, tuple(undated))


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
