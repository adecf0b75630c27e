"""``matl doctor``: why a node and its coordinator do not come together."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from matl.doctor.coordinator import coordinator_links
from matl.doctor.examination import Finding, Link, examine
from matl.doctor.participant import participant_links
from matl.terminal import EXIT_FAILED, Json, console, errors_in_one_line, print_json, table
from matl_common.configuration import daemon_of
from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import Role
from matl_coordinator.config import load_config as load_coordinator
from matl_participant.config import load_config as load_participant


def doctor(
    *,
    config: Annotated[
        Path, typer.Option("--config", "-c", help="coordinator.toml or participant.toml.")
    ],
    peer: Annotated[
        Path | None,
        typer.Option(
            help="At the coordinator: the certificate of a node that is not let in, to see why."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which link between a node and its coordinator does not hold, and what to do.

    Runs on either side, beside the daemon or without it, as the daemon's own account, with the
    daemon's files: keys and who can use them, certificate, dates, name, authority, address, TCP,
    TLS, enrolment, attestation, the coordinator's signing key, clocks, the log's key. It changes
    nothing.

    Exit status: 0 every link holds; 1 one does not; 2 the configuration cannot be read.
    """
    with errors_in_one_line():
        links = _links(config, peer)
    findings = []
    for finding in examine(links):
        findings.append(finding)
        if not as_json:
            console().print(table(None, _rows(finding)))
    if as_json:
        print_json({"links": [asdict(each) for each in findings]})
    if any(each.status != "ok" for each in findings):
        raise typer.Exit(EXIT_FAILED)


def _links(config: Path, peer: Path | None) -> tuple[Link, ...]:
    if daemon_of(config) is Role.COORDINATOR:
        return coordinator_links(load_coordinator(config), file=config, peer=peer)
    if peer is not None:
        raise ConfigurationError("--peer is for the coordinator's side, which has the allow-list")
    return participant_links(load_participant(config))


def _rows(finding: Finding) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(finding.status.ljust(7), finding.link.ljust(24), finding.found)]
    return [*rows, ("", "", f"\N{RIGHTWARDS ARROW} {finding.remedy}")] if finding.remedy else rows
