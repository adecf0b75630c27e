"""The parts of a coordinator that its log's upkeep needs, put together without a daemon.

May run beside the daemon: both take turns in the database. Where PostgreSQL has separate roles, it
needs the URL of the retention role.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from matl_common.clock import utc_now
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.key_places import load_wrapping_key
from matl_common.tlog.entry import Entry
from matl_coordinator.anchor_check import check_anchored
from matl_coordinator.config import Config
from matl_coordinator.log_identity import configured_origin, configured_policy, load_log_signer
from matl_coordinator.os_account import current_account
from matl_coordinator.ports import LoggedEntry
from matl_coordinator.service.entries import Fact, entry
from matl_coordinator.service.readings import Verification, verification_entry
from matl_coordinator.service.retention import Retention
from matl_coordinator.store.appending import append_beside
from matl_coordinator.store.retention import SqlRetention
from matl_coordinator.store.sql import SqlStore


@contextmanager
def opened_retention(config: Config, *, database: str | None = None) -> Iterator[Retention]:
    """The log's retention by a coordinator's configuration, on ``database`` where that is given.

    Raises:
        ConfigurationError: a file is missing or does not fit, or the database is another's.
        StoreError: the database cannot be reached.
        LogRewrittenError: it is older than what the coordinator has signed, or another's.
    """
    check_anchored(config, database=database)
    allowlist = load_allowlist(config.federation.allowlist)
    log = load_log_signer(config, allowlist)
    store = SqlRetention.connect(
        database or config.database_url,
        log_origin=log.key.name,
        log_key=load_wrapping_key(config.log_encryption_key),
    )
    with closing(store):
        yield Retention(
            store=store,
            log_key=log.key,
            policy=configured_policy(config, allowlist, log),
            years=config.log.retention_years,
            compliance=config.log.compliance,
            account=current_account(),
            clock=utc_now,
        )


@contextmanager
def opened_store(config: Config) -> Iterator[SqlStore]:
    """A coordinator's memory by its configuration, its log's entries to be opened and written.

    Raises:
        ConfigurationError: a file is missing or does not fit, or the database is another's.
        StoreError: the database cannot be reached.
    """
    store = SqlStore.connect(
        config.database_url,
        log_origin=configured_origin(config),
        log_key=load_wrapping_key(config.log_encryption_key),
    )
    with closing(store):
        yield store


def record_verification(config: Config, found: Verification) -> LoggedEntry:
    """Log that this account has gone over the log in a coordinator's database.

    Raises: as ``record``.
    """
    return _append(config, verification_entry(found, at=utc_now(), account=current_account()))


def record(config: Config, event: str, **facts: Fact) -> LoggedEntry:
    """Log something that this account did beside the coordinator.

    Raises:
        ConfigurationError: a file is missing or does not fit, or the database is another's.
        StoreError: the database cannot be reached, or its user may not append.
        IntegrityError: the log's tree is too damaged to append to, or is older than what the
            coordinator has signed.
    """
    return _append(config, entry(event, at=utc_now(), account=current_account(), **facts))


def _append(config: Config, written: Entry) -> LoggedEntry:
    check_anchored(config)
    return append_beside(
        config.database_url,
        written,
        log_origin=configured_origin(config),
        log_key=load_wrapping_key(config.log_encryption_key),
    )
