"""``make bench-wire``: models and updates over the wire, against a bare gRPC stream.

A coordinator with its database, spool and mutual TLS is a process; hospitals fetch a model and
upload updates of the size of ResNet-50 with the participant's client: declared, every chunk
checked and hashed, spooled, durable, looked over, logged and receipted. The bare stream has the
same chunks, certificates and processes and throws the bytes away. Both take turns. Then many
hospitals fetch one model, and the kernel says how often the coordinator read it. Prints a table
and writes out/bench/wire.json.
"""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import grpc
import numpy as np
import psutil
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from matl_common.clock import utc_now
from benchmarks.rounds.site import COORDINATOR, NAME, Site, bytes_of, resnet50
from benchmarks.rounds.study import remove, times_of, wait
from benchmarks.wire_runs import bare
from benchmarks.wire_runs.pages import have_pages_at_hand
from matl.demo.run import Supervisor, free_port
from matl.machine import machine
from matl_common.durable import write_atomically
from matl_common.errors import MatlError
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import parse_public_key
from matl_common.identity.tls import channel_credentials, channel_options
from matl_common.ids import NodeId, digest_of_file
from matl_common.memory import bound_memory
from matl_common.protocol import RoundStart
from matl_common.tensors import chunk_lengths
from matl_participant.client import (
    FederationClient,
    SealedUpdate,
    SignedPlan,
    seal_manifest,
)
from matl_participant.sealing import manifest_of

TURNS: Final = 7
READERS: Final = 20
"""Hospitals that fetch one model at once."""
TARGET: Final = 0.7
_PAGES_AT_HAND: Final = 4
"""Models' worth, where it is asked for: a file, and what gRPC and sockets hold."""
ARMS: Final = ("upload", "bare upload", "download", "bare download")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(slots=True)
class Timing:
    """Of one arm: seconds and CPU seconds of both processes, turn by turn."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Hospital:
    """One hospital's connections, and its update."""

    node: NodeId
    client: FederationClient
    bare: grpc.aio.Channel
    folder: Path
    plan: SignedPlan
    start: RoundStart
    update: SealedUpdate

    @property
    def model(self) -> Path:
        return self.folder / f"{self.start.base_model}.safetensors"

    async def push(self) -> None:
        """Send the update."""
        assert (await self.client.upload(self.update)).receipt is not None

    async def pull(self) -> None:
        """Fetch the round's model."""
        await self.client.pull_model(
            self.start.base_model, total_bytes=self.start.base_model_bytes, folder=self.folder
        )


@asynccontextmanager
async def hospitals(site: Site, bare_port: int) -> AsyncIterator[list[Hospital]]:
    """Everybody, in an open round, with an update that differs from all others."""
    async with AsyncExitStack() as stack:
        clients = {
            node: FederationClient(
                await stack.enter_async_context(
                    grpc.aio.secure_channel(
                        f"127.0.0.1:{site.port}",
                        channel_credentials(site.keys[node].tls),
                        options=channel_options(NAME),
                    )
                ),
                node_id=node,
                federation_id=NAME.federation,
                coordinator_key=parse_public_key(
                    site.keys[node].coordinator_signing_key.read_bytes()
                ),
            )
            for node in site.hospitals
        }
        greeted = await asyncio.gather(
            *(each.hello(version="benchmark", device="cpu") for each in clients.values())
        )
        offers = await asyncio.gather(
            *(
                client.await_round(each.signed_plan, have_round=0, wait_seconds=60)
                for client, each in zip(clients.values(), greeted, strict=True)
            )
        )
        block = np.random.default_rng(0).standard_normal(
            bytes_of(site.tensors) // 4, dtype=np.float32
        )
        # As small as the plan allows updates to be.
        block *= np.float32(1e-3)
        found = []
        for (node, client), each, offer in zip(clients.items(), greeted, offers, strict=True):
            assert offer.round_start is not None
            update = sealed(
                site,
                node,
                client=client,
                plan=each.signed_plan,
                start=offer.round_start,
                values=block,
            )
            block = np.roll(block, 1)
            found.append(
                Hospital(
                    node=node,
                    client=client,
                    bare=await stack.enter_async_context(
                        bare.connect(site.keys[node].tls, NAME, bare_port)
                    ),
                    folder=site.folder / node,
                    plan=each.signed_plan,
                    start=offer.round_start,
                    update=update,
                )
            )
        yield found


def sealed(
    site: Site,
    node: NodeId,
    *,
    client: FederationClient,
    plan: SignedPlan,
    start: RoundStart,
    values: "np.ndarray[tuple[int], np.dtype[np.float32]]",
) -> SealedUpdate:
    """An update as a hospital would have it ready: durable, hashed and signed."""
    file = site.folder / node / "update.f32"
    with file.open("wb") as out:
        out.write(values.astype("<f4", copy=False).data)
        out.flush()
        os.fsync(out.fileno())
    manifest = manifest_of(
        file,
        start=start,
        signed_plan=plan,
        base_model=start.base_model,
        steps=1,
        hashes_of=client.hashes.of_update,
    )
    return seal_manifest(manifest, file, load_p256_key(site.keys[node].signing_key))


async def measure(
    site: Site, *, coordinator: int, stream: int, bare_port: int, turns: int, pages_at_hand: bool
) -> tuple[dict[str, Timing], dict[int, float]]:
    """Times of every arm, and how often ``n`` hospitals' fetching had the model read."""
    timings = {arm: Timing() for arm in ARMS}
    chunks = len(chunk_lengths(bytes_of(site.tensors)))

    async def timed(arm: str, server: int, work: Awaitable[object]) -> None:
        if pages_at_hand:
            have_pages_at_hand(site.folder, _PAGES_AT_HAND * bytes_of(site.tensors))
        cpu, began = _cpu(server), time.perf_counter()
        await work
        timings[arm].seconds.append(time.perf_counter() - began)
        timings[arm].cpu_seconds.append(_cpu(server) - cpu)

    async with hospitals(site, bare_port) as found:
        # The last hospital keeps the round open; the first is where everything warms up.
        first, *others, _last = found
        for hospital in (first, *others[:turns]):
            await timed("bare download", stream, bare.pull(hospital.bare, chunks))
            await timed("download", coordinator, hospital.pull())
            assert digest_of_file(hospital.model) == hospital.start.base_model
            await timed("bare upload", stream, bare.push(hospital.bare, chunks))
            await timed("upload", coordinator, hospital.push())
        reads = {n: await _reads(found[:n], coordinator) for n in (1, 5, len(found))}
    for each in timings.values():
        del each.seconds[0], each.cpu_seconds[0]
    return timings, reads


async def _reads(found: Sequence[Hospital], coordinator: int) -> float:
    """How many times the model's bytes the coordinator read while these fetched it at once."""
    for each in found:
        each.model.unlink(missing_ok=True)
    before = psutil.Process(coordinator).io_counters().read_chars
    await asyncio.gather(*(each.pull() for each in found))
    read = psutil.Process(coordinator).io_counters().read_chars - before
    return read / found[0].start.base_model_bytes


def _cpu(server: int) -> float:
    own, theirs = time.process_time(), psutil.Process(server).cpu_times()
    return own + theirs.user + theirs.system


@contextmanager
def bare_server(site: Site, port: int) -> Iterator[int]:
    """A process that serves the bare stream; its id."""
    argv = [sys.executable, "-m", "benchmarks.wire_runs.bare"]
    folder = site.folder / "keys" / COORDINATOR
    with subprocess.Popen([*argv, str(folder), str(port)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def run(
    folder: Path, *, turns: int, pages_at_hand: bool = False
) -> tuple[dict[str, Timing], dict[int, float]]:
    """Measure with processes of this run's own.

    Raises:
        MatlError: the coordinator did not start, or refused what it was sent.
    """
    names = tuple(NodeId(f"hospital_{number:02d}") for number in range(max(READERS, turns + 2)))
    site = Site(folder, names, resnet50(), rounds=1)
    remove(site)
    folder.mkdir(parents=True)
    site.write()
    bare_port = free_port()
    with Supervisor() as supervisor, bare_server(site, bare_port) as stream:
        supervisor.start([site.coordinator_program()])
        wait(supervisor, site, lambda: bool(times_of(site, "coordinator_ready")), 120.0)
        found = asyncio.run(
            measure(
                site,
                coordinator=supervisor.pid(COORDINATOR),
                stream=stream,
                bare_port=bare_port,
                turns=turns,
                pages_at_hand=pages_at_hand,
            )
        )
    shutil.rmtree(folder)
    return found


def document(timings: dict[str, Timing], reads: dict[int, float]) -> dict[str, object]:
    """``wire.json`` as a value."""
    size = bytes_of(resnet50())
    return {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.wire", *sys.argv[1:]]),
        "settings": {"bytes": size, "database": "sqlite", "grpcio": grpc.__version__},
        "measurements": {
            **{f"{_key(arm)}_seconds": each.seconds for arm, each in timings.items()},
            **{f"{_key(arm)}_cpu_seconds": each.cpu_seconds for arm, each in timings.items()},
            **{f"model_reads_n{n}": round(times, 3) for n, times in reads.items()},
        },
        "ratios": {
            f"{arm}_vs_bare_stream": round(ratio(timings, arm), 3) for arm in ("upload", "download")
        },
    }


def ratio(timings: dict[str, Timing], arm: str) -> float:
    """The bare stream's median seconds over ours: 1 would be as fast as the wire."""
    return median(timings[f"bare {arm}"].seconds) / median(timings[arm].seconds)


def _key(arm: str) -> str:
    return arm.replace(" ", "_")


def show(console: Console, timings: dict[str, Timing], reads: dict[int, float]) -> None:
    """Print the tables."""
    size = bytes_of(resnet50())
    table = Table(
        box=box.SIMPLE,
        title=f"{size / 1e6:.1f} MB in chunks of 1 MiB over mutual TLS",
        caption=f"Medians of {len(timings['upload'].seconds)} turns. CPU: of both processes. "
        f"Target: {TARGET:.0%} of the bare stream.",
    )
    table.add_column("Path", no_wrap=True)
    for column in ("Seconds", "MB/s", "CPU s", "Of bare"):
        table.add_column(column, justify="right")
    for arm in ARMS:
        each = timings[arm]
        share = "" if arm.startswith("bare") else f"{ratio(timings, arm):.0%}"
        seconds = median(each.seconds)
        table.add_row(
            arm,
            f"{seconds:.3f}",
            f"{size / 1e6 / seconds:.0f}",
            f"{median(each.cpu_seconds):.3f}",
            share,
        )
    console.print(table)
    told = ", ".join(f"{n}: {times:.2f}" for n, times in reads.items())
    console.print(f"Times the model was read while so many hospitals fetched it: {told}.")


@app.command()
def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("out/bench"),
    turns: Annotated[int, typer.Option(min=3, help="Of every arm.")] = TURNS,
    pages_at_hand: Annotated[
        bool,
        typer.Option(
            "--pages-at-hand", help="Free some memory before every turn; see wire_runs/pages.py."
        ),
    ] = False,
) -> None:
    """Measure the wire."""
    console = Console()
    out = out.resolve()
    # As a hospital's daemon does.
    bound_memory()
    try:
        timings, reads = run(out / "wire", turns=turns, pages_at_hand=pages_at_hand)
    except MatlError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    show(console, timings, reads)
    text = json.dumps(document(timings, reads), indent=2, allow_nan=False)
    write_atomically(out / "wire.json", [text.encode() + b"\n"], mode=0o644)
    console.print(f"Figures: {out / 'wire.json'}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.wire")
