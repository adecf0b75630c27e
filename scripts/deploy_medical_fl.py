"""Start one daemon of a federation: ``--role coordinator`` or ``--role participant``.

Reads the daemon's own configuration file, lays the few flags over it that an operator
changes by hand, checks them, and runs the daemon in this process. Holds no setting of
its own; everything else is in the file.
"""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.certificates import Role
from matl_common.ids import parse_node_id
from matl_coordinator import config as coordinator_config
from matl_coordinator import daemon as coordinator_daemon
from matl_participant import config as participant_config
from matl_participant import daemon as participant_daemon

EXIT_CONFIGURATION = 2
_OF_COORDINATORS = frozenset({"--hospitals", "--audit-db"})
_OF_PARTICIPANTS = frozenset({"--coordinator", "--data-dir"})

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class DaemonRole(StrEnum):
    """Which daemon to run."""

    COORDINATOR = "coordinator"
    PARTICIPANT = "participant"


def coordinator_configuration(
    path: Path, *, hospitals: str | None, audit_db: str | None
) -> coordinator_config.Config:
    """The coordinator's configuration with the flags laid over it.

    Raises:
        ConfigurationError: the file does not work, the URL is none, or ``hospitals`` are
            not exactly those that are enrolled.
    """
    config = coordinator_config.load_config(path)
    if audit_db is not None:
        changed = config.model_dump() | {"database": audit_db}
        try:
            config = coordinator_config.Config.model_validate(changed)
        except ValueError as error:
            raise ConfigurationError(
                "--audit-db is not a database URL such as postgresql://host/name"
            ) from error
    if hospitals is not None:
        _check_enrolled(hospitals, config.federation.allowlist)
    return config


def participant_configuration(
    path: Path, *, coordinator: str | None, data_dir: Path | None
) -> participant_config.Config:
    """The participant's configuration with the flags laid over it.

    Raises:
        ConfigurationError: the file does not work, or it is for another coordinator.
    """
    config = participant_config.load_config(path)
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
    return config


def _check_enrolled(hospitals: str, allowlist: Path) -> None:
    try:
        named = {parse_node_id(name.strip()) for name in hospitals.split(",")}
    except InvalidInputError as error:
        raise ConfigurationError(f"--hospitals: {error}") from error
    nodes = load_allowlist(allowlist).nodes.values()
    enrolled = {node.node_id for node in nodes if node.role is Role.PARTICIPANT}
    missing, surplus = sorted(named - enrolled), sorted(enrolled - named)
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
            "they are exactly those of the allow-list."
        ),
    ] = None,
    audit_db: Annotated[
        str | None,
        typer.Option(help="Coordinator: URL of the database that holds rounds, trust and log."),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="Participant: name of the coordinator to join. Refused unless the file trusts "
            "it; MATL_COORDINATOR_ADDRESS says where it is."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Participant: folder of images, with labels_deidentified.csv in or beside it."
        ),
    ] = None,
    compliance: Annotated[
        str | None,
        typer.Option(help="Not available yet: there is no compliance check in this version."),
    ] = None,
) -> None:
    """Run one daemon of a federation until SIGTERM, Ctrl-C or the end of the study.

    MATL_NODE_ID, MATL_PRIVATE_KEY and MATL_COORDINATOR_ADDRESS take precedence over the
    file. Exit status: 0 stopped in order, 1 failed, 2 the configuration or the data does
    not work, 3 halted (budget spent, or a plan that is not acceptable).
    """
    path = config or Path(f"{role.value}.toml")
    try:
        if compliance is not None:
            raise ConfigurationError(
                "--compliance is not available: this version has no compliance check, and a "
                "daemon must not look as if it had passed one; start it without the flag"
            )
        _refuse_flags_without_effect(
            role,
            {
                "--hospitals": hospitals,
                "--audit-db": audit_db,
                "--coordinator": coordinator,
                "--data-dir": data_dir,
            },
        )
        match role:
            case DaemonRole.COORDINATOR:
                status = coordinator_daemon.serve(
                    coordinator_configuration(path, hospitals=hospitals, audit_db=audit_db)
                )
            case DaemonRole.PARTICIPANT:
                status = participant_daemon.serve(
                    participant_configuration(path, coordinator=coordinator, data_dir=data_dir)
                )
    except MatlError as error:
        typer.echo(f"deploy_medical_fl.py: {error}", err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from None
    raise typer.Exit(status)


def _refuse_flags_without_effect(role: DaemonRole, given: Mapping[str, object]) -> None:
    """Refuse what would be ignored."""
    foreign = _OF_PARTICIPANTS if role is DaemonRole.COORDINATOR else _OF_COORDINATORS
    for flag in sorted(foreign):
        if given[flag] is not None:
            raise ConfigurationError(f"{flag} means nothing for a {role.value}; leave it out")


def main() -> None:
    """Entry point of ``deploy_medical_fl.py``."""
    app(prog_name="deploy_medical_fl.py")


if __name__ == "__main__":
    main()
