"""``make bench-log``: how fast the log takes entries, proves them and is verified.

Runs a PostgreSQL server of its own with fsync on, or uses ``--database``, with the roles of
``deploy/postgresql/roles.sql``: appends go through the coordinator's store as the writer. The
bare loop has no log: one INSERT of 400 bytes an entry and a COMMIT a batch, the INSERTs sent
without waiting for answers; another waits for each. Prints tables and writes out/bench/log.json.
"""

import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Final

import psycopg
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from matl.log.sources import DatabaseSource
from matl.log.verification import Believed, verify_log
from matl.machine import machine
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.errors import MatlError
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.entry import Entry, entry_of
from matl_common.tlog.merkle import (
    Frontier,
    NodeAddress,
    ReadNode,
    grow,
    inclusion_proof,
    leaf_hash,
    nodes_read,
    root_from,
    verify_inclusion,
)
from matl_common.tlog.verification import LogVerifier
from matl_coordinator.service.register import Decision, Register
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import PAGE, LogReader
from matl_coordinator.store.sql import SqlStore
from tests.logs import LOG
from tests.postgres import fresh_database, running_postgres
from tests.store.roles import READER, WRITER, prepare, url_of

BATCHES: Final = (1, 16, 64, 256, 1024)
CALLERS: Final = (1, 16, 64)
"""Who append one entry each, and the next once the one before is durable."""
PAYLOAD_BYTES: Final = 400
SECONDS: Final = 3.0
ROUNDS: Final = 3
"""Turns of every arm; the median is told."""
TREE_LEAVES: Final = 10_000_000
PROOFS: Final = 500
VERIFIED_LEAVES: Final = 100_000
RATE_TARGET, RATIO_TARGET, PROOF_TARGET, VERIFY_TARGET = 15_000, 0.7, 2.0, 100_000
EXIT_FAILED: Final = 1
_OVERHEAD_BYTES: Final = 12 + 32 + 16
"""Nonce, salt and tag of a payload."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class BenchmarkFailedError(MatlError):
    """What was measured is not a log, so that figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Entries a second, of each turn, and how long single commits took."""

    per_second: list[float]
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        return median(self.per_second)


@dataclass(frozen=True, slots=True)
class Proofs:
    """Inclusion proofs in a large tree, each read and computed anew."""

    leaves: int
    built_seconds: float
    hashes_read: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Verified:
    """Leaves a second of one core, by what is done; medians.

    A core's time is that of the process that verifies; PostgreSQL's own is in ``elapsed``.
    """

    whole: float
    """As ``matl audit verify`` does: reads the database, and goes over leaves, places, payloads,
    nodes and the signed checkpoint."""
    elapsed: float
    """The same by the clock."""
    opened: float
    """The same, and decrypts every entry and compares it with its leaf."""
    in_memory: float
    """Leaves, places and payloads that were read before."""
    hashes_only: float
    """Leaf hashes and the tree's root."""


def an_entry(number: int) -> Entry:
    """An entry whose payload has ``PAYLOAD_BYTES``."""
    facts = {
        "event": "update_admitted",
        "at": utc_now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "node": "hospital_b",
        "round": 7,
        "number": number % 1000 + 1000,
        "text": "",
    }
    missing = PAYLOAD_BYTES - _OVERHEAD_BYTES - len(entry_of(facts).data)
    return entry_of({**facts, "text": "x" * missing})


def timed(commit: Callable[[], None], *, batch: int, seconds: float) -> tuple[float, list[float]]:
    """Commit until the time is over; entries a second, and the seconds of each commit."""
    latencies: list[float] = []
    began = last = time.perf_counter()
    while last - began < seconds:
        commit()
        now = time.perf_counter()
        latencies.append(now - last)
        last = now
    return batch * len(latencies) / (last - began), latencies


def appender(store: SqlStore, batch: int) -> Callable[[], None]:
    """Commits a batch to the log."""
    entries = [an_entry(number) for number in range(batch)]

    def commit() -> None:
        store.commit([], entries)

    return commit


def bare_inserter(connection: psycopg.Connection, batch: int, *, waits: bool) -> Callable[[], None]:
    """Inserts a batch of rows of the same payload, and commits."""
    cursor, numbers = connection.cursor(), count()
    payload, statement = os.urandom(PAYLOAD_BYTES), "INSERT INTO bare VALUES (%s, %s)"
    cursor.execute(
        "CREATE TABLE IF NOT EXISTS bare (number bigint PRIMARY KEY, payload bytea NOT NULL)"
    )
    cursor.execute("TRUNCATE bare")
    connection.commit()

    def commit() -> None:
        rows = [(next(numbers), payload) for _ in range(batch)]
        if waits:
            for row in rows:
                cursor.execute(statement, row)
        else:
            cursor.executemany(statement, rows)
        connection.commit()

    return commit


def measure_appends(server: str, *, seconds: float) -> dict[str, dict[int, Speed]]:
    """Every arm at every batch, in turns, on a fresh database each turn."""
    runs: dict[tuple[str, int], list[tuple[float, list[float]]]] = {}
    for _ in range(ROUNDS):
        for batch in BATCHES:
            with fresh_database(server) as url:
                prepare(url)
                with closing(SqlStore.connect(url_of(url, WRITER), **LOG)) as store:
                    store.load()
                    append = appender(store, batch)
                    append()
                    run = timed(append, batch=batch, seconds=seconds)
                    runs.setdefault(("append", batch), []).append(run)
                    _check_gapless(store)
                with psycopg.connect(plain(url)) as connection:
                    for arm, waits in (("bare", False), ("bare_waiting", True)):
                        insert = bare_inserter(connection, batch, waits=waits)
                        insert()
                        run = timed(insert, batch=batch, seconds=seconds)
                        runs.setdefault((arm, batch), []).append(run)
    return {
        arm: {batch: _speed(runs[arm, batch]) for batch in BATCHES}
        for arm in ("append", "bare", "bare_waiting")
    }


def _speed(runs: Sequence[tuple[float, list[float]]]) -> Speed:
    p50, p99 = percentiles_ms([each for _, latencies in runs for each in latencies])
    return Speed([round(rate, 1) for rate, _ in runs], p50, p99)


def _check_gapless(store: SqlStore) -> None:
    head = store.log_head()
    hashes = (
        bytes.fromhex(each.leaf_hash)
        for start in range(0, head.size, 5000)
        for each in store.log_entries(start=start, limit=5000)
    )
    grown, _ = grow(Frontier(), hashes)
    if grown.size != head.size or grown.root().hex() != head.root:
        raise BenchmarkFailedError("the log that was measured has a gap, or another root")


def measure_callers(server: str, *, seconds: float) -> dict[int, Speed]:
    """Single appends by many at once, as calls reach a coordinator: its register groups them."""
    runs: dict[int, list[tuple[float, list[float]]]] = {}
    for _ in range(ROUNDS):
        for callers in CALLERS:
            with fresh_database(server) as url:
                prepare(url)
                with closing(SqlStore.connect(url_of(url, WRITER), **LOG)) as store:
                    run = asyncio.run(_called(store, callers=callers, seconds=seconds))
                    runs.setdefault(callers, []).append(run)
                    _check_gapless(store)
    return {callers: _speed(found) for callers, found in runs.items()}


async def _called(store: SqlStore, *, callers: int, seconds: float) -> tuple[float, list[float]]:
    register, latencies, written = Register(store), list[float](), (an_entry(0),)
    await register.state()
    began = time.perf_counter()

    async def call() -> None:
        while (asked := time.perf_counter()) - began < seconds:
            await register.decide(lambda _: Decision(None, (), written))
            latencies.append(time.perf_counter() - asked)

    await asyncio.gather(*(call() for _ in range(callers)))
    return len(latencies) / (time.perf_counter() - began), latencies


def measure_proofs(server: str, *, leaves: int) -> Proofs:
    """Inclusion proofs through the store, from a tree whose leaves are hashes of numbers."""
    with fresh_database(server) as url:
        prepare(url)
        began = time.perf_counter()
        with psycopg.connect(plain(url)) as connection:
            build_tree(connection, leaves)
        built = time.perf_counter() - began
        with closing(SqlStore.connect(url_of(url, WRITER), **LOG)) as store:
            nodes = store.log_nodes(nodes_read(partial(root_from, leaves)))
            root = root_from(leaves, reader(nodes))
            took: list[float] = []
            read_counts: list[int] = []
            for number in range(PROOFS):
                index = number * leaves // PROOFS
                began = time.perf_counter()
                stored = store.log_nodes(nodes_read(partial(inclusion_proof, index, leaves)))
                proof = inclusion_proof(index, leaves, reader(stored))
                took.append(time.perf_counter() - began)
                read_counts.append(len(stored))
                leaf = store.log_node(0, index)
                verify_inclusion(index=index, size=leaves, leaf=leaf, proof=proof, root=root)
    # The first calls plan their statements.
    p50, p99 = percentiles_ms(took[10:])
    return Proofs(leaves, round(built, 1), max(read_counts), p50, p99)


def reader(nodes: Mapping[NodeAddress, bytes]) -> ReadNode:
    """Reads from nodes that were fetched."""
    return lambda level, index: nodes[level, index]


def build_tree(connection: psycopg.Connection, leaves: int) -> None:
    """Fill ``log_nodes`` as an administrator can; appending as many would take longer."""
    connection.execute("SET statement_timeout = 0")
    connection.execute(
        "INSERT INTO log_nodes SELECT 0, number, sha256(int8send(number)) "
        "FROM generate_series(0, %s::bigint - 1) AS number",
        (leaves,),
    )
    level, width = 0, leaves
    while width > 1:
        level, width = level + 1, width // 2
        connection.execute(
            "INSERT INTO log_nodes "
            "SELECT %(level)s, node_index / 2, sha256('\\x01'::bytea || hash || next) "
            "FROM (SELECT node_index, hash, lead(hash) OVER (ORDER BY node_index) AS next "
            "      FROM log_nodes WHERE level = %(below)s) AS pairs "
            "WHERE node_index %% 2 = 0 AND next IS NOT NULL",
            {"level": level, "below": level - 1},
        )
    connection.commit()
    connection.autocommit = True
    connection.execute("VACUUM ANALYZE log_nodes")


def measure_verification(server: str, *, leaves: int) -> Verified:
    """What the product verifies a log with, on a log of one signed checkpoint."""
    signer = Ed25519PrivateKey.generate()
    key = log_key(LOG["log_origin"], signer.public_key())
    with fresh_database(server) as url:
        prepare(url)
        with closing(SqlStore.connect(url_of(url, WRITER), **LOG)) as store:
            store.load()
            append = appender(store, BATCHES[-1])
            while store.log_head().size < leaves:
                append()
            head = store.log_head()
            checkpoint = Checkpoint(key.name, head.size, bytes.fromhex(head.root))
            note = sign_checkpoint(checkpoint, key, signer).note.encode()
            store.put_checkpoint(head.size, note)
        with psycopg.connect(plain(url), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        reader = LogReader(create_database_engine(url_of(url, READER)))
        rows = [leaf for page in reader.pages() for leaf in page]
        keys = reader.data_keys(LOG["log_key"])

        def verify(believed: Believed) -> None:
            report = verify_log(DatabaseSource(reader), believed)
            if (report.tally.size, report.signed_size) != (head.size, head.size):
                raise BenchmarkFailedError("the verified log is another than the one written")

        def in_memory() -> None:
            verifier = LogVerifier(key.name, [checkpoint])
            for start in range(0, len(rows), PAGE):
                verifier.add(rows[start : start + PAGE])
            verifier.finish()

        def hashes_only() -> None:
            grown, _ = grow(Frontier(), (leaf_hash(each.leaf or b"") for each in rows))
            if grown.root() != checkpoint.root:
                raise BenchmarkFailedError("the leaves do not give the log's root")

        arms: dict[str, Callable[[], None]] = {
            "whole": partial(verify, Believed(key)),
            "opened": partial(verify, Believed(key, keys=keys)),
            "in_memory": in_memory,
            "hashes_only": hashes_only,
        }
        runs: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, arm in arms.items():
                began, cpu_began = time.perf_counter(), time.process_time()
                arm()
                runs.setdefault(name, []).append(head.size / (time.process_time() - cpu_began))
                elapsed = head.size / (time.perf_counter() - began)
                runs.setdefault(f"{name}_elapsed", []).append(elapsed)
    return Verified(
        whole=round(median(runs["whole"])),
        elapsed=round(median(runs["whole_elapsed"])),
        opened=round(median(runs["opened"])),
        in_memory=round(median(runs["in_memory"])),
        hashes_only=round(median(runs["hashes_only"])),
    )


def percentiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds."""
    return round(1e3 * median(seconds), 3), round(1e3 * quantiles(seconds, n=100)[98], 3)


def plain(url: str) -> str:
    """The URL for the driver itself, as the administrator."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def document(
    speeds: dict[str, dict[int, Speed]],
    called: dict[int, Speed],
    proofs: Proofs,
    verified: Verified,
) -> dict[str, object]:
    """``log.json`` as a value."""
    append, bare = speeds["append"], speeds["bare"]
    best = max(BATCHES, key=lambda batch: append[batch].rate)
    waiting = speeds["bare_waiting"]
    ratios = {f"append_vs_bare_insert_{n}": append[n].rate / bare[n].rate for n in BATCHES}
    return {
        "machine": machine(),
        "date": utc_now().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.log", *sys.argv[1:]]),
        "settings": {
            "payload_bytes": PAYLOAD_BYTES,
            "turns": ROUNDS,
            "fsync": True,
            "writers": 1,
        },
        "measurements": {
            "appends_per_second_best_batch": append[best].rate,
            "best_batch": best,
            "single_append_p50_ms": append[1].p50_ms,
            "single_append_p99_ms": append[1].p99_ms,
            "single_append_p99_ms_under_load": called[CALLERS[-1]].p99_ms,
            "called": {str(callers): asdict(each) for callers, each in called.items()},
            "proof_ms_at_10m": proofs.p50_ms,
            "verify_leaves_per_second": verified.whole,
            "verification": asdict(verified),
            "speeds": {
                arm: {str(batch): asdict(each) for batch, each in found.items()}
                for arm, found in speeds.items()
            },
            "proofs": asdict(proofs),
        },
        "ratios": {
            "append_vs_bare_insert": round(ratios[f"append_vs_bare_insert_{best}"], 3),
            "append_vs_waiting_insert": round(append[best].rate / waiting[best].rate, 3),
            **{name: round(ratio, 3) for name, ratio in ratios.items()},
        },
    }


def show(
    console: Console,
    speeds: dict[str, dict[int, Speed]],
    called: dict[int, Speed],
    proofs: Proofs,
    verified: Verified,
) -> None:
    """Print the tables."""
    table = Table(
        box=box.SIMPLE,
        title="Entries of 400 bytes, committed with fsync by one writer",
        caption=f"Medians. Targets: {RATE_TARGET:,} entries/s in the best batch, "
        f"and {RATIO_TARGET:.0%} of the bare loop.",
    )
    for column in ("Batch", "Entries/s", "Bare/s", "Share", "Waiting/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    for batch in BATCHES:
        ours, bare = speeds["append"][batch], speeds["bare"][batch]
        table.add_row(
            str(batch),
            f"{ours.rate:,.0f}",
            f"{bare.rate:,.0f}",
            f"{ours.rate / bare.rate:.0%}",
            f"{speeds['bare_waiting'][batch].rate:,.0f}",
            f"{ours.p50_ms:.2f}",
            f"{ours.p99_ms:.2f}",
        )
    console.print(table)
    for callers, each in called.items():
        console.print(
            f"Single appends through the coordinator's register, {callers} at once: "
            f"{each.rate:,.0f} entries/s, p50 {each.p50_ms:.2f} ms, p99 {each.p99_ms:.2f} ms.",
            highlight=False,
        )
    console.print(
        f"Inclusion proof among {proofs.leaves:,} leaves: {proofs.p50_ms:.2f} ms (p99 "
        f"{proofs.p99_ms:.2f}), reading {proofs.hashes_read} hashes; target {PROOF_TARGET} ms.\n"
        f"Verification, leaves/s a core: {verified.whole:,.0f} from the database with payloads, "
        f"nodes and checkpoint ({verified.elapsed:,.0f} by the clock); target {VERIFY_TARGET:,}. "
        f"With every entry decrypted: {verified.opened:,.0f}. Leaves and payloads in memory: "
        f"{verified.in_memory:,.0f}; leaf hashes and root alone: {verified.hashes_only:,.0f}.",
        highlight=False,
    )


@contextmanager
def server_url(database: str | None) -> Iterator[str]:
    """The given server's administrator, or a server for this run."""
    if database is not None:
        yield (
            make_url(database)
            .set(drivername="postgresql+psycopg")
            .render_as_string(hide_password=False)
        )
        return
    with running_postgres() as url:
        yield url


@app.command()
def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("out/bench"),
    database: Annotated[
        str | None, typer.Option(help="URL of a superuser on another server.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.2, help="For each arm, batch and turn.")
    ] = SECONDS,
    leaves: Annotated[int, typer.Option(min=1000, help="Of the large tree.")] = TREE_LEAVES,
) -> None:
    """Measure appending, proving and verifying."""
    console = Console()
    try:
        with server_url(database) as server:
            speeds = measure_appends(server, seconds=seconds)
            called = measure_callers(server, seconds=seconds)
            verified = measure_verification(server, leaves=VERIFIED_LEAVES)
            proofs = measure_proofs(server, leaves=leaves)
    except MatlError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from None
    show(console, speeds, called, proofs, verified)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document(speeds, called, proofs, verified), indent=2, allow_nan=False)
    write_atomically(out / "log.json", [text.encode() + b"\n"], mode=0o644)
    console.print(f"Figures: {out / 'log.json'}", soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.log")
