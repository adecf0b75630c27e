"""Part 6 of the tutorial: what can be looked up about a client before anybody relies on it.

Each row is probed, and one that nothing can test says so. A deployed node has many more
safeguards; ``verify_hipaa.py --full-audit`` probes those, and so does this with ``config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matl.audit import AuditLogger
from matl.client import MATLClient
from matl.compliance.control import Status
from matl_common.configuration import daemon_of
from matl_common.errors import MatlError
from matl_common.identity.certificates import Role
from matl_coordinator.config import load_config as load_coordinator
from matl_coordinator.core.retention import HIPAA_YEARS
from matl_participant.config import load_config as load_participant

LABEL_COLUMNS = frozenset({"image_id", "dr_level", "group_key"})
"""What a labels file may have; anything else may identify somebody."""


@dataclass(frozen=True, slots=True)
class Row:
    """One safeguard, what was found, and what to do where it was not found."""

    name: str
    status: Status
    evidence: str
    remedy: str = ""
    is_required: bool = True
    """Whether it stands against the whole if it could not be tested."""

    @property
    def is_unsound(self) -> bool:
        """Whether it stands against the whole."""
        if self.status is Status.NOT_TESTED:
            return self.is_required
        return self.status is Status.FAIL


class SafeguardsError(MatlError, RuntimeError):
    """A safeguard is missing, or could not be tested."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        """Those that stand against the whole."""
        told = "; ".join(f"{each.name}: {each.evidence}. {each.remedy}" for each in rows)
        super().__init__(f"do not deploy: {told}")


def verify_hipaa_compliance(
    matl_client: MATLClient,
    hospital_datasets: Sequence[Any] | Mapping[str, Any] = (),
    *,
    config: Path | str | None = None,
    report: Callable[[str], object] = print,
) -> bool:
    """Probe technical safeguards, print a row for each, and raise where one is missing.

    Compliance is an organisation's, and no program finds it out; the tutorial's name is kept, and
    the claim is not. An embedded federation has no TLS and never passes: it is for trying.

    Args:
        matl_client: whose connection, logs, access list and promise are looked at.
        hospital_datasets: of each hospital; those with a table ``labels`` have its columns looked
            at. Values, file names and images are for ``matl phi scan``.
        config: the TOML file of the coordinator or participant on this machine, whose full audit
            is then run as well.
        report: told each row, a line.

    Returns:
        True; anything else is raised.

    Raises:
        SafeguardsError: a row is FAIL, or required and NOT-TESTED; ``rows`` says what to do.
        ConfigurationError: ``config`` cannot be read, or nothing here can audit a node.
    """
    rows = [*_data_rows(hospital_datasets), *_client_rows(matl_client)]
    if config is not None:
        rows += _audited(Path(config))
    for each in rows:
        report(f"{each.status:<10}  {each.name}: {each.evidence}")
    if unsound := [each for each in rows if each.is_unsound]:
        raise SafeguardsError(unsound)
    return True


def _data_rows(datasets: Sequence[Any] | Mapping[str, Any]) -> list[Row]:
    named = (
        datasets.items()
        if isinstance(datasets, Mapping)
        else ((f"hospital {at + 1}", each) for at, each in enumerate(datasets))
    )
    return [_data_row(f"{name}, columns of the labels", each) for name, each in named]


def _data_row(name: str, dataset: Any) -> Row:
    columns = getattr(getattr(dataset, "labels", None), "columns", None)
    remedy = "run `matl phi scan` on its folder"
    if columns is None:
        return Row(name, Status.NOT_TESTED, "the data set has no table `labels`", remedy)
    # Names only; what a column is called is no patient's.
    unknown = sorted(str(each) for each in columns if str(each) not in LABEL_COLUMNS)
    if unknown:
        return Row(
            name,
            Status.FAIL,
            f"{', '.join(unknown)} is not among {', '.join(sorted(LABEL_COLUMNS))}",
            f"drop it, and {remedy}",
        )
    return Row(name, Status.PASS, ", ".join(map(str, columns)))


def _client_rows(client: MATLClient) -> list[Row]:
    logger, privacy = client.audit_logger, client.privacy
    years = logger.retention_years
    whose = "the coordinator's log" if client.is_connected else "the study's log"
    return [
        _answered(
            f"{whose} encrypted",
            lambda name: _encrypted(name, client.study_log_is_encrypted(), is_required=True),
        ),
        # What nobody wrote to hides nothing.
        _answered(
            "this client's audit log encrypted",
            lambda name: _encrypted(name, logger.is_encrypted(), is_required=False),
        ),
        _answered("this client's audit log active", lambda name: _active(name, logger)),
        _row(
            "this client's audit log kept",
            years >= HIPAA_YEARS,
            f"{years} years",
            f"{years} years, and {HIPAA_YEARS} are asked for",
            "raise retention_years",
        ),
        _answered("access restricted", lambda name: _restricted(name, client.allowed_nodes)),
        _row(
            "differential privacy",
            privacy is not None,
            "" if privacy is None else f"ε = {privacy.epsilon:g} for the whole study",
            "no limit is asked for",
            "give privacy=DifferentialPrivacy(…)",
        ),
        _row(
            "mutual TLS",
            client.use_tls,
            "the coordinator answered over TLS 1.3",
            "there is no connection to a coordinator that works",
            "give coordinator_address=; an embedded federation is for trying",
        ),
    ]


def _answered(name: str, probe: Callable[[str], Row]) -> Row:
    """A probe's row; one that ended in an error found no safeguard."""
    try:
        return probe(name)
    except MatlError as error:
        return Row(name, Status.FAIL, str(error), "see that it answers, and verify again")


def _encrypted(name: str, found: bool | None, *, is_required: bool) -> Row:  # noqa: FBT001 - the probe's answer
    if found is None:
        return _nothing_logged(name, is_required=is_required)
    return _row(
        name,
        found,
        "its newest entry is stored as ciphertext",
        "its newest entry can be read in the database",
        "restore the log, and find out who wrote to it",
    )


def _active(name: str, logger: AuditLogger) -> Row:
    is_active = logger.is_active()
    if is_active and logger.is_encrypted() is None:
        return _nothing_logged(name, is_required=False)
    return _row(
        name,
        is_active,
        "its newest entry is in its tree",
        "it does not hold its newest entry",
        "see docs/log.md",
    )


def _nothing_logged(name: str, *, is_required: bool) -> Row:
    remedy = "verify again once a round is released"
    return Row(name, Status.NOT_TESTED, "nothing is logged yet", remedy, is_required=is_required)


def _restricted(name: str, allowed: Sequence[str]) -> Row:
    return _row(
        name,
        len(allowed) > 1,
        f"{len(allowed)} hospitals are enrolled",
        "no other hospital is named",
        "name every hospital in allowed_nodes",
    )


def _row(name: str, passed: bool, found: str, lacking: str, remedy: str) -> Row:  # noqa: FBT001 - the probe's answer
    if passed:
        return Row(name, Status.PASS, found)
    return Row(name, Status.FAIL, lacking, remedy)


def _audited(config: Path) -> list[Row]:
    """The full audit of the node whose configuration this is."""
    # Not needed by whoever asks about a client alone.
    from matl.compliance.audit import audit, coordinator_site, participant_site
    from matl.compliance.registry import load_registry
    from matl.compliance.site import Site

    registry = load_registry(None, beside=config)
    with ExitStack() as stack:
        site: Site
        if daemon_of(config) is Role.COORDINATOR:
            site = coordinator_site(stack, load_coordinator(config), file=config, registry=registry)
        else:
            site = participant_site(load_participant(config), file=config, registry=registry)
        findings = audit(site).findings
    return [
        Row(
            each.control.title,
            each.outcome.status,
            each.outcome.evidence,
            each.outcome.remedy,
            is_required=each.is_unsound,
        )
        for each in findings
    ]
