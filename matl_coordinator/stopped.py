"""What takes a coordinator that is stopped: held for as long as it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from matl_common.durable import FolderInUseError, owned_folder
from matl_coordinator.config import Config
from matl_coordinator.store.lock import LeaderLock

LONGEST_SECONDS = 86400.0


@contextmanager
def stopped(config: Config) -> Iterator[None]:
    """Hold what a coordinator holds while it leads, so that none does.

    Raises:
        FolderInUseError: one does.
        ConfigurationError: ``state_dir`` cannot be used.
        StoreError: there are two daemons, and their database cannot be reached.
    """
    if config.standby is None:
        with owned_folder(config.state_dir):
            yield
        return
    lock = LeaderLock(config.database_url, name="upkeep", lease_seconds=LONGEST_SECONDS)
    with closing(lock):
        if not lock.take():
            raise FolderInUseError(
                f"{lock.holder() or 'another daemon'} leads; stop both daemons of this coordinator"
            )
        yield
