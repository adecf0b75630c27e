"""``make bench-takeover``: how long a study has no leader when the one it had is gone.

Two real coordinator daemons on a PostgreSQL server of its own, and three hospitals with scripted
training, over mutual TLS on loopback; the model is small. The leader is killed while it collects
(and in the last turn stopped, so that its lease has to run out), the other leads, and the first
comes back as the standby. Times are those of the daemons' own log lines. Prints a table and writes
out/bench/takeover.json.
"""

import json
import shlex
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import matl_common  # noqa: F401  (before gRPC, which reads its TLS settings once)
from matl.machine import machine
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from tests.postgres import own_server
from tests.system.federation import Federation, found_federation, prepare_material
from tests.system.processes import Daemon, Line, until

OUT: Final = Path("out/bench")
LEASE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Takeover:
    """Seconds after the leader's end until each was so."""

    how: str
    leads: float
    """The other has the lock."""
    ready: float
    """It has read everything, and listens."""
    followed: float
    """The last hospital is connected."""


def main(
    kills: Annotated[int, typer.Option(min=1, help="Leaders killed; one more is stopped.")] = 5,
) -> None:
    """Measure how long hospitals are without a coordinator."""
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="matl-takeover-") as folder,
        own_server() as server,
        ExitStack() as running,
    ):
        federation = found_federation(
            Path(folder) / "federation",
            prepare_material(Path(folder) / "material"),
            database=server.url,
            study={"rounds": 2},
        )
        measured = _measure(federation, running, kills=kills)
    table = Table("Leader", "lock, s", "ready, s", "last hospital, s", box=SIMPLE_HEAD)
    for each in measured:
        table.add_row(each.how, *(f"{x:.1f}" for x in (each.leads, each.ready, each.followed)))
    console.print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    report = {
        "command": shlex.join(sys.argv),
        "at": utc_now().isoformat(timespec="seconds"),
        "machine": machine(),
        "lease_seconds": LEASE_SECONDS,
        "takeovers": [asdict(each) for each in measured],
    }
    path = OUT / "takeover.json"
    write_atomically(path, [json.dumps(report, indent=2).encode()], mode=0o644)
    console.print(f"Written to {path}.")


def _measure(federation: Federation, running: ExitStack, *, kills: int) -> list[Takeover]:
    places = [
        federation.daemon_named(name, poll_seconds=1.0, lease_seconds=LEASE_SECONDS)
        for name in ("first", "second")
    ]
    # A round stays open: one hospital's training does not end.
    held = federation.hospitals[0]
    federation.control(held).write_text("wait")
    leader = running.enter_context(places[0].start_coordinator())
    leader.wait_for("coordinator_ready")
    addresses = ",".join(each.address for each in places)
    hospitals = {
        node: running.enter_context(federation.start_scripted(node, address=addresses))
        for node in federation.hospitals
        if node != held
    }
    hospitals[held] = running.enter_context(federation.start_scripted(held, address=addresses))
    for each in hospitals.values():
        each.wait_for("participant.connected")
    # One that trains asks nobody.
    idle = [each for node, each in hospitals.items() if node != held]
    found = []
    for turn in range(kills + 1):
        other = running.enter_context(places[1 - turn % 2].start_coordinator())
        other.wait_for("coordinator_standing_by")
        ended = utc_now()
        if turn < kills:
            leader.kill()
        else:
            leader.suspend()
        followed = [_connected(each, since=ended) for each in idle]
        found.append(
            Takeover(
                "killed" if turn < kills else "stopped",
                _after(ended, other.wait_for("coordinator_leads")),
                _after(ended, other.wait_for("coordinator_ready")),
                max(_after(ended, each) for each in followed),
            )
        )
        leader = other
    return found


def _connected(hospital: Daemon, *, since: datetime) -> Line:
    def later() -> list[Line]:
        return [each for each in hospital.events("participant.connected") if _time(each) > since]

    # By gRPC's pings only, where the leader was stopped.
    until(later, what="a hospital has followed", seconds=300.0)
    return later()[0]


def _after(begin: datetime, line: Line) -> float:
    return (_time(line) - begin).total_seconds()


def _time(line: Line) -> datetime:
    return datetime.fromisoformat(str(line["timestamp"]))


if __name__ == "__main__":
    typer.run(main)
