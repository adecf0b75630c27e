"""Runs the probes of one site. The edge where what goes wrong in a probe becomes an outcome."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from matl.compliance.catalogue import controls_of
from matl.compliance.control import (
    BrokenControlError,
    Control,
    Finding,
    NotTestedError,
    Outcome,
    Status,
)
from matl.compliance.logbook import Logbook
from matl.compliance.probes import (
    access,
    attested,
    audit_controls,
    authentication,
    contingency,
    deidentification,
    emergency,
    encryption,
    integrity,
    inventory,
    logoff,
    privacy,
    retention,
    transmission,
)
from matl.compliance.registry import Registry
from matl.compliance.report import Report
from matl.compliance.site import CoordinatorSite, ParticipantSite, Site
from matl.doctor.examination import BrokenLinkError
from matl_common.clock import utc_now
from matl_common.configuration import labels_beside
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError, MatlError
from matl_common.version import __version__
from matl_coordinator.config import Config as CoordinatorConfig
from matl_coordinator.os_account import current_account
from matl_participant.config import Config as ParticipantConfig

Probe = Callable[[Site], Outcome]

PROBES: Final[Mapping[str, Probe]] = {
    "access.certificates": access.certificates,
    "access.unique": access.unique,
    "access.emergency": emergency.emergency,
    "access.emergency-drill": emergency.drill,
    "access.logoff": logoff.logoff,
    "access.dashboard": logoff.dashboard,
    "encryption.entries": encryption.entries,
    "encryption.files": encryption.files,
    "encryption.disk": encryption.disk,
    "audit.integrity": audit_controls.integrity,
    "audit.roles": audit_controls.roles,
    "audit.completeness": audit_controls.completeness,
    "audit.review": audit_controls.review,
    "integrity.updates": integrity.updates,
    "authentication.keys": authentication.keys,
    "authentication.hsm": authentication.hsm,
    "authentication.mfa": authentication.mfa,
    "transmission.tls": transmission.tls,
    "transmission.plaintext": transmission.plaintext,
    "transmission.database": transmission.database,
    "retention.kept": retention.kept,
    "retention.years": retention.years,
    "retention.promise": retention.promise,
    "contingency.restore": contingency.restored,
    "agreements.nodes": attested.agreements,
    "deidentification.scan": deidentification.scan,
    "deidentification.burned-in": deidentification.burned_in,
    "deidentification.route": deidentification.route,
    "privacy.spent": privacy.spent,
    "inventory.software": inventory.software,
    "inventory.sockets": inventory.sockets,
    "inventory.segmentation": inventory.segmentation,
    "inventory.patching": inventory.patching,
    "inventory.scan": inventory.vulnerability_scan,
    "inventory.penetration-test": inventory.penetration_test,
}
"""What is done for each control of the catalogue."""


def coordinator_site(
    stack: ExitStack,
    config: CoordinatorConfig,
    *,
    file: Path,
    registry: Registry,
    data: Iterable[Path] = (),
) -> CoordinatorSite:
    """A coordinator's site; ``stack`` closes what it opens."""
    study, holdout = config.study, config.holdout
    own = [
        *_images_and_labels(study.public_images, study.public_labels),
        *(() if holdout is None else _images_and_labels(holdout.images, holdout.labels)),
    ]
    return CoordinatorSite(
        config=config,
        file=file,
        registry=registry,
        log=stack.enter_context(Logbook(config)),
        now=utc_now(),
        data=tuple(dict.fromkeys((*own, *registry.places.data, *data))),
        key=os.urandom(32),
    )


def participant_site(
    config: ParticipantConfig, *, file: Path, registry: Registry, data: Iterable[Path] = ()
) -> ParticipantSite:
    """A hospital's site."""
    own = _images_and_labels(config.data.images, config.data.labels)
    return ParticipantSite(
        config=config,
        file=file,
        registry=registry,
        now=utc_now(),
        data=tuple(dict.fromkeys((*own, *registry.places.data, *data))),
        key=os.urandom(32),
    )


def _images_and_labels(images: Path | None, labels: Path | None) -> tuple[Path, ...]:
    """A folder of images, and its labels where they do not lie in it."""
    if images is None:
        return ()
    table = labels or labels_beside(images)
    return (images,) if table.is_relative_to(images) else (images, table)


def audit(
    site: Site,
    *,
    controls: Iterable[Control] | None = None,
    on_finding: Callable[[Finding], Any] = lambda _: None,
) -> Report:
    """Probe controls in order; every one gets a row, whatever happens.

    Args:
        site: whose.
        controls: which; all of the site's side if not given.
        on_finding: told of each row as it is found.
    """
    began = time.monotonic()
    findings = []
    every = controls_of(site.side)
    for control in every if controls is None else controls:
        finding = Finding(control, probed(PROBES[control.id], site))
        findings.append(finding)
        on_finding(finding)
    return Report(
        at=utc_now(),
        seconds=time.monotonic() - began,
        federation=site.name.federation,
        node=site.name.node_id,
        side=site.side,
        version=__version__,
        account=current_account(),
        controls=len(every),
        findings=tuple(findings),
    )


def probed(probe: Probe, site: Site) -> Outcome:
    """One probe's outcome: what it says, or what it ran into."""
    try:
        return probe(site)
    except (BrokenControlError, BrokenLinkError) as error:
        return Outcome(Status.FAIL, str(error), error.remedy)
    except NotTestedError as error:
        return Outcome(Status.NOT_TESTED, str(error), error.remedy)
    except (IntegrityError, InvalidInputError, ConfigurationError) as error:
        found, _, remedy = str(error).partition("; ")
        return Outcome(Status.FAIL, found, remedy)
    except Exception as error:  # noqa: BLE001 - the edge: every control gets a row
        reason = str(error) if isinstance(error, MatlError | OSError) else type(error).__name__
        return Outcome(Status.NOT_TESTED, f"the probe could not be carried out: {reason}")
