"""The parts of a coordinator that its log's upkeep needs, put together without a daemon.

May run beside the daemon: both take turns in the database. Where PostgreSQL has separate roles, it
needs the URL of the retention role.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.key_places import load_wrapping_key
from matl_common.identity.keys import load_ed25519_private_key
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.names import log_origin
from matl_coordinator.account import current_account
from matl_coordinator.config import Config
from matl_coordinator.service.checkpoints import witness_policy
from matl_coordinator.service.retention import Retention
from matl_coordinator.store.retention import SqlRetention


@contextmanager
def opened_retention(config: Config, *, database: str | None = None) -> Iterator[Retention]:
    """The log's retention by a coordinator's configuration, on ``database`` where that is given.

    Raises:
        ConfigurationError: a file is missing or does not fit, or the database is another's.
        StoreError: the database cannot be reached.
    """
    allowlist = load_allowlist(config.federation.allowlist)
    origin = log_origin(allowlist.federation)
    key = log_key(origin, load_ed25519_private_key(config.identity.log_key).public_key())
    store = SqlRetention.connect(
        database or config.database_url,
        log_origin=origin,
        log_key=load_wrapping_key(config.log_encryption_key),
    )
    with closing(store):
        yield Retention(
            store=store,
            log_key=key,
            policy=witness_policy(allowlist, key, f=config.rounds.byzantine),
            years=config.log.retention_years,
            account=current_account(),
            clock=lambda: datetime.now(UTC),
        )
