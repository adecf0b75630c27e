"""``make bench-full_round``: one round of the ``full`` recipe, and what it costs the coordinator.

Five hospitals and a coordinator, each a process of its own, over mutual TLS on loopback:
ResNet-50 with GroupNorm, every parameter trained, on a few small semi-synthetic images.
Phases are told by the daemons' logs, memory by the kernel. The figures say nothing about
how good the model is. Prints tables and writes out/bench/full_round.json.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final
from urllib.request import urlopen

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmarks.rounds.observed_round import (
    Run,
    Traffic,
    document,
    hospital_times,
    phases_of,
    show,
)
from benchmarks.rounds.observer import BenchmarkFailedError, Event, Observer, cost_of
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
from matl.demo.run import (
    Program,
    StopRequestedError,
    Supervisor,
    free_port,
    stop_on_signals,
)
from matl.demo.study import (
    COORDINATOR,
    FEDERATION,
    IMAGES_NOTE,
    OPERATOR,
    Settings,
    declared_patients,
)
from matl.operations import connect_operator
from matl_common.clock import utc_now
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
    # The round itself is measured, not what hospitals wait for.
    "send_after_seconds": 0.0,
}
# Samples of each gradient held at once; bounds the memory of the five training workers.
PHYSICAL_BATCH: Final = 2

QUIET_SECONDS: Final = 4.0
"""How long the coordinator is watched at rest, before and after the round."""
ROUND_SECONDS: Final = 1800.0
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
    create_development_keys(layout.keys, wanted, now=utc_now())
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
        idle = observer.rest("at rest, before", seconds=QUIET_SECONDS)
        observer.start(participants)
        observer.until(is_released, seconds=ROUND_SECONDS, what="the round ends")
        after = observer.rest("at rest, after", seconds=QUIET_SECONDS)
        run = Run(
            settings={**STUDY, "hospitals": len(hospitals), "patients": PATIENTS},
            update_bytes=UPDATE_BYTES,
            observer=observer,
            hospitals=hospitals,
            idle=idle,
            after=after,
            traffic=_traffic(metrics_port),
            round=client.rounds()[0],
        )
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
    app(prog_name="python -m benchmarks.full_round")
