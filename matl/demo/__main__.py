"""``python -m matl.demo``: the demonstration from photographs to plots, step by step.

Only the order of the steps is here; each step is a module of its own.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from matl.demo.federation import (
    COORDINATOR_NAME,
    Layout,
    settle,
    write_configurations,
)
from matl.demo.fundus.image_set import is_finished
from matl.demo.hospitals import DEMO_PATIENTS, TUTORIAL_PATIENTS, usable_cores, write_study
from matl.demo.progress import Findings, Reporter, Watcher, gather
from matl.demo.run import (
    StopRequestedError,
    Supervisor,
    daemon_programs,
    free_port,
    stop_on_signals,
)
from matl.demo.study import COORDINATOR, IMAGES_NOTE, OPERATOR, RECIPE, Attack, Settings
from matl.operations import Status, connect_operator
from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError, MatlError

_LOOK_EVERY_SECONDS: Final = 0.4
_FINISH_SECONDS: Final = 15.0
EXIT_FAILED, EXIT_WRONG_USE, EXIT_STOPPED = 1, 2, 130


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@dataclass(slots=True)
class Stopwatch:
    """Seconds by step, and the steps' names."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the block's duration under ``name``."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - started


def run_demo(console: Console, layout: Layout, settings: Settings, *, command: str) -> None:
    """Do everything.

    Raises:
        MatlError: it cannot be done; what was achieved so far is kept.
    """
    watch = Stopwatch()
    goes_on = settle(layout, settings, now=utc_now())
    with watch.measure("images"):
        _make_images(console, layout, settings)
    if goes_on:
        console.print("Taking up the study that was interrupted.")
    with watch.measure("federation"):
        findings = _federate(console, layout, settings)
    step = "Training the reference arms and drawing the plots …"
    if not console.is_terminal:
        console.print(step)
    with console.status(step):
        # Loads torch and matplotlib, which nothing before this needs.
        from matl.demo.summary import conclude, print_summary, write_results

        report = conclude(
            layout,
            settings,
            findings,
            seconds=watch.seconds,
            command=command,
            date=utc_now(),
        )
        write_results(layout, report)
    print_summary(console, report, layout)


def _make_images(console: Console, layout: Layout, settings: Settings) -> None:
    images = settings.images
    missing = [s.name for s in images.image_sets() if not is_finished(s, layout.data)]
    if not missing:
        console.print(f"Photographs: {layout.data} has them ({IMAGES_NOTE}).")
        return
    console.print(f"Drawing photographs ({IMAGES_NOTE}) into {layout.data}:")
    write_study(images, layout.data, workers=usable_cores(), console=console)


def _federate(console: Console, layout: Layout, settings: Settings) -> Findings:
    """Run coordinator and hospitals until the study is complete, and stop them."""
    port = free_port()
    write_configurations(layout, settings, port=port)
    operator = layout.node_keys(OPERATOR).tls
    console.print(
        f"Starting one coordinator and {len(settings.hospitals)} hospitals on this machine "
        f"(mutual TLS, 127.0.0.1:{port}); features by {RECIPE.backbone}, pretrained on ImageNet."
    )
    with (
        Supervisor() as supervisor,
        connect_operator(f"127.0.0.1:{port}", operator, COORDINATOR_NAME) as client,
    ):
        coordinator, *hospitals = daemon_programs(layout, settings)
        watcher = Watcher(layout, settings, client)
        with Reporter(console, settings) as reporter:
            supervisor.start([coordinator])
            # Hospitals that find nobody wait longer and longer between their attempts.
            _watch(supervisor, watcher, reporter, until=lambda status: True)
            supervisor.start(hospitals)
            _watch(supervisor, watcher, reporter, until=lambda status: status.study_complete)
        findings = gather(client)
        _let_participants_finish(supervisor)
        return findings


def _watch(
    supervisor: Supervisor,
    watcher: Watcher,
    reporter: Reporter,
    *,
    until: Callable[[Status], bool],
) -> None:
    """Keep the daemons running and show what happens, until a status is the one wanted."""
    while True:
        for death in supervisor.check():
            reporter.tell_of(death)
        scene = watcher.look()
        reporter.show(scene)
        if scene.status is not None and until(scene.status):
            return
        time.sleep(_LOOK_EVERY_SECONDS)


def _let_participants_finish(supervisor: Supervisor) -> None:
    """Participants stop by themselves when they hear that the study is complete."""
    deadline = time.monotonic() + _FINISH_SECONDS
    while supervisor.alive - {COORDINATOR} and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_SECONDS / 4)


@app.command()
def demonstrate(
    *,
    out: Annotated[
        Path, typer.Option(help="Folder for everything the demonstration makes.")
    ] = Path("out/demo"),
    epsilon: Annotated[
        float,
        typer.Option(
            help="Privacy budget ε of every patient over the whole study (δ = 1e-5). Smaller "
            "means more noise; inf means none, and no promise."
        ),
    ] = 1.0,
    attack: Annotated[
        Attack,
        typer.Option(
            help="What hospital E does. none: it is only careless, all its labels are wrong. "
            "sign-flip, noise: it stays within the norm that is admitted. scaling, nan: it does "
            "not care, and is refused."
        ),
    ] = Attack.NONE,
    patients: Annotated[
        int,
        typer.Option(
            help="Patients of the five hospitals together, shared 10:5:3:2:1. The tutorial "
            f"has {TUTORIAL_PATIENTS}; more patients bear more noise."
        ),
    ] = DEMO_PATIENTS,
    rounds: Annotated[int, typer.Option(help="Models to release.")] = 6,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the photographs. The noise never has one.")
    ] = 7,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the photographs, kept from run to run. Default: OUT/data."),
    ] = None,
) -> None:
    """Five hospitals train one diabetic-retinopathy model without showing a patient.

    Draws photographs, makes development keys, starts one coordinator and five hospitals as
    separate processes over mutual TLS, and shows their rounds as they happen. Then trains the
    reference arms on the same data and writes summary.json and medical_fl_results.png.

    Ctrl-C stops everything in order; the same command takes the study up again. Kill any
    of the processes while it runs: it is started again and nothing is lost. A finished
    study is moved to OUT/previous when the next one begins.

    The images are semi-synthetic: no figure here says anything about patients.
    """
    console = Console()
    command = shlex.join(["python", "-m", "matl.demo", *sys.argv[1:]])
    stop_on_signals()
    out = out.resolve()
    layout = Layout(out, (data or out / "data").resolve())
    try:
        settings = Settings(epsilon, attack, patients, rounds, seed)
        run_demo(console, layout, settings, command=command)
    except ConfigurationError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(EXIT_WRONG_USE) from None
    except StopRequestedError:
        again = command.replace("python", os.path.relpath(sys.executable), 1)
        console.print(
            f"\nEverything has stopped, and nothing is lost. To go on: {again}", soft_wrap=True
        )
        raise typer.Exit(EXIT_STOPPED) from None
    except MatlError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        console.print(f"The daemons' logs are in {out}/*/daemon.log.", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from None


if __name__ == "__main__":
    app(prog_name="python -m matl.demo")
