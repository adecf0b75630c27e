"""``deploy_medical_fl.py``: start one daemon of a federation, coordinator or participant.

Reads the daemon's own configuration file, lays the few flags over it that an operator changes by
hand, checks them, and runs the daemon. Holds no setting of its own; everything else is in the file.
"""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from matl.compliance.audit import audit, coordinator_site, participant_site
from matl.compliance.catalogue import controls_before
from matl.compliance.control import Finding, Status, hindrances
from matl.compliance.registry import load_registry
from matl.compliance.site import Site
from matl.deploy.plan import coordinator_plan, participant_plan
from matl.deploy.terminal import watched
from matl.terminal import console, printable, table
from matl_common.ending import run_to_the_end
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.certificates import Role
from matl_common.ids import NodeId, parse_node_id
from matl_common.modes import MATLMode
from matl_coordinator import config as coordinator_config
from matl_coordinator import daemon as coordinator_daemon
from matl_coordinator.core.retention import Compliance
from matl_participant import config as participant_config
from matl_participant import daemon as participant_daemon

EXIT_CONFIGURATION: Final = 2
COORDINATOR_PORT: Final = 8470
"""Where DNS is asked for nothing but a name."""
MODE_VARIABLE: Final = "MATL_MODE"
ADDRESS_VARIABLE: Final = "MATL_COORDINATOR_ADDRESS"
_OF_COORDINATORS = frozenset({"--hospitals", "--audit-db"})
_OF_PARTICIPANTS = frozenset({"--coordinator", "--data-dir"})

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

Config = coordinator_config.Config | participant_config.Config


class DaemonRole(StrEnum):
    """Which daemon to run."""

    COORDINATOR = "coordinator"
    PARTICIPANT = "participant"


def coordinator_configuration(
    path: Path,
    *,
    hospitals: str | None,
    audit_db: str | None,
    environment: Mapping[str, str] = os.environ,
) -> coordinator_config.Config:
    """The coordinator's configuration with the flags laid over it.

    Raises:
        ConfigurationError: the file does not work, the URL is none, ``hospitals`` are not exactly
            those that are enrolled, or it is of another mode than the environment says.
    """
    config = coordinator_config.load_config(path, environment=environment)
    if audit_db is not None:
        config = coordinator_config.with_database(config, audit_db)
    if hospitals is not None:
        _check_enrolled(hospitals, config.federation.allowlist, coordinator=config.node_id)
    wanted = _wanted_mode(environment)
    if wanted is not None and wanted is not config.mode:
        raise ConfigurationError(
            f"{MODE_VARIABLE} is {wanted.name}, and {path} is of {config.mode.name}; MODE1 needs "
            "[holdout], MODE2 [holdout] and [attestation] as well, with hardware that attests"
        )
    return config


def participant_configuration(
    path: Path,
    *,
    coordinator: str | None,
    data_dir: Path | None,
    environment: Mapping[str, str] = os.environ,
) -> participant_config.Config:
    """The participant's configuration with the flags laid over it.

    Raises:
        ConfigurationError: the file does not work, it is for another coordinator, the coordinator
            is nowhere to be found, or MODE2 is wanted and no evidence asked for.
    """
    found = dict(environment)
    if coordinator is not None:
        found |= _address_of(coordinator, path, environment)
    config = participant_config.load_config(path, environment=found)
    configured = config.coordinator.name.node_id
    if coordinator is not None and coordinator != configured:
        raise ConfigurationError(
            f"--coordinator is {coordinator}, and {path} trusts {configured} "
            f"({config.coordinator.spiffe_id}); a coordinator is known by its certificate and "
            "signing key, so change the [coordinator] section, not the name alone"
        )
    if data_dir is not None:
        data = config.data.model_copy(update={"images": data_dir.resolve()})
        config = config.model_copy(update={"data": data})
    if _wanted_mode(environment) is MATLMode.MODE2 and config.attestation is None:
        raise ConfigurationError(
            f"{MODE_VARIABLE} is MODE2, and {path} asks the coordinator for no evidence; add "
            "[attestation] with a policy"
        )
    return config


def _address_of(coordinator: str, path: Path, environment: Mapping[str, str]) -> Mapping[str, str]:
    """Where a coordinator is: what to lay over the file, nothing where the file says it.

    The environment goes before the file, and the file before DNS.

    Raises:
        ConfigurationError: it is in none of the three; says what became of each.
    """
    tried = []
    if environment.get(ADDRESS_VARIABLE):
        return {}
    tried.append(f"{ADDRESS_VARIABLE}: not set")
    if participant_config.states_address(path):
        return {}
    tried.append(f"coordinator.address in {path}: not set")
    try:
        socket.getaddrinfo(coordinator, COORDINATOR_PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        tried.append(f"DNS for {coordinator}: {why}")
    else:
        return {ADDRESS_VARIABLE: f"{coordinator}:{COORDINATOR_PORT}"}
    raise ConfigurationError(
        f"--coordinator {coordinator} has no address. Tried, in this order: {'; '.join(tried)}. "
        f'Set coordinator.address = "host:port" in {path}, or {ADDRESS_VARIABLE}'
    )


def _wanted_mode(environment: Mapping[str, str]) -> MATLMode | None:
    text = environment.get(MODE_VARIABLE, "")
    if not text:
        return None
    try:
        return MATLMode(text.lower())
    except ValueError:
        names = ", ".join(each.name for each in MATLMode)
        raise ConfigurationError(f"{MODE_VARIABLE} is {text[:40]!r}; use {names}") from None


def _check_enrolled(hospitals: str, allowlist: Path, *, coordinator: NodeId) -> None:
    """Refuse names that are not exactly those enrolled; the coordinator's own may be among them.

    Raises:
        ConfigurationError: names what is missing from either.
    """
    try:
        named = {parse_node_id(name.strip()) for name in hospitals.split(",")}
    except InvalidInputError as error:
        raise ConfigurationError(f"--hospitals: {error}") from error
    nodes = load_allowlist(allowlist).nodes.values()
    enrolled = {node.node_id for node in nodes if node.role is Role.PARTICIPANT}
    missing, surplus = sorted(named - enrolled - {coordinator}), sorted(enrolled - named)
    if missing:
        raise ConfigurationError(
            f"--hospitals names {', '.join(missing)}, not enrolled in {allowlist}; enrol "
            "the hospital's certificate and signing key there first"
        )
    if surplus:
        raise ConfigurationError(
            f"{allowlist} also enrols {', '.join(surplus)}; name every hospital, or remove "
            "those that no longer take part"
        )


@app.command()
def deploy(
    role: Annotated[DaemonRole, typer.Option(help="Which daemon to run.", show_default=False)],
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="The daemon's TOML file. Default: coordinator.toml or participant.toml here.",
        ),
    ] = None,
    hospitals: Annotated[
        str | None,
        typer.Option(
            help="Coordinator: hospitals that take part, separated by commas. Refused unless "
            "they are exactly those of the allow-list; the coordinator's own name may be there too."
        ),
    ] = None,
    audit_db: Annotated[
        str | None,
        typer.Option(
            help="Coordinator: URL of the database that holds rounds, trust and log.",
        ),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="Participant: name of the coordinator to join. Refused unless the file trusts "
            "it. Its address: MATL_COORDINATOR_ADDRESS, else the file, else DNS for the name."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Participant: folder of images, with labels_deidentified.csv in or beside it."
        ),
    ] = None,
    compliance: Annotated[
        Compliance | None,
        typer.Option(
            help="hipaa: probe the safeguards first, and do not start while a required control is "
            "broken. See docs/compliance.md."
        ),
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option(help="With --compliance: as of verify_hipaa.py. Default: safeguards.toml."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, and change nothing.")
    ] = False,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Structured lines on a terminal as well, and no picture."),
    ] = False,
) -> None:
    """Run one daemon of a federation until SIGTERM, Ctrl-C or the end of the study.

    MATL_NODE_ID, MATL_PRIVATE_KEY and MATL_COORDINATOR_ADDRESS take precedence over the file;
    MATL_MODE (MODE0, MODE1, MODE2) must be what the file amounts to. On a terminal it shows rounds,
    phases and uploads; elsewhere it writes structured lines.

    Exit status: 0 stopped in order, 1 failed, 2 the configuration or the data does not work or a
    required control is broken, 3 halted (budget spent, or a plan that is not acceptable), 4
    replaced: another coordinator without a standby took over.
    """
    path = config or Path(f"{role.value}.toml")
    try:
        _refuse_flags_without_effect(
            role,
            {
                "--hospitals": hospitals,
                "--audit-db": audit_db,
                "--coordinator": coordinator,
                "--data-dir": data_dir,
            },
        )
        loaded: Config
        match role:
            case DaemonRole.COORDINATOR:
                loaded = coordinator_configuration(path, hospitals=hospitals, audit_db=audit_db)
            case DaemonRole.PARTICIPANT:
                loaded = participant_configuration(path, coordinator=coordinator, data_dir=data_dir)
        findings = None
        if compliance is Compliance.HIPAA:
            findings = _probed(loaded, path, registry, may_write=not dry_run)
        if dry_run:
            _show_plan(loaded, findings)
            _refuse_hindered(findings or ())
            raise typer.Exit(0)
        _refuse_hindered(findings or ())
        status = _run(loaded, plain=plain)
    except MatlError as error:
        typer.echo(f"deploy_medical_fl.py: {error}", err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from None
    raise typer.Exit(status)


def _probed(
    config: Config, path: Path, registry: Path | None, *, may_write: bool
) -> tuple[Finding, ...]:
    """What can be said of the safeguards before the daemon runs."""
    if isinstance(config, coordinator_config.Config) and (
        config.log.compliance is not Compliance.HIPAA
    ):
        raise ConfigurationError(
            f'--compliance is hipaa, and {path} says log.compliance = "{config.log.compliance}"; '
            'set it to "hipaa"'
        )
    if isinstance(config, participant_config.Config) and config.data.phi_scan == "off":
        raise ConfigurationError(
            f'--compliance is hipaa, and {path} says data.phi_scan = "off"; set it to "refuse", or '
            'to "warn" where somebody has judged each finding harmless'
        )
    known = load_registry(registry, beside=path)
    with ExitStack() as stack:
        site: Site
        if isinstance(config, coordinator_config.Config):
            site = coordinator_site(stack, config, file=path, registry=known)
        else:
            site = participant_site(config, file=path, registry=known)
        return audit(site, controls=controls_before(site.side, may_write=may_write)).findings


def _refuse_hindered(findings: tuple[Finding, ...]) -> None:
    """Say what is not as it should be; refuse where that is required.

    Raises:
        ConfigurationError: a required control is broken; names each, with its remedy.
    """
    hindering = hindrances(findings)
    for each in findings:
        status = each.outcome.status
        if status in {Status.FAIL, Status.NOT_TESTED} and each not in hindering:
            typer.echo(
                f"{status.value} {each.control.id} ({each.control.cfr}, "
                f"{each.control.level.value}): {printable(each.outcome.evidence)}",
                err=True,
            )
    if hindering:
        told = "\n".join(
            f"  {each.control.id} ({each.control.cfr}): {printable(each.outcome.evidence)}\n"
            f"    to do: {printable(each.outcome.remedy or 'see docs/compliance.md')}"
            for each in hindering
        )
        raise ConfigurationError(
            f"--compliance hipaa: not started, for {len(hindering)} required controls are "
            f"broken:\n{told}"
        )


def _show_plan(config: Config, findings: tuple[Finding, ...] | None) -> None:
    rows = (
        coordinator_plan(config)
        if isinstance(config, coordinator_config.Config)
        else participant_plan(config)
    )
    out = console()
    out.print(table(None, rows))
    if findings is None:
        out.print("Checks: none; --compliance hipaa has them run first", style="dim")
        return
    out.print(
        table(
            ("Check", "45 CFR", "Level", "Now"),
            (
                (
                    each.control.id,
                    each.control.cfr,
                    each.control.level.value,
                    f"{each.outcome.status.value}: {each.outcome.evidence}",
                )
                for each in findings
            ),
        )
    )


def _run(config: Config, *, plain: bool) -> int:
    if sys.stderr.isatty() and not plain:
        expected, title = 0, "participant"
        if isinstance(config, coordinator_config.Config):
            expected, title = config.rounds.quorum, "coordinator"
        return watched(sys.argv[1:], title=title, expected=expected)
    if isinstance(config, coordinator_config.Config):
        return coordinator_daemon.serve(config)
    return participant_daemon.serve(config)


def _refuse_flags_without_effect(role: DaemonRole, given: Mapping[str, object]) -> None:
    """Refuse what would be ignored."""
    foreign = _OF_PARTICIPANTS if role is DaemonRole.COORDINATOR else _OF_COORDINATORS
    for flag in sorted(foreign):
        if given[flag] is not None:
            raise ConfigurationError(f"{flag} means nothing for a {role.value}; leave it out")


def main() -> None:
    """Entry point of ``deploy_medical_fl.py``."""
    run_to_the_end(partial(app, prog_name="deploy_medical_fl.py"))


if __name__ == "__main__":
    main()
