"""``make bench-full_round``: one round of the ``full`` recipe, and what it costs the coordinator.

Five hospitals and a coordinator, each a process of its own, over mutual TLS on loopback:
ResNet-50 with GroupNorm, every parameter trained, on a few small semi-synthetic images.
Phases are told by the daemons' logs, memory by the kernel. The figures say nothing about
how good the model is. Prints tables and writes out/bench/full_round.json.
"""

import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Final
from urllib.request import urlopen

import psutil
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from matl.demo.federation import (
    COORDINATOR_NAME,
    Layout,
    Scalar,
    coordinator_table,
    participant_table,
    toml_text,
)
from matl.demo.federation import Table as TomlTable
from matl.demo.fundus.image_set import write_image_sets
from matl.demo.hospitals import (
    CAREFUL,
    HOLDOUT,
    HospitalSpec,
    five_hospitals,
    plan_balanced,
    plan_hospital,
    usable_cores,
)
from matl.demo.run import Program, StopRequestedError, Supervisor, free_port, stop_on_signals
from matl.demo.study import (
    COORDINATOR,
    FEDERATION,
    IMAGES_NOTE,
    OPERATOR,
    Settings,
    declared_patients,
    display_name,
)
from matl.operations import Round, connect_operator
from matl_common.durable import write_atomically
from matl_common.errors import MatlError
from matl_common.identity.development import (
    DevelopmentFederation,
    Enrolment,
    create_development_keys,
)
from matl_common.ids import NodeId
from matl_common.tensors import MODEL_SUFFIX

UPDATE_BYTES: Final = 98_238_740
"""ResNet-50 with GroupNorm and the tutorial's head, as float32."""
PATIENTS: Final = 16
"""Of each hospital; one image each."""
HOLDOUT_IMAGES: Final = 80
SEED: Final = 7
SETTINGS: Final = Settings(epsilon=8.0, rounds=1)
STUDY: Final[Mapping[str, Scalar]] = {
    "recipe": "full",
    "backbone": "resnet50_gn",
    "image_size": 64,
    "views": 1,
    "rounds": 1,
    "spare_rounds": 0,
    "steps_per_round": 1,
    "learning_rate": 0.001,
    "epsilon": SETTINGS.epsilon,
    "delta": 1e-5,
    "max_grad_norm": 1.0,
    "sample_rate": 0.25,
    "batch_size": 4,
}
# Samples of each gradient held at once; bounds the memory of the five training workers.
PHYSICAL_BATCH: Final = 2

QUIET_SECONDS: Final = 4.0
"""How long the coordinator is watched at rest, before and after the round."""
ROUND_SECONDS: Final = 1800.0
_SAMPLE_EVERY_SECONDS: Final = 0.05
_LOOK_EVERY_SECONDS: Final = 0.25
_RESET_PEAK: Final = "5"
_MEGA: Final = 1e6
EXIT_FAILED, EXIT_STOPPED = 1, 130

_TOLD: Final[Mapping[str, str]] = {
    "founding_study": "founding the study",
    "study_founded": "study founded",
    "coordinator_ready": "ready",
    "participant.data_checked": "data checked",
    "participant.model_pulled": "has the model",
    "participant.training": "training",
    "participant.update_sealed": "update trained, uploading",
    "participant.update_admitted": "update admitted",
    "participant.training_failed": "training failed",
    "participant.retrying": "retrying",
    "phase_failed": "phase failed",
    "round_phase": "round",
    "model_released": "model released",
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class BenchmarkFailedError(MatlError):
    """The round did not end as a round must, so that its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a daemon's log. ``at`` is in seconds of Unix time."""

    at: float
    node: NodeId
    name: str
    facts: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Sample:
    """The coordinator at one moment, without its worker.

    ``peak_bytes`` is the most that was resident since the sample before, by the kernel's
    own account, so that nothing is missed between two samples.
    """

    at: float
    resident_bytes: int
    anonymous_bytes: int
    peak_bytes: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the run. Phases of hospitals overlap."""

    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Cost:
    """What a phase cost the coordinator."""

    phase: Phase
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """The coordinator's own counters."""

    received_bytes: int
    sent_bytes: int


@dataclass(slots=True)
class Observer:
    """Watches the daemons from outside. Asks them nothing."""

    layout: Layout
    supervisor: Supervisor
    on_event: Callable[[Event], None]
    samples: list[Sample] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    worker_peaks: dict[NodeId, int] = field(default_factory=dict)
    """Most memory that a node's worker process ever had resident, in bytes."""
    nodes: list[NodeId] = field(default_factory=list)
    _offsets: dict[NodeId, int] = field(default_factory=dict)

    def start(self, programs: Sequence[Program]) -> None:
        """Start daemons, and watch them from now on."""
        self.supervisor.start(programs)
        self.nodes += [program.node for program in programs]

    def until(self, reached: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Watch until ``reached``.

        Raises:
            BenchmarkFailedError: it takes too long, or a daemon dies.
            DaemonFailedError: a daemon cannot be kept running.
        """
        deadline, look_at = time.monotonic() + seconds, 0.0
        while True:
            self._sample()
            if time.monotonic() >= look_at:
                self._look()
                if reached():
                    return
                look_at = time.monotonic() + _LOOK_EVERY_SECONDS
            if time.monotonic() > deadline:
                raise BenchmarkFailedError(f"not within {seconds:g} s: {what}")
            time.sleep(_SAMPLE_EVERY_SECONDS)

    def rest(self, name: str) -> Phase:
        """Watch for a while in which nothing is to happen."""
        started = time.time()
        self.until(
            lambda: time.time() >= started + QUIET_SECONDS, seconds=2 * QUIET_SECONDS, what=name
        )
        return Phase(name, started, time.time())

    def first(self, name: str, node: NodeId = COORDINATOR, **facts: object) -> float | None:
        """When a daemon first logged this, in seconds of Unix time."""
        return next(
            (
                event.at
                for event in self.events
                if (event.name, event.node) == (name, node)
                and facts.items() <= dict(event.facts).items()
            ),
            None,
        )

    def _look(self) -> None:
        if deaths := self.supervisor.check():
            raise BenchmarkFailedError(str(deaths[0]))
        for node in self.nodes:
            self._read_log(node)
            for pid in _children(self.supervisor.pid(node)):
                peak = _memory(pid).get("VmHWM", 0)
                self.worker_peaks[node] = max(self.worker_peaks.get(node, 0), peak)
        if self.first("round_phase", phase="aborted") is not None:
            raise BenchmarkFailedError("the coordinator aborted the round")

    def _read_log(self, node: NodeId) -> None:
        with self.layout.log(node).open("rb") as file:
            file.seek(self._offsets.get(node, 0))
            while (line := file.readline()).endswith(b"\n"):
                self._offsets[node] = file.tell()
                with suppress(ValueError):
                    self._take(node, json.loads(line))

    def _take(self, node: NodeId, facts: Mapping[str, object]) -> None:
        at = datetime.fromisoformat(str(facts["timestamp"])).timestamp()
        event = Event(at, node, str(facts["event"]), facts)
        self.events.append(event)
        self.on_event(event)

    def _sample(self) -> None:
        pid = self.supervisor.pid(COORDINATOR)
        memory = _memory(pid)
        if "VmHWM" not in memory:
            return
        with suppress(OSError, psutil.Error):
            Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
            used = psutil.Process(pid).cpu_times()
            self.samples.append(
                Sample(
                    at=time.time(),
                    resident_bytes=memory["VmRSS"],
                    anonymous_bytes=memory["RssAnon"],
                    peak_bytes=memory["VmHWM"],
                    cpu_seconds=used.user + used.system,
                )
            )


def _memory(pid: int) -> Mapping[str, int]:
    """The kernel's account of a process's memory, in bytes; empty for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    fields = (line.split() for line in text.splitlines())
    return {each[0].rstrip(":"): 1024 * int(each[1]) for each in fields if each[2:] == ["kB"]}


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


# What runs.


def plan_hospitals() -> tuple[HospitalSpec, ...]:
    """Five hospitals of one size, with the label mixes and cameras of the demonstration."""
    return tuple(
        replace(spec, patients=PATIENTS, mislabelling=CAREFUL)
        for spec in five_hospitals(SETTINGS.patients)
    )


def make_images(console: Console, hospitals: Sequence[HospitalSpec], folder: Path) -> None:
    """Draw what is not there yet."""
    cameras = [spec.camera for spec in hospitals]
    sets = [plan_hospital(spec, seed=SEED) for spec in hospitals]
    sets.append(plan_balanced(HOLDOUT, HOLDOUT_IMAGES, cameras, seed=SEED))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"images ({IMAGES_NOTE})", total=sum(len(s.images) for s in sets))
        write_image_sets(
            sets, folder, workers=usable_cores(), on_image=lambda _: progress.advance(bar)
        )


def prepare(
    layout: Layout, hospitals: Sequence[HospitalSpec], *, port: int, metrics_port: int
) -> tuple[Program, ...]:
    """Make keys and configurations; the coordinator's program, then the hospitals'."""
    wanted = DevelopmentFederation(
        federation=FEDERATION,
        coordinator=COORDINATOR,
        participants={spec.node_id: Enrolment(declared_patients(spec)) for spec in hospitals},
        operators=(OPERATOR,),
    )
    create_development_keys(layout.keys, wanted, now=datetime.now(UTC))
    base = coordinator_table(layout, SETTINGS, port=port)
    listen = {"address": f"127.0.0.1:{port}", "metrics": f"127.0.0.1:{metrics_port}"}
    tables: dict[NodeId, TomlTable] = {COORDINATOR: {**base, "listen": listen, "study": STUDY}}
    for spec in hospitals:
        tables[spec.node_id] = {
            **participant_table(layout, SETTINGS, spec, port=port),
            "training": {"device": "cpu", "workers": 1, "physical_batch": PHYSICAL_BATCH},
            "daemon": {"poll_seconds": 30, "drain_seconds": 1.0, "logs": "json"},
        }
    for node, table in tables.items():
        layout.state(node).mkdir(parents=True)
        write_atomically(layout.config(node), [toml_text(table).encode()])
    return tuple(_program(layout, node) for node in tables)


def _program(layout: Layout, node: NodeId) -> Program:
    module = "matl_coordinator.daemon" if node == COORDINATOR else "matl_participant"
    argv = (sys.executable, "-m", module, "--config", str(layout.config(node)))
    return Program(node, argv, layout.log(node))


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that was observed."""

    observer: Observer
    hospitals: tuple[HospitalSpec, ...]
    idle: Phase
    after: Phase
    traffic: Traffic
    round: Round


def run_round(console: Console, layout: Layout, hospitals: tuple[HospitalSpec, ...]) -> Run:
    """Let the daemons do their round, and check that it is one.

    Raises:
        MatlError: it did not end with five admitted updates and a released model.
    """
    port, metrics_port = free_port(), free_port()
    coordinator, *participants = prepare(layout, hospitals, port=port, metrics_port=metrics_port)
    operator = layout.node_keys(OPERATOR).tls
    with (
        Supervisor() as supervisor,
        _narrated(console) as on_event,
        connect_operator(f"127.0.0.1:{port}", operator, COORDINATOR_NAME) as client,
    ):
        observer = Observer(layout, supervisor, on_event)

        def is_released() -> bool:
            return observer.first("model_released") is not None

        observer.start([coordinator])
        observer.until(
            lambda: observer.first("coordinator_ready") is not None,
            seconds=300.0,
            what="the coordinator is ready",
        )
        idle = observer.rest("at rest, before")
        observer.start(participants)
        observer.until(is_released, seconds=ROUND_SECONDS, what="the round ends")
        after = observer.rest("at rest, after")
        run = Run(observer, hospitals, idle, after, _traffic(metrics_port), client.rounds()[0])
        check(run, layout)
        return run


def check(run: Run, layout: Layout) -> None:
    """Make sure that what was measured is what it is said to be.

    Raises:
        BenchmarkFailedError: it is not.
    """
    admitted = [each.node_id for each in run.round.contributions if each.status == "admitted"]
    if sorted(admitted) != sorted(spec.node_id for spec in run.hospitals):
        raise BenchmarkFailedError(f"only {', '.join(admitted) or 'nobody'} was admitted")
    spool = layout.state(COORDINATOR) / "spool" / str(run.round.round_id)
    sizes = {path.stat().st_size for path in spool.glob("*.update")}
    if sizes != {UPDATE_BYTES}:
        raise BenchmarkFailedError(f"updates have {sizes} bytes, not {UPDATE_BYTES}")
    model = layout.models / f"{run.round.released_model}{MODEL_SUFFIX}"
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != run.round.released_model or digest == run.round.base_model:
        raise BenchmarkFailedError(f"{model.name} has SHA-256 {digest}")


def _traffic(metrics_port: int) -> Traffic:
    with urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    values = {name: value for name, _, value in (line.rpartition(" ") for line in lines)}
    return Traffic(
        int(float(values["matl_received_bytes_total"])), int(float(values["matl_sent_bytes_total"]))
    )


@contextmanager
def _narrated(console: Console) -> Iterator[Callable[[Event], None]]:
    """Say what happens, as it happens."""
    started = time.time()
    with console.status("The daemons work; training takes a minute or two …"):

        def tell(event: Event) -> None:
            if event.name not in _TOLD:
                return
            more = event.facts.get("phase") or event.facts.get("step") or ""
            reason = event.facts.get("reason") or event.facts.get("error") or ""
            text = f"{_TOLD[event.name]} {more} {reason}"
            console.print(f"{event.at - started:7.1f} s  {event.node:<11}  {text}", highlight=False)

        yield tell


# What it comes to.


def phases_of(run: Run) -> tuple[Phase, ...]:
    """The run, cut up by what the daemons logged."""
    seen = run.observer
    nodes = [spec.node_id for spec in run.hospitals]

    def every(name: str) -> list[float]:
        return [_known(seen.first(name, node), name) for node in nodes]

    def phase(name: str) -> float:
        return _known(seen.first("round_phase", phase=name), name)

    offered, pulled = every("participant.round_offered"), every("participant.model_pulled")
    training, sealed = every("participant.training"), every("participant.update_sealed")
    admitted = every("participant.update_admitted")
    starting = _known(seen.first("coordinator_starting"), "coordinator_starting")
    return (
        Phase("founding the study", starting, run.idle.start),
        run.idle,
        Phase("hospitals start", run.idle.end, phase("collecting")),
        Phase("collecting", phase("collecting"), phase("scoring")),
        Phase("  models pulled", min(offered), max(pulled)),
        Phase("  training", min(training), max(sealed)),
        Phase("  uploads", min(sealed), max(admitted)),
        Phase("scoring", phase("scoring"), phase("aggregating")),
        Phase("aggregating", phase("aggregating"), phase("evaluating")),
        Phase("evaluating", phase("evaluating"), phase("released")),
        run.after,
    )


def cost_of(phase: Phase, samples: Sequence[Sample]) -> Cost:
    """What the samples say about a phase; the one that ends after it belongs to it."""
    before = [each for each in samples if each.at <= phase.start]
    inside = [each for each in samples if phase.start < each.at <= phase.end]
    inside += [each for each in samples if each.at > phase.end][:1]
    spent = inside[-1].cpu_seconds - (before[-1].cpu_seconds if before else 0.0)
    return Cost(phase, spent, max(each.peak_bytes for each in inside))


@dataclass(frozen=True, slots=True)
class HospitalTimes:
    """One hospital's round."""

    node: NodeId
    pull_seconds: float
    training_seconds: float
    upload_seconds: float
    """From the sealed update to the receipt: declared, sent, judged, logged."""
    worker_peak_bytes: int


def hospital_times(run: Run) -> tuple[HospitalTimes, ...]:
    """Every hospital's round, by its own log."""
    return tuple(_times_of(spec.node_id, run.observer) for spec in run.hospitals)


def _times_of(node: NodeId, seen: Observer) -> HospitalTimes:
    def at(name: str) -> float:
        return _known(seen.first(f"participant.{name}", node), name)

    return HospitalTimes(
        node,
        at("model_pulled") - at("round_offered"),
        at("update_sealed") - at("training"),
        at("update_admitted") - at("update_sealed"),
        seen.worker_peaks.get(node, 0),
    )


def _known(at: float | None, what: str) -> float:
    if at is None:
        raise BenchmarkFailedError(f"no log says {what}")
    return at


def document(run: Run, costs: Sequence[Cost], times: Sequence[HospitalTimes]) -> dict[str, object]:
    """``full_round.json`` as a value."""
    # Loads torch and matplotlib, which must not weigh on the machine before.
    from matl.demo.summary import machine

    idle, peak = _idle_bytes(run), max(each.peak_bytes for each in costs)
    by_name = {cost.phase.name.strip().replace(" ", "_").replace(",", ""): cost for cost in costs}
    return {
        "images": f"{IMAGES_NOTE}: the figures say nothing about patients",
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "settings": {**STUDY, "hospitals": len(times), "patients": PATIENTS},
        "measurements": {
            "update_bytes": UPDATE_BYTES,
            "received_bytes": run.traffic.received_bytes,
            "sent_bytes": run.traffic.sent_bytes,
            "coordinator_idle_bytes": idle,
            "coordinator_peak_bytes": peak,
            "coordinator_after_bytes": _resident_at_end(run.after, run.observer.samples),
            "scoring_worker_peak_bytes": run.observer.worker_peaks.get(COORDINATOR, 0),
            "phase_seconds": {name: round(c.phase.seconds, 3) for name, c in by_name.items()},
            "phase_coordinator_cpu_seconds": {
                name: round(cost.cpu_seconds, 2) for name, cost in by_name.items()
            },
            "phase_coordinator_peak_bytes": {n: cost.peak_bytes for n, cost in by_name.items()},
            "pull_seconds": {each.node: round(each.pull_seconds, 3) for each in times},
            "training_seconds": {each.node: round(each.training_seconds, 3) for each in times},
            "upload_seconds": {each.node: round(each.upload_seconds, 3) for each in times},
            "training_worker_peak_bytes": {each.node: each.worker_peak_bytes for each in times},
        },
        "summary": {
            "coordinator_idle_megabytes": round(idle / _MEGA, 1),
            "coordinator_peak_megabytes": round(peak / _MEGA, 1),
            "peak_models_above_idle": round((peak - idle) / UPDATE_BYTES, 3),
            "round_seconds": round(_round_seconds(run, costs), 1),
            "upload_seconds_median": round(median(each.upload_seconds for each in times), 2),
            "updates_admitted": len(times),
            "released_model": run.round.released_model,
        },
    }


def _idle_bytes(run: Run) -> int:
    return _resident_at_end(run.idle, run.observer.samples)


def _resident_at_end(phase: Phase, samples: Sequence[Sample]) -> int:
    return [each for each in samples if each.at <= phase.end][-1].resident_bytes


def _round_seconds(run: Run, costs: Sequence[Cost]) -> float:
    named = {cost.phase.name: cost.phase for cost in costs}
    return named["evaluating"].end - named["collecting"].start


def show(console: Console, run: Run, costs: Sequence[Cost], times: Sequence[HospitalTimes]) -> None:
    """Print the tables."""
    idle, peak = _idle_bytes(run), max(each.peak_bytes for each in costs)
    console.print(_phase_table(costs, idle))
    console.print(_hospital_table(times))
    scorer = run.observer.worker_peaks.get(COORDINATOR, 0)
    console.print(
        f"Coordinator: {idle / _MEGA:.1f} MB at rest, {peak / _MEGA:.1f} MB at most, "
        f"{(peak - idle) / UPDATE_BYTES:.2f} models above rest; "
        f"its scoring worker {scorer / _MEGA:,.0f} MB at most.\n"
        f"Round: {_round_seconds(run, costs):.1f} s; received "
        f"{run.traffic.received_bytes / _MEGA:.1f} MB of updates, sent "
        f"{run.traffic.sent_bytes / _MEGA:.1f} MB of models.\n"
        f"All {len(times)} updates of {UPDATE_BYTES:,} bytes admitted; released model "
        f"{run.round.released_model[:16]}… is the SHA-256 of its file.",
        highlight=False,
    )


def _phase_table(costs: Sequence[Cost], idle_bytes: int) -> Table:
    table = Table(
        box=box.SIMPLE,
        title="The coordinator, phase by phase",
        caption="A model has 98.2 MB. Indented: overlapping parts of collecting.",
    )
    table.add_column("Phase")
    for column in ("Seconds", "CPU s", "Peak MB", "Above rest, MB", "Above rest, models"):
        table.add_column(column, justify="right")
    for cost in costs:
        above = cost.peak_bytes - idle_bytes
        table.add_row(
            cost.phase.name,
            f"{cost.phase.seconds:.2f}",
            f"{cost.cpu_seconds:.2f}",
            f"{cost.peak_bytes / _MEGA:.1f}",
            f"{above / _MEGA:+.1f}",
            f"{above / UPDATE_BYTES:+.2f}",
        )
    return table


def _hospital_table(times: Sequence[HospitalTimes]) -> Table:
    table = Table(
        box=box.SIMPLE,
        title="The hospitals",
        caption="Upload and admission: from the sealed update to the signed receipt, while "
        "others train on the same cores.",
    )
    table.add_column("Hospital")
    for column in ("Pull s", "Training s", "Upload and admission s", "MB/s", "Worker peak MB"):
        table.add_column(column, justify="right")
    for each in times:
        table.add_row(
            display_name(each.node),
            f"{each.pull_seconds:.2f}",
            f"{each.training_seconds:.1f}",
            f"{each.upload_seconds:.2f}",
            f"{UPDATE_BYTES / _MEGA / each.upload_seconds:.0f}",
            f"{each.worker_peak_bytes / _MEGA:,.0f}",
        )
    return table


def measure(console: Console, out: Path) -> None:
    """Do everything.

    Raises:
        MatlError: there are no figures; the daemons' logs are kept.
    """
    hospitals = plan_hospitals()
    layout = Layout(out / "full_round", out / "full_round_images")
    make_images(console, hospitals, layout.data)
    shutil.rmtree(layout.out, ignore_errors=True)
    try:
        run = run_round(console, layout, hospitals)
    except StopRequestedError:
        shutil.rmtree(layout.out)
        raise
    shutil.rmtree(layout.out)
    costs = [cost_of(phase, run.observer.samples) for phase in phases_of(run)]
    times = hospital_times(run)
    show(console, run, costs, times)
    text = json.dumps(document(run, costs, times), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "full_round.json", [text.encode() + b"\n"], mode=0o644)
    console.print(f"Figures: {out / 'full_round.json'}", soft_wrap=True)


@app.command()
def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the figures and the images.")] = Path(
        "out/bench"
    ),
) -> None:
    """Measure one round of the full recipe, with five hospitals on this machine."""
    console = Console()
    stop_on_signals()
    out = out.resolve()
    try:
        measure(console, out)
    except StopRequestedError:
        console.print("Stopped; nothing is left running.")
        raise typer.Exit(EXIT_STOPPED) from None
    except MatlError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        console.print(f"The daemons' logs are in {out}/full_round/*/daemon.log.", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from None


if __name__ == "__main__":
    app(prog_name="python benchmarks/full_round.py")
