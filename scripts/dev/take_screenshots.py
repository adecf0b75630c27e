"""Pictures of the dashboard and of a report for docs/images, from a federation that really runs.

    python -m scripts.dev.take_screenshots [--out docs/images] [--demo out/demo] [--data DIR]

Runs the demonstration (five hospitals, ε = 1, one of which mislabels everything), looks at it with
Chromium while a round is under way and when the study is over, and writes its report. Minutes, of
which most are the hospitals' features.
"""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from matl.demo.federation import COORDINATOR_NAME, SUMMARY_FILE, Layout, toml_text
from matl.demo.study import COORDINATOR, OPERATOR
from matl.operations import OperationsClient, Status, connect_operator
from matl_common.errors import MatlError
from matl_common.ids import NodeId
from tests.dashboard.browser import chromium, log_in, serving_page, whole_page
from tests.system.processes import ROOT, end_with_parent, until

_MINUTES = 15 * 60.0
_REPORT_WIDTH = 1100
_HOSPITAL = NodeId("hospital_b")


def take(
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = ROOT / "docs" / "images",
    demo: Annotated[Path, typer.Option(help="Folder of the demonstration.")] = ROOT / "out/demo",
    data: Annotated[Path | None, typer.Option(help="Its photographs. Default: DEMO/data.")] = None,
) -> None:
    """Run the demonstration and take every picture."""
    layout = Layout(demo.resolve(), (data or demo / "data").resolve())
    scratch = Path(tempfile.mkdtemp(prefix="matl-pictures-"))
    with _process("-m", "matl.demo", "--out", layout.out, "--data", layout.data):
        until(lambda: _status(layout) is not None, what="a coordinator", seconds=_MINUTES)
        operator = _operator_toml(layout, scratch)
        with serving_page("-c", operator, "--every", "0.5") as served, chromium() as visit:
            log_in(visit.page, served)
            until(lambda: _is_collecting(layout), what="a round is under way", seconds=_MINUTES)
            visit.page.wait_for_timeout(700)
            whole_page(visit.page, out / "dashboard-live.png")
        finished = layout.out / SUMMARY_FILE
        until(finished.exists, what="the study is over", seconds=_MINUTES)
    with _process("-m", "matl_coordinator.daemon", "-c", layout.config(COORDINATOR)):
        until(lambda: _status(layout) is not None, what="the coordinator", seconds=_MINUTES)
        _picture(out / "dashboard-hospital.png", layout.config(_HOSPITAL))
        report = scratch / "report.html"
        _report(operator, _address(layout), report)
        with chromium(width=_REPORT_WIDTH) as visit:
            visit.page.goto(report.as_uri())
            visit.page.screenshot(path=out / "report.png", full_page=True)


@contextmanager
def _process(*arguments: str | Path) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        # One system call between fork and exec.
        preexec_fn=end_with_parent,  # noqa: PLW1509
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _picture(path: Path, participant: Path) -> None:
    """One hospital's own view."""
    with (
        serving_page("--participant-config", participant) as served,
        chromium() as visit,
    ):
        log_in(visit.page, served)
        visit.page.get_by_role("heading", name="Receipts").wait_for()
        whole_page(visit.page, path)


def _report(operator: Path, address: str, out: Path) -> None:
    command = "from matl.cli import app; app()"
    arguments = ("-c", operator, "report", address, "-o", out)
    subprocess.run([sys.executable, "-c", command, *arguments], cwd=ROOT, check=True)


@contextmanager
def _connected(layout: Layout) -> Iterator[OperationsClient]:
    tls = layout.node_keys(OPERATOR).tls
    with connect_operator(_address(layout), tls, COORDINATOR_NAME) as client:
        yield client


def _address(layout: Layout) -> str:
    text = layout.config(COORDINATOR).read_text("utf-8")
    line = next(each for each in text.splitlines() if each.startswith("address"))
    return line.partition('"')[2].rstrip('"')


def _status(layout: Layout) -> Status | None:
    try:
        with _connected(layout) as client:
            return client.status()
    except (MatlError, OSError):
        return None


def _is_collecting(layout: Layout) -> bool:
    """A later round in which some have sent their update, and some have not."""
    found = _status(layout)
    if found is None or found.current_round is None or found.rounds_released < 2:
        return False
    statuses = {each.status for each in found.current_round.contributions}
    return found.current_round.phase == "collecting" and len(statuses) > 1


def _operator_toml(layout: Layout, folder: Path) -> Path:
    keys = layout.node_keys(OPERATOR)
    table = {
        "address": _address(layout),
        "coordinator": str(COORDINATOR_NAME),
        "key": str(keys.tls.private_key),
        "certificate": str(keys.tls.certificate_chain),
        "authority": str(keys.tls.trusted_authority),
        "log_key": str(keys.log_verifier_key),
    }
    path = folder / "operator.toml"
    path.write_text(toml_text({"operator": table}), "utf-8")
    return path


if __name__ == "__main__":
    typer.run(take)
