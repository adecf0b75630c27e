"""One live federation to be audited: PostgreSQL with its roles, and a study that has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from matl.compliance.audit import audit, coordinator_site
from matl.compliance.catalogue import CONTROLS, controls_before
from matl.compliance.control import Control, Side, Status
from matl.compliance.registry import load_registry
from matl.compliance.report import Report
from matl.compliance.site import CoordinatorSite
from matl_coordinator.config import load_config
from tests.store.roles import READER, RETENTION, url_of
from tests.system.federation import (
    COORDINATOR_NAME,
    HOSPITALS,
    OPERATOR,
    Federation,
    toml_text,
)

IDLE_SECONDS = 0.5
NO_SOCKETS = "  sl  local_address rem_address   st tx_queue rx_queue\n"
SIGNED = "2026-01-15"
DIGEST = "ab" * 32
UNDIALLED = controls_before(Side.COORDINATOR, may_write=True)
"""The rows that ask nothing of the running daemon: most of them, and fast."""


@dataclass(frozen=True)
class Live:
    """A federation whose coordinator runs, and everything that an audit of it needs."""

    federation: Federation
    admin_url: str
    folder: Path
    released_model: str
    before_reviews: Report
    """Before anybody had broken the glass or reviewed the activity."""
    after_drill: Report
    sound: Report
    """With nothing broken."""

    @property
    def config_file(self) -> Path:
        return self.federation.coordinator_config

    @property
    def registry_file(self) -> Path:
        return self.folder / "safeguards.toml"

    @property
    def processes(self) -> Path:
        return self.folder / "proc"

    @property
    def lock_file(self) -> Path:
        return self.folder / "lock.txt"

    def audit(
        self,
        change: Callable[[CoordinatorSite], CoordinatorSite] = lambda site: site,
        controls: tuple[Control, ...] = CONTROLS,
    ) -> Report:
        """Probe a site changed like this."""
        with site_of(self.federation, self.folder) as site:
            return audit(change(site), controls=controls)


@contextmanager
def site_of(federation: Federation, folder: Path) -> Iterator[CoordinatorSite]:
    """The coordinator's site as of now, with a log of its own."""
    file = federation.coordinator_config
    with ExitStack() as stack:
        registry = load_registry(folder / "safeguards.toml", beside=file)
        made = coordinator_site(stack, load_config(file), file=file, registry=registry)
        yield replace(made, processes=folder / "proc")


def failing(report: Report) -> set[str]:
    """The controls that were found broken."""
    return set(report.verdict.broken)


def statuses(report: Report) -> dict[str, Status]:
    """What became of each control."""
    return {each.control.id: each.outcome.status for each in report.findings}


def registry_text(folder: Path, database: str) -> str:
    """A registry in which everything is signed for."""
    later = (datetime.now(UTC) + timedelta(days=400)).date()
    recently = (datetime.now(UTC) - timedelta(days=3)).date()
    agreements = "".join(
        f'[[agreements]]\nnode = "{node}"\nkind = "BAA"\nsha256 = "{DIGEST}"\n'
        f'signed = {SIGNED}\nexpires = {later}\nby = "counsel"\n'
        for node in HOSPITALS
    )
    kinds = ("mfa", "patching", "penetration-test", "segmentation", "vulnerability-scan")
    uploads = "".join(
        f'[[uploads]]\nkind = "{kind}"\nsha256 = "{DIGEST}"\nsigned = {recently}\nby = "security"\n'
        for kind in kinds
    )
    return (
        f"{agreements}{uploads}"
        f'[deidentification]\nroute = "expert-determination"\nsha256 = "{DIGEST}"\n'
        f'signed = {SIGNED}\nby = "a statistician"\n'
        f'[places]\nbackups = "{folder / "backups"}"\nlock = "{folder / "lock.txt"}"\n'
        f"[probes]\n"
        f'reader_database = "{url_of(database, READER)}"\n'
        f'retention_database = "{url_of(database, RETENTION)}"\n'
    )


def operator_text(federation: Federation) -> str:
    """An operator's own file."""
    mine = federation.keys[OPERATOR].tls
    table = {
        "address": federation.address,
        "coordinator": str(COORDINATOR_NAME),
        "key": str(mine.private_key),
        "certificate": str(mine.certificate_chain),
        "authority": str(mine.trusted_authority),
    }
    return toml_text({"operator": table})
