"""Another machine of a hospital that trains together with its participant's.

Waits until the first node trains, starts this node's processes under PyTorch's launcher,
and waits again. It holds no key, charges nothing and dials nothing but the first node's
rendezvous: what is to be done is told there (``nodes``), the data are this node's own.
"""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import structlog
import typer

from matl_common.errors import ConfigurationError, MatlError
from matl_common.host_port import split_address
from matl_common.logs import configure_logs
from matl_participant.node_config import NodeConfig, load_node_config
from matl_participant.training.devices import count_processes
from matl_participant.training.link import check_link
from matl_participant.training.processes import Processes
from matl_participant.training.requests import parse_order

EXIT_CONFIGURATION = 2
_POLL_SECONDS = 1.0
_REST_SECONDS = 2.0
"""After a share, in which the first node closes the port that announces the next one."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def follow(config: NodeConfig) -> None:
    """Do this node's share of all that the first node asks for, until ended.

    Raises:
        ConfigurationError: the token, the images or the interface are not there.
    """
    log = structlog.get_logger("matl.node")
    nodes, training = config.nodes, config.training
    check_link(nodes.token, nodes.interface)
    if not config.data.labels_file.is_file():
        raise ConfigurationError("data.labels is not there; copy or mount the first node's data")
    resources = parse_order(config.order).resources
    count = count_processes(training.device, asked=training.processes)
    processes = Processes(
        count,
        resources.threads_each(count),
        # The first node reports for all.
        lambda _: None,
        nodes=resources.nodes,
        stall_seconds=training.stall_seconds,
    )
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.info("node.waits", rank=nodes.rank, processes=count)
    while True:
        _wait_for(nodes.rendezvous)
        log.info("node.share_begun")
        try:
            processes.run(config.order, beside=config.state_dir / "share")
            log.info("node.share_done")
        except MatlError as error:
            log.warning("node.share_failed", error=str(error))
        time.sleep(_REST_SECONDS)


def _wait_for(rendezvous: str) -> None:
    """Return when somebody listens there."""
    address = split_address(rendezvous)
    while True:
        try:
            socket.create_connection(address, timeout=_POLL_SECONDS).close()
        except OSError:
            time.sleep(_POLL_SECONDS)
        else:
            return


@app.command()
def node(
    config: Annotated[
        Path,
        typer.Option("--config", "-c", help="The TOML configuration file.", show_default=False),
    ],
) -> None:
    """Train together with this hospital's participant, from another machine, until stopped.

    Holds no key and charges nothing. SIGTERM or Ctrl-C ends it at once, and with it the round
    that the participant is training, which stays charged.

    Exit status: 2 the configuration does not work.
    """
    os.umask(0o077)
    try:
        loaded = load_node_config(config)
        configure_logs(loaded.logs, hidden=(loaded.data.images, loaded.data.labels_file))
        follow(loaded)
    except ConfigurationError as error:
        typer.echo(f"matl-training-node: {error}", err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``matl-training-node``."""
    app(args=None if argv is None else list(argv), prog_name="matl-training-node")


if __name__ == "__main__":
    main()
