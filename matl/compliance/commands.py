"""``verify_hipaa.py``: probe the technical safeguards of a node, and say what was found."""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.asymmetric import ec
from rich.text import Text

from matl.compliance.audit import audit, coordinator_site, participant_site
from matl.compliance.catalogue import CONTROLS, controls_of
from matl.compliance.control import Control, Finding
from matl.compliance.logbook import Logbook
from matl.compliance.page import verdict_sentence
from matl.compliance.probes.audit_controls import REVIEW_EVENT
from matl.compliance.registry import load_registry
from matl.compliance.report import DISCLAIMER, Report, facts_of
from matl.compliance.signed import checked_page, signed_page
from matl.compliance.site import CoordinatorSite, Site
from matl.terminal import (
    Json,
    EXIT_FAILED,
    console,
    errors_in_one_line,
    print_json,
    progress,
    table,
    verdict_in_one_line,
)
from matl_common.configuration import daemon_of
from matl_common.identity.certificates import Role
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import parse_public_key
from matl_common.ids import digest_of
from matl_coordinator.config import Config as CoordinatorConfig
from matl_coordinator.config import load_config as load_coordinator
from matl_coordinator.config import with_database
from matl_participant.config import load_config as load_participant

RECORD_EVENT: Final = "safeguards_probed"
AUDIT_TRAIL: Final = ("audit.", "retention.")
PHI_CHECK: Final = ("deidentification.",)
_COLOURS: Final = {"PASS": "green", "FAIL": "red", "NOT-TESTED": "yellow", "ATTESTED": "blue"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command()
def verify(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="The node's TOML file. Default: coordinator.toml, else participant.toml, here.",
        ),
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option(
            help="What a probe cannot find out: agreements, reports, backups. Default: "
            "safeguards.toml beside the configuration."
        ),
    ] = None,
    full_audit: Annotated[
        bool, typer.Option("--full-audit", help="Probe every control; what happens anyway.")
    ] = False,
    audit_trail: Annotated[
        bool, typer.Option("--audit-trail", help="Only the log: audit and retention.")
    ] = False,
    phi_check: Annotated[
        bool, typer.Option("--phi-check", help="Only the data folders: identifiers.")
    ] = False,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Only this control, such as transmission.tls; several times for more."),
    ] = None,
    audit_db: Annotated[
        str | None,
        typer.Option(
            help="Coordinator: the database's URL, where the daemon was given another one than the "
            "file has.",
        ),
    ] = None,
    data_dir: Annotated[
        list[Path] | None,
        typer.Option(help="A further folder to scan for identifiers; several times for more."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write a signed page (HTML) of the full audit here, and put its SHA-256 into the "
            "log."
        ),
    ] = None,
    as_json: Json = False,
    check: Annotated[
        Path | None, typer.Option(help="Verify a page that --report wrote, and probe nothing.")
    ] = None,
    signing_key: Annotated[
        Path | None,
        typer.Option(
            help="With --check: the public signing key (PEM) of the node that signed. Default: the "
            "configuration's own."
        ),
    ] = None,
    record_review: Annotated[
        str | None,
        typer.Option(
            help="Put on record that you have reviewed the activity in the log, and what you "
            "looked at (164.308(a)(1)(ii)(D)); probe nothing."
        ),
    ] = None,
    list_controls: Annotated[
        bool, typer.Option("--list", help="Show the table of controls, and probe nothing.")
    ] = False,
) -> None:
    """Probe the technical safeguards of a coordinator or a hospital, live, and show the evidence.

    Each control is PASS, FAIL, NOT-TESTED with the reason, or ATTESTED: somebody signed for what
    no program can see. Run it on the node's machine, as the daemon's own account, beside the
    daemon. It changes no data. The log gets an entry to be found again, the refusals of those who
    must be refused, and with --report the page's SHA-256.

    What it finds is evidence about one machine at one moment, not a statement about an
    organisation. docs/compliance.md tells of every control what its probe leaves open.

    Exit status: 0 nothing stands against the node; 1 a control is broken, a required one could not
    be tested, or a page could not be put on record; 2 wrong options or configuration.
    """
    if list_controls:
        _show_table()
        return
    path = _configuration(config)
    if check is not None:
        _check(check, path, signing_key, audit_db)
        return
    if record_review is not None:
        _record_review(path, record_review, audit_db)
        return
    with ExitStack() as stack:
        with errors_in_one_line():
            prefixes = (AUDIT_TRAIL if audit_trail else ()) + (PHI_CHECK if phi_check else ())
            is_part = bool(prefixes or control)
            if is_part and full_audit:
                raise ConfigurationError(
                    "--full-audit is every control; leave out --audit-trail, --phi-check and "
                    "--control"
                )
            if is_part and report is not None:
                raise ConfigurationError(
                    "--report is of a full audit; leave out --audit-trail, --phi-check and "
                    "--control"
                )
            site = _site(stack, path, registry, data_dir or [], audit_db)
            chosen = _chosen(site, prefixes, control or [])
        with _told(len(chosen)) as on_finding:
            found = audit(site, controls=chosen, on_finding=on_finding)
        record = _Record()
        with errors_in_one_line():
            if report is not None:
                record = _write(report, found, site)
    if as_json:
        told = {"recorded": record.told or None, "record_error": record.error or None}
        print_json(facts_of(found) | told)
    else:
        show(found)
        if said := record.told or record.error:
            typer.echo(said)
    raise typer.Exit(EXIT_FAILED if record.error else found.verdict.exit_status)


@dataclass(frozen=True, slots=True)
class _Record:
    """What became of a page: where its digest is found again, or why it is in no log."""

    told: str = ""
    error: str = ""


@contextmanager
def _told(total: int) -> Iterator[Callable[[Finding], None]]:
    with progress() as bars:
        task = bars.add_task("probing", total=total)

        def on_finding(finding: Finding) -> None:
            said = f"{finding.control.id} {finding.outcome.status.value}"
            bars.update(task, advance=1, description=said)

        yield on_finding


def show(report: Report) -> None:
    """The table for people."""
    out = console()
    rows = table(("Result", "Control", "45 CFR", "Evidence"), ())
    for each in report.findings:
        status = each.outcome.status.value
        remedy = f"\n\N{RIGHTWARDS ARROW} {each.outcome.remedy}" if each.outcome.remedy else ""
        rows.add_row(
            # Text, for evidence and remedies have brackets that are no markup.
            Text(status, style=f"bold {_COLOURS[status]}"),
            Text(each.control.id),
            Text(each.control.cfr),
            Text(_plain(each.outcome.evidence + remedy), overflow="fold"),
        )
    out.print(rows)
    counts = report.verdict.counts
    out.print(", ".join(f"{count} {status.value}" for status, count in counts.items()))
    out.print(verdict_sentence(report), markup=False)
    out.print(DISCLAIMER, style="dim")


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _show_table() -> None:
    rows = ((each.id, each.cfr, each.level.value, each.title) for each in CONTROLS)
    console().print(table(("Control", "45 CFR", "Level", "What has to be so"), rows))


def _configuration(given: Path | None) -> Path:
    if given is not None:
        return given
    here = [Path(each) for each in ("coordinator.toml", "participant.toml")]
    return next((each for each in here if each.exists()), here[0])


def _site(
    stack: ExitStack,
    path: Path,
    registry: Path | None,
    data: list[Path],
    database: str | None,
) -> Site:
    known = load_registry(registry, beside=path)
    if daemon_of(path) is Role.PARTICIPANT:
        return participant_site(load_participant(path), file=path, registry=known, data=data)
    config = _coordinator(path, database)
    return coordinator_site(stack, config, file=path, registry=known, data=data)


def _coordinator(path: Path, database: str | None) -> CoordinatorConfig:
    config = load_coordinator(path)
    return config if database is None else with_database(config, database)


def _chosen(site: Site, prefixes: tuple[str, ...], names: Iterable[str]) -> tuple[Control, ...]:
    every = controls_of(site.side)
    known = {each.id for each in every}
    if unknown := sorted(set(names) - known):
        raise ConfigurationError(
            f"there is no control {', '.join(unknown)} for a {site.side.value}; see --list"
        )
    wanted = set(names)
    if not prefixes and not wanted:
        return every
    return tuple(
        each for each in every if each.id in wanted or each.id.startswith(prefixes or ("\0",))
    )


def _write(path: Path, report: Report, site: Site) -> _Record:
    """Write the signed page, and put its digest into the log."""
    page = signed_page(report, load_p256_key(site.config.identity.signing_key))
    try:
        write_atomically(path, [page])
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    digest = digest_of(page)
    page_named = f"{path}, SHA-256 {digest}."
    if not isinstance(site, CoordinatorSite):
        return _Record(f"{page_named} A hospital has no log of its own: keep it.")
    counts = report.verdict.counts
    try:
        logged = site.log.add(
            RECORD_EVENT,
            report=digest,
            probed=len(report.findings),
            controls=report.controls,
            exit_status=report.verdict.exit_status,
            counts={status.value: count for status, count in counts.items()},
            broken=list(report.verdict.broken),
            untested=list(report.verdict.untested),
        )
    except (MatlError, OSError) as error:
        return _Record(error=f"{page_named} It could not be put on record: {error}")
    return _Record(f"{page_named} On record: entry {logged.index} of the log. Keep the page.")


def _check(page: Path, config: Path, signing_key: Path | None, database: str | None) -> None:
    with verdict_in_one_line():
        try:
            content = page.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"cannot read {page}: {error.strerror}") from error
        found = checked_page(content, _public_key(config, signing_key))
    typer.echo(
        f"{page}: signed by this key, and unchanged. {found.side.value.capitalize()} {found.node} "
        f"of {found.federation}, {found.at:%Y-%m-%d %H:%M} UTC. {verdict_sentence(found)}"
    )
    if config.exists() and daemon_of(config) is Role.COORDINATOR:
        with errors_in_one_line():
            known = _coordinator(config, database)
        _tell_record(known, digest_of(content))


def _public_key(config: Path, given: Path | None) -> ec.EllipticCurvePublicKey:
    if given is None:
        load = load_coordinator if daemon_of(config) is Role.COORDINATOR else load_participant
        return load_p256_key(load(config).identity.signing_key).public_key
    try:
        return parse_public_key(given.read_bytes())
    except (OSError, InvalidInputError) as error:
        raise ConfigurationError(f"{given} holds no public key: {error}") from error


def _tell_record(config: CoordinatorConfig, digest: str) -> None:
    """Whether the log has the page's digest."""
    with Logbook(config) as log:
        try:
            found = [each for each in log.events if each.get("report") == digest]
        except MatlError as error:
            typer.echo(f"Whether the log has it cannot be said: {error}")
            return
    if not found:
        typer.echo("The log has no entry of it.")
        raise typer.Exit(EXIT_FAILED)
    at = datetime.fromisoformat(str(found[-1]["at"]))
    typer.echo(f"The log has it since {at:%Y-%m-%d %H:%M} UTC, by {found[-1].get('account')}.")


def _record_review(config: Path, said: str, database: str | None) -> None:
    with errors_in_one_line():
        if not said.strip():
            raise ConfigurationError("say what you have looked at: the log keeps it for good")
        if daemon_of(config) is Role.PARTICIPANT:
            raise ConfigurationError("the log is the coordinator's: review it there")
        with Logbook(_coordinator(config, database)) as log:
            size = log.reader.size()
            written = log.add(REVIEW_EVENT, entries=size, said=said.strip()[:2000])
    typer.echo(f"Entry {written.index} says that entries 0 to {size - 1} were reviewed.")


def main() -> None:
    """Entry point of ``verify_hipaa.py``."""
    app(prog_name="verify_hipaa.py")


if __name__ == "__main__":
    main()
