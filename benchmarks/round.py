"""``make bench-round``: what a round costs beside training, against NVIDIA FLARE and Flower.

A coordinator and five hospitals, each a daemon of its own, with mutual TLS, ledger, sealing,
signed log and SQLite on loopback; models and updates of the size of ResNet-50, of random numbers.
The peers do the same rounds in turn, as deployments with TLS. Then rounds of more and more
hospitals, many to a process, and what a coordinator costs while it waits. Prints tables, draws
out/bench/round.png and writes out/bench/round.json.
"""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from benchmarks.rounds.growth import Growth, draw, fits
from benchmarks.rounds.idle import Idle, run_idle
from benchmarks.rounds.peers import PEERS, PeerRounds, run_peer
from benchmarks.rounds.round_report import Findings, document, show
from benchmarks.rounds.site import MILLION, Site, Tensors, bytes_of, resnet50
from benchmarks.rounds.study import Found, remove, run_study
from matl.demo.run import StopRequestedError, stop_on_signals
from matl_common.durable import write_atomically
from matl_common.errors import MatlError
from matl_common.ids import NodeId

HOSPITALS: Final = 5
IDLE_HOSPITALS: Final = 200
PROCESSES: Final = 2
"""That many hospitals share where there are more than ``HOSPITALS``."""
SECONDS_A_HOSPITAL: Final = 30.0
"""Longest that a round may take, for each hospital."""
EXIT_FAILED, EXIT_STOPPED = 1, 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def ours(
    folder: Path, *, n: int, rounds: int, tensors: Tensors, processes: int, keep_spooled: int = 2
) -> Found:
    """One study of ours; its files are gone afterwards unless it failed."""
    names = tuple(NodeId(f"hospital_{number:03d}") for number in range(n))
    site = Site(folder, names, tensors, rounds=rounds, keep_spooled=keep_spooled)
    remove(site)
    folder.mkdir(parents=True)
    found = run_study(site, processes=processes, seconds=SECONDS_A_HOSPITAL * n)
    remove(site)
    return found


def compare(
    console: Console, out: Path, *, peers: list[str], hospitals: int, rounds: int, turns: int
) -> tuple[list[Found], dict[str, list[PeerRounds]]]:
    """Let us and every peer take turns."""
    mine: list[Found] = []
    theirs: dict[str, list[PeerRounds]] = {name: [] for name in peers}
    for turn in range(turns):
        console.print(f"turn {turn + 1} of {turns}")
        # One more: what is done for the first time is told apart.
        found = ours(
            out / "bench/round",
            n=hospitals,
            rounds=rounds + 2,
            tensors=resnet50(),
            processes=hospitals,
        )
        mine.append(found)
        _tell(console, "matl", found.seconds, found.cpu_seconds, found.coordinator_peak_bytes)
        for name, runs in theirs.items():
            peer = run_peer(PEERS[name], out=out, n=hospitals, rounds=rounds)
            runs.append(peer)
            _tell(console, name, peer.median_seconds, peer.cpu_seconds, peer.server_peak_bytes)
    return mine, theirs


def grow(
    console: Console, out: Path, *, sizes: list[int], tensors: Tensors, rounds: int
) -> list[Growth]:
    """Rounds of more and more hospitals, as far as the disk has room."""
    measured = []
    for n in sizes:
        if not fits(out, n=n, update_bytes=bytes_of(tensors)):
            console.print(f"{n} hospitals: the disk has no room for their files")
            continue
        found = ours(
            out / "bench/round",
            n=n,
            rounds=rounds + 2,
            tensors=tensors,
            processes=PROCESSES,
            keep_spooled=0,
        )
        measured.append(Growth(n, bytes_of(tensors), found))
        _tell(
            console,
            f"{n} hospitals",
            found.seconds,
            found.cpu_seconds,
            found.coordinator_peak_bytes,
        )
    return measured


def idle(out: Path, *, seconds: float) -> tuple[Idle, Idle]:
    """A coordinator that waits for an operator to open a round."""
    names = tuple(NodeId(f"hospital_{number:03d}") for number in range(IDLE_HOSPITALS))
    site = Site(out / "bench/idle", names, MILLION, rounds=1, schedule="manual")
    remove(site)
    site.folder.mkdir(parents=True)
    found = run_idle(site, seconds=seconds, processes=PROCESSES)
    remove(site)
    return found


def _tell(console: Console, name: str, seconds: float, cpu: float, peak: int) -> None:
    console.print(
        f"  {name:<14} {seconds:7.2f} s a round, {cpu:6.1f} CPU s, "
        f"server {peak / 1e6:,.0f} MB at most",
        highlight=False,
    )


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]


@app.command()
def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of environments and figures.")] = Path("out"),
    peers: Annotated[str, typer.Option(help="Whom to compare with.")] = "flare,flower",
    hospitals: Annotated[
        int, typer.Option(min=3, help="Each a daemon, in what is compared.")
    ] = HOSPITALS,
    rounds: Annotated[int, typer.Option(min=1, help="That count, of every study.")] = 3,
    turns: Annotated[int, typer.Option(min=0, help="Of us and of every peer.")] = 3,
    growth: Annotated[
        str, typer.Option(help="Numbers of hospitals, with a million parameters.")
    ] = "5,20,50,100,200",
    growth_resnet: Annotated[
        str, typer.Option(help="The same with ResNet-50, where the disk has room.")
    ] = "5,20,50",
    idle_seconds: Annotated[float, typer.Option(min=0.0, help="To watch; 0: not at all.")] = 60.0,
) -> None:
    """Measure rounds without training."""
    console = Console()
    stop_on_signals()
    out = out.resolve()
    (out / "bench").mkdir(parents=True, exist_ok=True)
    wanted = [name for name in peers.split(",") if name]
    for name in list(wanted):
        if missing := PEERS[name].missing(out):
            console.print(f"nothing is compared with {name}: {missing} is not there")
            wanted.remove(name)
    findings = Findings(path=out / "bench/round.json")
    steps: dict[str, Callable[[], object]] = {
        "compared": lambda: compare(
            console, out, peers=wanted, hospitals=hospitals, rounds=rounds, turns=turns
        ),
        "million": lambda: grow(
            console, out, sizes=_numbers(growth), tensors=MILLION, rounds=rounds
        ),
        "resnet": lambda: grow(
            console, out, sizes=_numbers(growth_resnet), tensors=resnet50(), rounds=1
        ),
        "idle": lambda: idle(out, seconds=idle_seconds) if idle_seconds else None,
    }
    try:
        for name, step in steps.items():
            setattr(findings, name, step())
    except StopRequestedError:
        console.print("Stopped; nothing is left running.")
        raise typer.Exit(EXIT_STOPPED) from None
    except MatlError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from None
    show(console, findings)
    text = json.dumps(document(findings), indent=2, allow_nan=False)
    write_atomically(findings.path, [text.encode() + b"\n"], mode=0o644)
    if findings.million:
        draw(findings.million, findings.resnet, out / "bench/round.png")
    console.print(f"Figures: {findings.path}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.round")
