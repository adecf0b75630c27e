"""``matl simulate`` from a study file to figures, twice."""

import json
import math
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
from typer.testing import CliRunner

import matl
from matl.cli import app
from matl.simulation.campaign import (
    _ENTERS,
    _TRUST_ONLY,
    _TRUSTING,
    Job,
    LocalEngine,
    carry_out,
    fingerprint,
    open_finished,
    run_jobs,
)
from matl.simulation.intervals import interval
from matl.simulation.study import ArmName, Study
from tests.system.processes import until

RUNNER = CliRunner()
STUDY = """
arms = ["oracle", "matl", "mean"]
seeds = 2
[hospitals]
count = 4
[training]
rounds = 2
[grid]
"hostile.attack" = ["none", "nan"]
"hostile.count" = [1]
"""


def test_a_study_gives_a_table_json_and_a_plot_and_goes_on_from_what_is_finished(
    tmp_path: Path,
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    arguments = ["simulate", str(path), "--processes", "1", "--out", str(tmp_path / "out")]
    first = RUNNER.invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "who aggregates" in first.output
    assert (tmp_path / "out" / "small.png").stat().st_size > 0
    kept = (tmp_path / "out" / "small-runs.jsonl").read_bytes()
    second = RUNNER.invoke(app, [*arguments, "--seeds", "1", "--json"])
    found = json.loads(second.output)
    assert (tmp_path / "out" / "small-runs.jsonl").read_bytes() == kept, "nothing ran again"
    assert found["simulated"] is True
    assert {run["seed"] for run in found["runs"]} == {0}
    cells = {(each["study"]["hostile"]["attack"], each["arm"]): each for each in found["cells"]}
    assert len(cells) == 6
    assert cells["nan", "matl"]["hostile_excluded"]["mean"] == 1.0
    assert cells["none", "matl"]["hostile_excluded"] is None


@pytest.mark.parametrize("processes", ["1", "2"])
def test_what_cannot_be_carried_out_is_told_and_the_rest_goes_on(
    tmp_path: Path, processes: str
) -> None:
    path, out = tmp_path / "small.toml", tmp_path / "out"
    # ALIE hides behind a majority, which three of four hospitals are not: its z is undefined.
    grid = '[grid]\n"hostile.count" = [3, 1]\n"hostile.attack" = ["alie", "nan"]\n'
    path.write_text(STUDY.split("[grid]", maxsplit=1)[0].replace("seeds = 2", "seeds = 1") + grid)
    arguments = ["simulate", str(path), "--processes", processes, "--out", str(out), "--json"]
    found = RUNNER.invoke(app, arguments)
    assert found.exit_code == 1, found.output
    assert found.stderr.count("cannot be carried out") == 1
    assert "3" in found.stderr
    assert "alie" in found.stderr
    done = {
        (cell["study"]["hostile"]["count"], cell["study"]["hostile"]["attack"])
        for cell in json.loads(found.stdout)["cells"]
    }
    assert done == {(3, "nan"), (1, "alie"), (1, "nan")}
    path.write_text(path.read_text().replace("[3, 1]", "[3]").replace(', "nan"', ""))
    nothing = RUNNER.invoke(app, arguments)
    assert nothing.exit_code == 2
    assert "nothing of small can be carried out" in nothing.stderr


# Whoever runs the tests in the background lets them ignore SIGINT, and all that they start.
_INTERRUPTIBLE = """
import signal
from matl.cli import app

signal.signal(signal.SIGINT, signal.default_int_handler)
app()
"""


def test_a_campaign_that_is_stopped_says_what_is_kept_and_goes_on(tmp_path: Path) -> None:
    path, out = tmp_path / "long.toml", tmp_path / "out"
    path.write_text(STUDY.replace("seeds = 2", "seeds = 200"))
    command = [sys.executable, "-c", _INTERRUPTIBLE, "simulate", str(path), "--out", str(out)]
    kept = out / "long-runs.jsonl"
    with subprocess.Popen([*command, "--processes", "2"], stderr=subprocess.PIPE, text=True) as run:
        until(lambda: kept.exists() and kept.stat().st_size, what="a run is finished")
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "Traceback" not in said
    finished = len(kept.read_text().splitlines())
    assert f"matl: stopped; {finished} of 1200 runs are kept in {out}" in said


@pytest.mark.parametrize("order", ["true, false", "false, true"])
def test_what_a_key_leaves_out_is_shown_where_studies_differ_in_it(
    tmp_path: Path, order: str
) -> None:
    path = tmp_path / "small.toml"
    grid = f'[grid]\n"coordinator.class_mixes" = [{order}]\n'
    path.write_text(STUDY.split("[grid]", maxsplit=1)[0].replace("seeds = 2", "seeds = 1") + grid)
    arguments = ["simulate", str(path), "--processes", "1", "--out", str(tmp_path / "out")]
    found = RUNNER.invoke(app, arguments, env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    assert "class_mixes" in found.output
    assert found.output.count("True") == found.output.count("False") == 3


def test_a_finished_run_is_known_by_study_seed_arm_and_version(tmp_path: Path) -> None:
    from rich.console import Console

    study = Study.model_validate({"hospitals": {"count": 3}, "training": {"rounds": 1}})
    job = Job(study, 0, (ArmName.MEAN,))
    finished = open_finished(tmp_path, "x")
    run_jobs([job], finished, engine=LocalEngine(1), console=Console(stderr=True))
    again = open_finished(tmp_path, "x")
    assert again.get(job, ArmName.MEAN) == finished.get(job, ArmName.MEAN) is not None
    assert again.get(replace(job, seed=1), ArmName.MEAN) is None
    assert again.get(job, ArmName.MATL) is None
    path = tmp_path / "x-runs.jsonl"
    # Results of another version, one figure of which is gone, and half a line of a killed start.
    other = path.read_text().replace('"fingerprint": "', '"fingerprint": "0')
    other = other.replace('"kappa"', '"kappa_of_old"')
    path.write_text(other + other[: len(other) // 2])
    assert open_finished(tmp_path, "x").get(job, ArmName.MEAN) is None


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"\xff", b"3", b'{"fingerprint": "a", "run": "b", "outcome": 1}', b'{"f']
)
def test_a_line_that_is_no_run_is_passed_over_and_swallows_none(
    tmp_path: Path, line: bytes
) -> None:
    study = Study.model_validate({"hospitals": {"count": 3}, "training": {"rounds": 1}})
    job = Job(study, 0, (ArmName.MEAN,))
    path = tmp_path / "x-runs.jsonl"
    path.write_bytes(line)
    finished = open_finished(tmp_path, "x")
    finished.add(job, carry_out(job))
    kept = open_finished(tmp_path, "x").get(job, ArmName.MEAN)
    assert kept == finished.get(job, ArmName.MEAN) is not None
    # Of the same code, with a figure that this code does not know.
    path.write_bytes(path.read_bytes().replace(b'"kappa"', b'"kappa_of_old"'))
    assert open_finished(tmp_path, "x").get(job, ArmName.MEAN) is None


def files_carried_out(job: Job) -> set[Path]:
    """Where the code is that a run executes, in whichever thread."""
    names: set[str] = set()

    def called(frame: FrameType, event: str, argument: object) -> None:
        names.add(frame.f_code.co_filename)

    threading.setprofile(called)
    sys.setprofile(called)
    try:
        carry_out(job)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return {Path(name) for name in names}


def test_an_arm_without_trust_carries_out_nothing_of_what_its_runs_are_known_without(
    tmp_path: Path,
) -> None:
    study = Study.model_validate(
        {
            "hospitals": {"count": 8},
            "training": {"rounds": 2, "recipe": "head", "steps": 1},
            "privacy": {"epsilon": 1.0},
            "hostile": {"attack": "optimal_ipm", "share": 0.25},
        }
    )

    def carried_out(*arms: ArmName) -> set[str]:
        files = files_carried_out(Job(study, 0, arms))
        return {path.name for path in files if "matl_coordinator" in path.parts} & _TRUST_ONLY

    assert carried_out(*(arm for arm in ArmName if arm not in _TRUSTING)) == set()
    assert carried_out(ArmName.MATL) >= {"trust.py", "judgement.py", "path.py", "weighting.py"}
    assert fingerprint(keeps_trust=False) != fingerprint()


def test_what_a_run_carries_out_is_what_it_is_known_by() -> None:
    study = Study.model_validate(
        {
            "hospitals": {"count": 8},
            "training": {"rounds": 2},
            "hostile": {"attack": "scaled_10", "share": 0.25},
        }
    )
    root = Path(matl.__file__).parents[1]
    files = files_carried_out(Job(study, 0, (ArmName.MATL, ArmName.FLTRUST)))
    found = {path.relative_to(root).as_posix() for path in files if path.is_relative_to(root)}
    assert "matl_coordinator/scoring/reach.py" in found
    # How files are named and written, which no figure depends on.
    assert {path for path in found if path.startswith("matl") and not path.startswith(_ENTERS)} == {
        "matl_common/durable.py",
        "matl_common/ids.py",
        "matl_common/remembered.py",
        "matl_common/tensors.py",
        "matl_common/tlog/merkle.py",
        "matl_coordinator/ports.py",
        "matl_coordinator/store/files.py",
        "matl_coordinator/store/histories.py",
        "matl_coordinator/store/models.py",
    }
    assert not {"path.py", "reach.py", "trust.py"} - _TRUST_ONLY


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--example prints one"),
        (["gone.toml"], "gone.toml"),
        (["STUDY", "--seeds", "0"], "--seeds '0'"),
        (["STUDY", "--seeds", "a,b"], "a list like 3,4"),
        (["STUDY", "--seeds", "3,3"], "each once"),
        (["STUDY", "--seeds", "²"], "a list like 3,4"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    words = [str(path) if each == "STUDY" else each for each in arguments]
    found = RUNNER.invoke(app, ["simulate", *words, "--out", str(tmp_path / "out")])
    assert found.exit_code == 2
    assert said in found.output
    assert len(found.output.strip().splitlines()) == 1


def test_the_example_is_printed_as_it_is_read(tmp_path: Path) -> None:
    from matl.simulation.study import parse_study

    found = RUNNER.invoke(app, ["simulate", "--example"])
    assert parse_study(found.output, name="example").studies


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0, None])
    assert found is not None
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    alone = interval([1.0])
    assert alone is not None
    assert alone.half_width is None
    assert interval([None]) is None
