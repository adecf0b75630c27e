"""164.316(b)(2)(i): the log is kept, and nobody can put it away before its time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

from sqlalchemy import make_url

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.probes.audit_controls import DENIED, refused_as, state_as
from matl.compliance.site import CoordinatorSite, Site, at_coordinator
from matl_common.errors import IntegrityError
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.key_places import load_wrapping_key
from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.tlog.entry import Entry
from matl_common.tlog.orders import Order, all_gone
from matl_coordinator.core.retention import HIPAA_YEARS, RetentionError, check_expired
from matl_coordinator.log_identity import configured_policy, load_log_signer
from matl_coordinator.ports import LoggedEntry
from matl_coordinator.service.retention import Retention
from matl_coordinator.store.retention import SqlRetention

PROMISED_YEARS: Final = 7


def kept(site: Site) -> Outcome:
    """Count what is there, and ask to drop what has to stay."""
    here = at_coordinator(site)
    size = here.log.reader.size()
    store = _store(here)
    try:
        months = store.months()
        held = sum(each.entries for each in months)
        gone = sum(len(each) for each in all_gone(_expired(store.orders())))
        # What was added since is there as well.
        if held + gone < size:
            raise BrokenControlError(
                f"of {size} entries {held} are there and {gone} were put away when their time was "
                f"over: {size - held - gone} are missing",
                "restore them from a backup: matl restore",
            )
        newest = months[-1].month
        _check_refused(here, newest, store)
    finally:
        store.close()
    told = "by the rules"
    if here.config.is_on_postgres:
        told += f" and in the database as {_refused_in_database(here, newest)}"
    return passed(
        f"{len(months)} months since {months[0].month}, {held} entries, {gone} put away in time; "
        f"dropping {newest} is refused {told}"
    )


def years(site: Site) -> Outcome:
    """Six years at least, by the configuration and by the database."""
    return _at_least(site, HIPAA_YEARS)


def promise(site: Site) -> Outcome:
    """Seven years, which this product promises."""
    return _at_least(site, PROMISED_YEARS)


def _at_least(site: Site, wanted: int) -> Outcome:
    here = at_coordinator(site)
    configured = here.config.log.retention_years
    remedy = f"set log.retention_years = {PROMISED_YEARS}, and run roles.sql again"
    if configured < wanted:
        raise BrokenControlError(f"log.retention_years is {configured}, less than {wanted}", remedy)
    url = here.registry.probes.retention_database
    if not here.config.is_on_postgres or not url:
        raise NotTestedError(
            f"log.retention_years = {configured}; what the database insists on was not asked",
            "use PostgreSQL, and give [probes] retention_database",
        )
    here.log.reader.size()
    # Of a month that would be expired by one year less, and that no log has entries of.
    month = f"{here.now.year - wanted:04d}-{here.now.month:02d}"
    order = f"SELECT log_erase_key('{month}', 0, 0, '', '')"
    if (state := state_as(url, order)) != DENIED:
        raise BrokenControlError(
            f"the database would put {month} away before {wanted} years are over "
            f"({state or 'carried out'})",
            remedy,
        )
    return passed(
        f"log.retention_years = {configured}; the database refuses to put {month} away as well"
    )


def _expired(orders: Iterable[Order]) -> Iterator[Order]:
    """The orders whose months were old enough when they were given, by the rule.

    Raises:
        BrokenControlError: one was not.
    """
    for each in orders:
        try:
            check_expired(each.month, years=HIPAA_YEARS, now=datetime.fromisoformat(each.at))
        except RetentionError as error:
            raise BrokenControlError(
                f"entry {each.index} put {each.month} away too early: {error}",
                "restore it from a backup: matl restore",
            ) from error
        yield each


class _Refusing:
    """A ``RetentionStore`` that reads another's, and puts nothing away."""

    def __init__(self, store: SqlRetention) -> None:
        self.months = store.months
        self.runs = store.runs
        self.orders = store.orders
        self.log_node = store.log_node
        self.cosigned_checkpoints = store.cosigned_checkpoints

    def drop_month(self, month: str, *, years: int, cosignatures: int, entry: Entry) -> LoggedEntry:
        raise _WouldDropError

    def erase_key(self, month: str, *, years: int, entry: Entry) -> LoggedEntry:
        raise _WouldDropError

    def rewrap_keys(self, key: KeyEncryptionKey, *, entry: Entry) -> LoggedEntry:
        raise _WouldDropError


class _WouldDropError(Exception):
    """Nothing has stopped it."""


def _check_refused(site: CoordinatorSite, month: str, store: SqlRetention) -> None:
    config = site.config
    allowlist = load_allowlist(config.federation.allowlist)
    log = load_log_signer(config, allowlist)
    retention = Retention(
        store=_Refusing(store),
        log_key=log.key,
        policy=configured_policy(config, allowlist, log),
        years=config.log.retention_years,
        compliance=config.log.compliance,
        account="an audit",
        clock=lambda: site.now,
    )
    for order in (retention.drop_month, retention.erase_key):
        try:
            order(month, reason="an audit tries whether this is refused")
        except RetentionError:
            continue
        except (_WouldDropError, IntegrityError):
            pass
        raise BrokenControlError(
            f"an order to put {month} away would be carried out",
            "set log.retention_years = 7",
        )


def _refused_in_database(site: CoordinatorSite, month: str) -> str:
    """Try the database's own functions as every user; returns their names."""
    call = f"SELECT log_drop_month('{month}', 0, 0, {site.log.reader.size()}, '', '')"
    erase = f"SELECT log_erase_key('{month}', 0, {site.log.reader.size()}, '', '')"
    probes = site.registry.probes
    urls = [each for each in (site.config.database_url, probes.retention_database) if each]
    for url in urls:
        refused_as(url, (call, erase))
    return " and ".join(make_url(each).username or "the local user" for each in urls)


def _store(site: CoordinatorSite) -> SqlRetention:
    config = site.config
    log = load_log_signer(config, load_allowlist(config.federation.allowlist))
    return SqlRetention.connect(
        config.database_url,
        log_origin=log.key.name,
        log_key=load_wrapping_key(config.log_encryption_key),
    )
