"""The participant daemon: reads its configuration, puts the parts together, and runs.

The composition root: everything is made here and handed on. Never imports torch,
which lives in the worker process.
"""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import grpc
import structlog
import typer
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from matl_common.attestation.policy import load_policy
from matl_common.attestation.verifier import check_available
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.held_keys import P256Key, load_p256_key, load_tls_key, refuse_shared_keys
from matl_common.identity.keys import parse_public_key
from matl_common.ids import FederationId
from matl_common.version import __version__
from matl_common.worker import WorkerLimits, WorkerProcess
from matl_participant.attestation import Attestation
from matl_participant.client import FederationClient
from matl_participant.config import Config, load_config
from matl_participant.connection import RenewingChannel
from matl_participant.data.inspect import check_patient_unit, inspect_data
from matl_participant.engine import Outcome, Participant
from matl_participant.files import StateFolder
from matl_common.logs import configure_logs
from matl_common.memory import bound_memory
from matl_participant.log_client import LogClient
from matl_participant.log_files import KeptCheckpoint
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports
from matl_participant.training.link import check_link
from matl_participant.witness import Witness, load_witness_keys

WORKER = (sys.executable, "-m", "matl_participant.training.worker")
EXIT_FAILED, EXIT_CONFIGURATION, EXIT_HALTED = 1, 2, 3

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


async def participate(config: Config, *, worker_argv: Sequence[str] = WORKER) -> Outcome:
    """Run one participant until its study ends, it is halted, or a signal stops it.

    Args:
        config: the whole configuration.
        worker_argv: the training program; it speaks the protocol of ``matl_common.worker``.

    Raises:
        MatlError: the configuration does not work, or the ledger cannot be relied upon.
    """
    columns = inspect_data(config.data.images, config.data.labels_file)
    if warning := check_patient_unit(columns, config.data.images_per_patient):
        structlog.get_logger("matl.participant").warning("participant.patient_unit", why=warning)
    metrics = Metrics()
    reports = Reports(metrics)
    signer = _signer(config, reports)
    if config.daemon.metrics:
        metrics.watch_disk(config.state_dir)
        metrics.serve(config.daemon.metrics)
    limits = WorkerLimits(config.training.keep_warm_seconds, config.training.memory_bytes)
    coordinator = config.coordinator
    async with (
        WorkerProcess(worker_argv, limits=limits) as worker,
        RenewingChannel(
            coordinator.address, config.tls, coordinator.name, reports=reports
        ) as channel,
    ):
        client = FederationClient(
            channel,
            node_id=config.node_id,
            federation_id=coordinator.name.federation,
            coordinator_key=_coordinator_key(coordinator.signing_key),
        )
        witness = witness_of(config, channel, reports)
        attestation = attestation_of(config, channel)
        if config.nodes is not None:
            check_link(config.nodes.token, config.nodes.interface)
        participant = Participant(
            config=config,
            client=client,
            worker=worker,
            signer=signer,
            reports=reports,
            version=__version__,
            chance=random.SystemRandom().random,
            witness=witness,
            attestation=attestation,
        )
        _drain_on_signals(participant)
        return await participant.run()


def witness_of(config: Config, channel: grpc.aio.Channel, reports: Reports) -> Witness | None:
    """The witness that the configuration asks for.

    Raises:
        ConfigurationError: one of its keys does not work.
    """
    keys = load_witness_keys(config)
    reports.witnessing(keys.own.name if keys else None)
    if keys is None:
        return None
    reports.key("witness_key", keys.signer)
    state = StateFolder(config.state_dir)
    return Witness(
        keys=keys,
        client=LogClient(channel, log_key=keys.log),
        state=state,
        kept=KeptCheckpoint(state, keys.log),
        node_id=config.node_id,
        federation=FederationId(config.coordinator.name.federation),
        interval=timedelta(seconds=config.daemon.witness_seconds),
        reports=reports,
        chance=random.SystemRandom().random,
    )


def attestation_of(config: Config, channel: RenewingChannel) -> Attestation | None:
    """What the configuration requires of the coordinator's machine.

    Raises:
        ConfigurationError: the policy does not work, or what verifies its evidence is missing.
    """
    if config.attestation is None:
        return None
    policy = load_policy(config.attestation.policy)
    check_available(policy)
    if policy.allow_simulated:
        structlog.get_logger("matl.participant").warning(
            "participant.accepts_SIMULATED_attestation",
            why="the attestation policy has allow_simulated = true: evidence that proves nothing "
            "is accepted; never with real patients",
        )
    return Attestation(channel, config.coordinator.name, policy)


def _drain_on_signals(participant: Participant) -> None:
    """The first SIGTERM or Ctrl-C drains; a second one stops at once, which is safe too."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked and task is not None:
            task.cancel()
        asked = True
        participant.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    # A daemon's habit is to read its files again; this one does so whenever they change.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)


def _coordinator_key(path: Path) -> EllipticCurvePublicKey:
    try:
        return parse_public_key(path.read_bytes())
    except (OSError, InvalidInputError) as error:
        raise ConfigurationError(
            f"cannot read the coordinator's public signing key from {path}; put the PEM file there "
            "that the coordinator's operator publishes"
        ) from error


def _signer(config: Config, reports: Reports) -> P256Key:
    """What signs updates, once it is seen that nothing else does."""
    tls, signing = (
        load_tls_key(config.identity.tls_key),
        load_p256_key(config.identity.signing_key),
    )
    refuse_shared_keys({"identity.tls_key": tls, "identity.signing_key": signing})
    reports.key("tls_key", tls)
    reports.key("signing_key", signing)
    return signing


@app.command()
def participant(
    config: Annotated[
        Path,
        typer.Option("--config", "-c", help="The TOML configuration file.", show_default=False),
    ],
    print_config: Annotated[  # noqa: FBT002 - typer makes it a flag
        bool, typer.Option("--print-config", help="Print the effective configuration and stop.")
    ] = False,
) -> None:
    """Train on this hospital's data as part of a federation, until stopped.

    Dials out to the coordinator and listens on nothing but, if configured, a metrics
    port. SIGTERM or Ctrl-C finishes the durable step at hand and stops; starting again
    goes on from there. MATL_NODE_ID, MATL_PRIVATE_KEY and MATL_COORDINATOR_ADDRESS take
    precedence over the file.

    Exit status: 0 stopped in order or study complete, 1 failed, 2 the configuration or
    the data does not work, 3 halted (budget spent, or the coordinator's plan or the data
    is not acceptable; the last log line says which).
    """
    try:
        loaded = load_config(config)
    except ConfigurationError as error:
        typer.echo(f"matl-participant: {error}", err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from None
    if print_config:
        typer.echo(json.dumps(loaded.printable(), indent=2, ensure_ascii=False))
        return
    raise typer.Exit(serve(loaded))


def serve(config: Config, *, worker_argv: Sequence[str] = WORKER) -> int:
    """Run the daemon in this process until its end; returns the exit status."""
    os.umask(0o077)
    bound_memory()
    configure_logs(config.daemon.logs, hidden=(config.data.images, config.data.labels_file))
    try:
        outcome = asyncio.run(participate(config, worker_argv=worker_argv))
    except asyncio.CancelledError:
        return EXIT_FAILED
    except MatlError as error:
        typer.echo(f"matl-participant: {error}", err=True)
        return EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else EXIT_FAILED
    return EXIT_HALTED if outcome is Outcome.HALTED else 0


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``matl-participant``; ends the process with the exit status."""
    app(args=None if argv is None else list(argv), prog_name="matl-participant")


if __name__ == "__main__":
    main()
