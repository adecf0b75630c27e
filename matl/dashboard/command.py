"""``monitor_fl_node.py``: what a federation, or this hospital, is doing; a page or a terminal.

Puts the parts together: configuration, connection, watchers, and one of two views. Gives no order.
"""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live

from matl.calls import OperationsError
from matl.connection import DEFAULT_CONFIG, Flags, read_connection
from matl.dashboard.alerts import Alert, alerts_of
from matl.dashboard.board import Tone, board_of
from matl.dashboard.desk import Desk, Door
from matl.dashboard.gate import TOKEN_BYTES
from matl.dashboard.node_board import node_board_of
from matl.dashboard.node_watching import NodeWatcher
from matl.dashboard.server import HOST, free_port, serve_page
from matl.dashboard.terminal import board_view, node_view, part_of, trouble_view
from matl.dashboard.watching import Watcher
from matl.log.place import believed_from
from matl.operations import connect_operator
from matl.terminal import console, errors_in_one_line
from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import parse_spiffe_id
from matl_common.identity.tls import tls_place
from matl_participant.config import load_config

PARTICIPANT_CONFIG: Final = Path("participant.toml")
_DEFAULT_PORT: Final = 8501
_PART_SECONDS: Final = 6.0
"""How long a part of what the terminal is too small for is shown."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@dataclass(frozen=True, slots=True)
class Watched:
    """What there is to look at; at least one of the two."""

    federation: Watcher | None
    node: NodeWatcher | None


@app.command()
def monitor(
    *,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve a page on this machine's loopback.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the same in this terminal.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="With --watch: show it once and stop.")
    ] = False,
    operator_config: Annotated[
        Path | None,
        typer.Option(
            "--operator-config",
            "-c",
            envvar="MATL_OPERATOR_CONFIG",
            help="TOML file with an [operator] table, for the whole federation. Default: "
            "operator.toml, if it exists.",
        ),
    ] = None,
    participant_config: Annotated[
        Path | None,
        typer.Option(
            help="A participant's TOML file, for that hospital's own ledgers, receipts and data. "
            "Default: participant.toml, if it exists.",
        ),
    ] = None,
    log_key: Annotated[
        Path | None,
        typer.Option(
            help="File with the log's verifier key (log.vkey): entries are then verified here. "
            "Default: log_key of the operator's file."
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="tlog-policy; tells also which entries a quorum has witnessed."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the page; 0 for any that is free.")
    ] = _DEFAULT_PORT,
    every: Annotated[float, typer.Option(min=0.5, max=60, help="Seconds between two looks.")] = 2.0,
    idle_minutes: Annotated[
        float,
        typer.Option(min=0.05, max=480, help="How long the page stays open without being used."),
    ] = 15.0,
) -> None:
    """Watch a federation as its operator, or a hospital of it as itself. Read-only.

    With an operator's certificate: hospitals, round and uploads, accuracy, trust with reasons,
    privacy budgets, alerts, and the log's newest entries, each verified here. On a participant:
    its own ledgers, receipts with their proofs, data and metrics. Both, where both files are there.

    The page listens on 127.0.0.1 alone and opens with a token that this terminal shows, each once;
    from another machine, come through ssh -L. Ctrl-C ends it.

    Exit status: 0 ended; 1 --once, and something cannot be reached; 2 wrong options or
    configuration.
    """
    with errors_in_one_line():
        if dashboard == watch or (once and not watch):
            raise ConfigurationError("say --dashboard or --watch; --once goes with --watch")
        with watched(operator_config, participant_config, log_key, policy) as found:
            if dashboard:
                _serve(found, port=port, every=every, idle_minutes=idle_minutes)
            elif once:
                _show_once(found)
            else:
                _watch(found, every=every)


@contextmanager
def watched(
    operator_config: Path | None,
    participant_config: Path | None,
    log_key: Path | None,
    policy: Path | None,
) -> Iterator[Watched]:
    """Watchers of what the files name.

    Raises:
        ConfigurationError: no file is there, or one does not work.
    """
    operator = operator_config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    participant = participant_config or (
        PARTICIPANT_CONFIG if PARTICIPANT_CONFIG.exists() else None
    )
    if operator is None and participant is None:
        raise ConfigurationError(
            f"there is no {DEFAULT_CONFIG} and no {PARTICIPANT_CONFIG} here; give "
            "--operator-config or --participant-config"
        )
    with ExitStack() as stack:
        federation = None
        if operator is not None:
            wanted = read_connection(operator, Flags(None, None, None, None, None))
            files = tls_place(wanted.key, wanted.certificate, wanted.authority)
            name = parse_spiffe_id(wanted.coordinator)
            believed = believed_from(log_key or wanted.log_key, policy)
            federation = Watcher(
                partial(connect_operator, wanted.address, files, name), believed, clock=utc_now
            )
            stack.callback(federation.close)
        node = None
        if participant is not None:
            node = NodeWatcher(load_config(participant), clock=utc_now)
        yield Watched(federation, node)


def _serve(found: Watched, *, port: int, every: float, idle_minutes: float) -> None:
    place = port or free_port()
    typer.echo(f"The page is at http://{HOST}:{place} until Ctrl-C.")
    door = Door(
        draw_token=lambda: secrets.token_urlsafe(TOKEN_BYTES),
        announce=lambda token: typer.echo(f"Log in with this token, which works once: {token}"),
        clock=utc_now,
    )
    desk = Desk(
        federation=found.federation,
        node=found.node,
        door=door,
        idle_after=timedelta(minutes=idle_minutes),
        every=timedelta(seconds=every),
        clock=utc_now,
    )
    serve_page(desk, port=place)


def _watch(found: Watched, *, every: float) -> None:
    screen = Console(highlight=False)
    with suppress(KeyboardInterrupt), Live(console=screen, screen=screen.is_terminal) as live:
        for look in count():
            turn = int(look * every / _PART_SECONDS)
            view = _view(found)
            shown = part_of(view, screen, turn=turn) if screen.is_terminal else view
            live.update(shown, refresh=True)
            time.sleep(every)


def _show_once(found: Watched) -> None:
    views = []
    if found.federation is not None:
        snapshot = found.federation.look()
        views.append(board_view(board_of(snapshot), alerts_of(snapshot), at=snapshot.at))
    if found.node is not None:
        views.append(_node_view(found.node))
    console().print(Group(*views))


def _view(found: Watched) -> RenderableType:
    """Everything there is to see, or why it cannot be seen: a watch outlives an outage."""
    views = []
    if found.federation is not None:
        views.append(_federation_view(found.federation))
    if found.node is not None:
        views.append(_node_view_or_why(found.node))
    return Group(*views)


def _node_view(watcher: NodeWatcher) -> RenderableType:
    snapshot = watcher.look()
    return node_view(node_board_of(snapshot), at=snapshot.at)


def _node_view_or_why(watcher: NodeWatcher) -> RenderableType:
    try:
        return _node_view(watcher)
    except OSError as error:
        failed = "This hospital's state cannot be read"
        return trouble_view(Alert(Tone.BAD, failed, error.strerror or ""))


def _federation_view(watcher: Watcher) -> RenderableType:
    troubles: tuple[Alert, ...] = ()
    try:
        snapshot = watcher.look()
    except OperationsError as error:
        trouble = Alert(Tone.BAD, "The coordinator does not answer as it should", str(error))
        if watcher.last is None:
            return trouble_view(trouble)
        snapshot, troubles = watcher.last, (trouble,)
    return board_view(board_of(snapshot), (*troubles, *alerts_of(snapshot)), at=snapshot.at)


def main() -> None:
    """Entry point of ``monitor_fl_node.py``."""
    app(prog_name="monitor_fl_node.py")


if __name__ == "__main__":
    main()
