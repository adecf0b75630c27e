"""The coordinator daemon: a process around one coordinator, its signals and its exit status."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import structlog
import typer

from matl_common.descriptors import raise_descriptor_limit
from matl_common.ending import run_to_the_end
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.pkcs11.session import TokenError
from matl_common.identity.tls import MAX_CONNECTIONS
from matl_common.logs import configure_logs
from matl_common.memory import bound_memory
from matl_coordinator.config import Config, load_config
from matl_coordinator.coordinator import Coordinator, StoppedError
from matl_coordinator.ingest.config import FrontEndConfig, load_front_end_config
from matl_coordinator.ingest.front_end import FrontEnd
from matl_coordinator.ports import StaleWriterError, StoreError
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.migrate import upgrade_to_head

OPEN_DESCRIPTORS = MAX_CONNECTIONS + 1024
"""Connections that nobody vouches for must leave some for the files."""

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
EXIT_REPLACED = 4
"""Another coordinator took over; started again, this one would take over from that one."""

log = structlog.get_logger(__name__)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def serve(config: Config) -> int:
    """Run the daemon in this process until it is told to stop; returns the exit status."""
    bound_memory()
    images = () if config.holdout is None else (config.holdout.images,)
    configure_logs(config.listen.logs, hidden=images)
    _have_descriptors()
    while True:
        try:
            return _serve_once(config)
        except StoreError as error:
            # Of one that leads, or began to: it starts anew, and waits.
            log.error("leadership_lost", reason=str(error))
            assert config.standby is not None, "without it, every error has an exit status"
            time.sleep(config.standby.poll_seconds)


def _serve_once(config: Config) -> int:
    """Run one daemon to its end; raises StoreError where it is to stand by again."""
    try:
        coordinator = Coordinator(config)
    except (ConfigurationError, InvalidInputError, OSError) as error:
        log.error("configuration_does_not_work", reason=str(error))
        return EXIT_CONFIGURATION
    except TokenError as error:
        log.error("coordinator_failed", reason=str(error))
        return EXIT_FAILED
    try:
        asyncio.run(_run(coordinator))
    except ConfigurationError as error:
        log.error("configuration_does_not_work", reason=str(error))
        return EXIT_CONFIGURATION
    except MatlError as error:
        if config.standby is not None and isinstance(error, StoreError):
            raise
        event, status = end_of(error)
        log.error(event, reason=str(error))
        return status
    return 0


def end_of(error: MatlError) -> tuple[str, int]:
    """What ended a daemon that has no standby, and with which status it ends."""
    if isinstance(error, StaleWriterError):
        return "another_coordinator_took_over", EXIT_REPLACED
    return "coordinator_failed", EXIT_FAILED


def serve_front_end(config: FrontEndConfig) -> int:
    """Run a front end in this process until it is told to stop; returns the exit status."""
    bound_memory()
    configure_logs(config.listen.logs)
    _have_descriptors()
    try:
        asyncio.run(_run_front_end(config))
    except ConfigurationError as error:
        log.error("configuration_does_not_work", reason=str(error))
        return EXIT_CONFIGURATION
    except MatlError as error:
        log.error("front_end_failed", reason=str(error))
        return EXIT_FAILED
    return 0


async def _run_front_end(config: FrontEndConfig) -> None:
    front_end = FrontEnd(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, front_end.stop)
    await front_end.run()


def _have_descriptors() -> None:
    if (allowed := raise_descriptor_limit(OPEN_DESCRIPTORS)) < OPEN_DESCRIPTORS:
        log.warning("few_open_files", allowed=allowed, recommended=OPEN_DESCRIPTORS)


async def _run(coordinator: Coordinator) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, coordinator.stop)
    loop.add_signal_handler(signal.SIGHUP, coordinator.read_again)
    with suppress(StoppedError):
        await coordinator.run()


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context,
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The coordinator's TOML file.")
    ] = Path("coordinator.toml"),
    *,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config", help="Print the effective configuration, secrets masked, and exit."
        ),
    ] = False,
) -> None:
    """Run the coordinator of a federation.

    Opens rounds by its schedule, admits updates of enrolled hospitals over mutual TLS,
    scores them against the holdout set, aggregates, evaluates and releases. Stop it with
    Ctrl-C or SIGTERM, or kill it: the next start goes on where it stood.
    """
    if context.invoked_subcommand is not None:
        return
    with _refusals_in_one_line():
        loaded = load_config(config)
    if print_config:
        typer.echo(json.dumps(loaded.printable(), indent=2, default=str))
        return
    raise typer.Exit(serve(loaded))


@app.command()
def migrate(
    *,
    database: Annotated[
        str,
        typer.Option(
            envvar="MATL_OWNER_DATABASE",
            help="The database's URL, as a user that may create tables. In the environment, other "
            "users of this machine do not see its password.",
        ),
    ],
) -> None:
    """Bring a database to this version's tables, and exit.

    Needed where the coordinator's own user may not: on PostgreSQL with separate roles. Run
    deploy/postgresql/roles.sql after it.
    """
    with _refusals_in_one_line():
        engine = create_database_engine(database)
        try:
            upgrade_to_head(engine)
        finally:
            engine.dispose()


@app.command()
def ingest(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The front end's TOML file.")
    ] = Path("front-end.toml"),
    *,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print the effective configuration, and exit."),
    ] = False,
) -> None:
    """Run a front end of a coordinator, which takes hospitals' connections and uploads for it.

    Any number of them stand behind one address, and share the coordinator's spool. A front end
    keeps nothing: kill it, and an upload goes on at another one where it was. Everything else is
    relayed to the coordinator that leads.
    """
    with _refusals_in_one_line():
        loaded = load_front_end_config(config)
    if print_config:
        typer.echo(json.dumps(loaded.printable(), indent=2, default=str))
        return
    raise typer.Exit(serve_front_end(loaded))


@contextmanager
def _refusals_in_one_line() -> Iterator[None]:
    try:
        yield
    except MatlError as error:
        typer.echo(f"matl-coordinator: {error}", err=True)
        wrong_use = isinstance(error, ConfigurationError)
        raise typer.Exit(EXIT_CONFIGURATION if wrong_use else EXIT_FAILED) from None


def main() -> None:
    """Entry point of ``matl-coordinator``."""
    run_to_the_end(app)


if __name__ == "__main__":
    main()
