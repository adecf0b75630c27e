"""Going on from published runs, and running some of them again."""

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from benchmarks import evidence_check, evidence_results
from benchmarks.evidence_check import Check, checks_of, drawn, run_again
from benchmarks.results.gather import Run, cells_of, run_of, study_digest
from benchmarks.results.known import data_digest, taken_over
from benchmarks.results.peers import peer_jobs
from benchmarks.results.publication import document, published_study, read_published, text_of
from matl.simulation.campaign import (
    Job,
    LocalEngine,
    Places,
    fingerprint,
    jobs_of,
    open_finished,
)
from matl.simulation.datasets import FASHION_FOLDER
from matl.simulation.study import ArmName, StudyFile, parse_study
from tests.simulation.outcomes import made_outcome

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]
SMALL = """
arms = ["matl", "mean"]
seeds = 2
[data]
set = "digits"
[hospitals]
count = 4
[training]
rounds = 2
[hostile]
share = 0.25
[grid]
"hostile.attack" = ["none", "sign_flip_5"]
"""


def small(text: str = SMALL) -> StudyFile:
    return parse_study(text, name="robust-n5")


def as_published(file: StudyFile, runs: Sequence[Run], **changed: Any) -> dict[str, Any]:
    """A study as it is read from ``evidence.json``."""
    study = published_study(
        runs,
        asked=file.studies,
        asked_runs=8,
        command="python -m x",
        newest="2026-01-01T00:00:00+00:00",
        features=None,
        data="",
    )
    text = text_of({"studies": {file.name: study | changed}, "summary": {}})
    found: dict[str, Any] = json.loads(text)["studies"][file.name]
    return found


def made_runs(jobs: Sequence[Job]) -> list[Run]:
    """Outcomes with figures that do not end after four digits."""
    return [
        run_of(
            job.study,
            made_outcome(
                accuracy=1 / (3 + job.seed),
                arm=arm,
                seed=job.seed,
                hostile=job.study.hostile_count,
                detected_in=None if job.seed else 2,
                hostile_weight=1 / 7,
            ),
        )
        for job in jobs
        for arm in job.arms
    ]


def test_published_runs_come_back_as_they_were_and_give_the_same_cells() -> None:
    file = small()
    jobs = jobs_of(file)
    runs = made_runs(jobs)
    published = as_published(file, runs)
    taken = taken_over(published, jobs)
    assert taken == runs
    assert len(taken) == 8
    assert json.loads(json.dumps(cells_of(taken))) == published["cells"]


def test_only_the_seeds_and_arms_that_are_published_are_taken_over() -> None:
    file = small()
    jobs = jobs_of(file)
    some = [run for run in made_runs(jobs) if run.arm == "mean" or run.seed == 1]
    taken = taken_over(as_published(file, some), jobs)
    assert taken == some
    assert len(some) == 6


def test_runs_of_another_study_are_not_taken_over() -> None:
    file = small()
    published = as_published(file, made_runs(jobs_of(file)))
    longer = small(SMALL.replace("rounds = 2", "rounds = 3"))
    assert taken_over(published, jobs_of(longer)) == []


@pytest.mark.parametrize(
    ("changed", "arms"),
    [
        ({}, {"matl", "mean"}),
        ({"fingerprint_without_trust": "other"}, {"matl", "mean"}),
        ({"fingerprint": "other"}, {"mean"}),
        ({"fingerprint": "other", "fingerprint_without_trust": "other"}, set()),
        ({"data": "other"}, set()),
        ({"figures": ["accuracy_percent"]}, set()),
    ],
)
def test_runs_are_taken_over_of_the_same_code_data_and_figures_alone(
    changed: Mapping[str, Any], arms: set[str]
) -> None:
    file = small()
    jobs = jobs_of(file)
    published = as_published(file, made_runs(jobs), **changed)
    assert {run.arm for run in taken_over(published, jobs)} == arms
    assert taken_over({}, jobs) == []


def test_cells_of_an_older_form_are_not_taken_over() -> None:
    file = small()
    jobs = jobs_of(file)
    for missing in ("study", "measurements"):
        published = as_published(file, made_runs(jobs))
        for cell in published["cells"]:
            del cell[missing]
        assert taken_over(published, jobs) == []


def test_the_images_of_a_study_are_told_by_their_bytes(tmp_path: Path) -> None:
    file = small(SMALL.replace("digits", "fashion"))

    def digest(name: str, content: bytes) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
        return data_digest(jobs_of(file, fashion=folder)[0])

    assert digest("a", b"1") == digest("b", b"1") != digest("c", b"2")
    assert data_digest(jobs_of(small())[0]) == ""


def test_seeds_stand_in_their_order_whatever_order_they_were_run_in() -> None:
    runs = made_runs(jobs_of(small()))
    assert cells_of(runs[::-1])[::-1] == cells_of(runs)


def test_what_is_published_is_not_run_and_stands_beside_what_is(tmp_path: Path) -> None:
    file = small()
    jobs = jobs_of(file)
    given = [run for run in made_runs(jobs) if run.seed == 0]
    published = {file.name: as_published(file, given)}
    asked = replace(file, arms=(ArmName.MEAN,))
    places: dict[str, Any] = {"fashion": FASHION_FOLDER, "out": tmp_path}
    console = Console(stderr=True)
    evidence_results.run_missing(asked, published, console, processes=1, **places)
    own = open_finished(tmp_path, file.name)
    ran = [(job.seed, arm) for job in jobs for arm in job.arms if own.get(job, arm)]
    assert ran == [(1, "mean")] * 2
    whole = evidence_results.gathered([file], published=published, **places)[file.name]
    assert whole["finished_runs"] == 6
    by_arm = {(c["arm"], c["hostile"]): c for c in whole["cells"]}
    assert by_arm["mean", 1]["seeds"] == [0, 1]
    assert by_arm["matl", 1]["seeds"] == [0]
    first, second = by_arm["mean", 1]["measurements"]["accuracy_percent"]
    assert first == round(100 / 3, 4) != second
    alone = evidence_results.gathered([file], published={}, **places)[file.name]
    assert alone["finished_runs"] == 2


def test_figures_that_were_taken_over_keep_their_date(tmp_path: Path) -> None:
    file = small()
    jobs = jobs_of(file)
    published = {file.name: as_published(file, made_runs(jobs))}
    written = tmp_path / "robust-n5-runs.jsonl"
    written.write_text("")
    os.utime(written, (0, 0))
    places: dict[str, Any] = {"fashion": FASHION_FOLDER, "out": tmp_path}
    found = evidence_results.gathered([file], published=published, **places)
    assert found[file.name]["newest_run"] == "2026-01-01T00:00:00+00:00"
    written.unlink()
    assert evidence_results.gathered([file], published=published, **places) == {}


def test_other_implementations_are_taken_over_too(tmp_path: Path) -> None:
    jobs = peer_jobs(fashion=tmp_path)[:2]
    runs = made_runs(jobs)
    file = StudyFile("peers", tmp_path, (tuple(job.study for job in jobs),), (), (0,))
    published = as_published(file, runs, data=data_digest(jobs[0]))
    assert taken_over(published, peer_jobs(fashion=tmp_path)) == runs
    assert len(runs) == 22


def test_the_command_adds_to_what_is_published_only_when_told_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = evidence_results.studies_of(["robust-n5"])[0]
    job = jobs_of(replace(file, rows=file.rows[:1]))[0]
    found = read_published(ROOT / evidence_results.RESULTS)
    (tmp_path / "fashion").mkdir()
    job = replace(job, places=Places(tmp_path / "fashion"))
    study = found["studies"]["robust-n5"]
    same = {"fingerprint": fingerprint(), "data": data_digest(job)}
    found["studies"] = {"robust-n5": study | same}
    (tmp_path / evidence_results.STUDIES).parent.mkdir()
    (tmp_path / evidence_results.STUDIES).symlink_to(ROOT / evidence_results.STUDIES)
    monkeypatch.chdir(tmp_path)
    evidence_results.write(found)
    own = replace(job, arms=(ArmName.MEAN,))
    made = made_outcome(accuracy=0.25, arm="mean", seed=0, hostile=0, members=5, attack="none")
    open_finished(tmp_path / "out", file.name).add(own, [made])
    command = typer.Typer()
    command.command()(evidence_results.main)
    asked = ["--tables", "--out", "out", "--fashion", str(tmp_path / "fashion")]
    refused = CliRunner().invoke(command, asked)
    assert refused.exit_code == 1
    assert "published runs are not finished here: robust-n5" in refused.output
    refused = CliRunner().invoke(command, [*asked, "--continue", "--replace"])
    assert refused.exit_code == 1
    assert "choose one" in refused.output
    done = CliRunner().invoke(command, [*asked, "--continue"])
    assert done.exit_code == 0, done.output
    after = read_published(evidence_results.RESULTS)["studies"]["robust-n5"]
    assert after["finished_runs"] == study["finished_runs"]
    cells = {(c["study"], c["arm"]): c for c in after["cells"]}
    for before in study["cells"]:
        now = cells[before["study"], before["arm"]]
        own_values = before["measurements"]["accuracy_percent"]
        if (before["study"], before["arm"]) == (study_digest(job.study), "mean"):
            assert now["measurements"]["accuracy_percent"] == [25.0, *own_values[1:]]
        else:
            assert now["measurements"] == before["measurements"]


def test_runs_are_drawn_evenly_over_the_studies_and_again_by_the_same_seed() -> None:
    file = small()
    many = [
        Check(name, job, run_of(job.study, made_outcome(accuracy=0.5)), is_same_code=True)
        for name in ("a", "b")
        for job in jobs_of(file)
    ]
    checks = [many[:4], many[4:5]]
    for wanted, names in ((2, ["a", "b"]), (4, ["a", "a", "a", "b"])):
        chosen = drawn(checks, wanted, random.Random(1))
        assert sorted(check.file for check in chosen) == names
        assert drawn(checks, wanted, random.Random(1)) == chosen
    assert len(drawn(checks, 50, random.Random(1))) == 5
    firsts = {drawn(checks, 1, random.Random(seed))[0].name for seed in range(60)}
    assert len(firsts) == 5
    assert drawn([], 3, random.Random(1)) == []


def test_a_published_figure_that_these_sources_do_not_give_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = small(SMALL.replace("seeds = 2", "seeds = 1"))
    jobs = jobs_of(file)
    places: dict[str, Any] = {"fashion": FASHION_FOLDER, "out": tmp_path}
    console = Console(soft_wrap=True)
    evidence_results.run_missing(file, {}, console, processes=1, **places)
    true = evidence_results.gathered([file], published={}, **places)[file.name]
    assert run_again(checks_of(file, true, jobs), LocalEngine(1), console) == {}
    lying = json.loads(json.dumps(true))
    (cell,) = (c for c in lying["cells"] if (c["arm"], c["hostile"]) == ("matl", 1))
    cell["measurements"]["accuracy_percent"][0] += 0.0001
    checks = checks_of(file, lying, jobs)
    assert len(checks) == 4
    assert all(check.is_same_code for check in checks)
    capsys.readouterr()
    found = run_again(checks, LocalEngine(1), console)
    ((name, differences),) = found.items()
    assert "sign_flip_5, matl, seed 0" in name
    assert list(differences) == ["accuracy_percent"]
    said = capsys.readouterr().out
    assert said.count("same ") == 3
    assert "differs" in said
    older = checks_of(file, {**true, "fingerprint": "x", "fingerprint_without_trust": "y"}, jobs)
    assert [check.is_same_code for check in older] == [False] * 4


def measured(folder: Path) -> tuple[str, StudyFile, dict[str, Any]]:
    """A study of one seed: its file, and what is published of it."""
    text = SMALL.replace("seeds = 2", "seeds = 1")
    file = small(text)
    places: dict[str, Any] = {"fashion": FASHION_FOLDER, "out": folder}
    evidence_results.run_missing(file, {}, Console(stderr=True), processes=1, **places)
    return text, file, evidence_results.gathered([file], published={}, **places)[file.name]


def test_the_check_ends_with_1_where_a_figure_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, file, study = measured(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in (evidence_results.STUDIES / f"{file.name}.toml", evidence_results.RESULTS):
        path.parent.mkdir(parents=True)
    (evidence_results.STUDIES / f"{file.name}.toml").write_text(text)
    command = typer.Typer()
    command.command()(evidence_check.main)
    asked = ["--processes", "1", "--runs", "4", "--only", file.name, "--out", str(tmp_path)]
    for lie, same in ((0.0, 4), (0.5, 3)):
        study["cells"][0]["measurements"]["kappa"][0] += lie
        published = text_of({"studies": {file.name: study}, "summary": {}})
        evidence_results.RESULTS.write_text(published)
        done = CliRunner().invoke(command, asked)
        assert done.exit_code == (1 if lie else 0), done.output
        assert f"{same} of 4 came out the same" in done.output
        result = json.loads((tmp_path / evidence_check.RESULT).read_text())
        assert result["summary"] == {"runs": 4, "same": same}


def test_figures_are_carried_over_to_other_code_where_none_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, file, study = measured(tmp_path)
    here = {key: study[key] for key in ("code", "fingerprint", "fingerprint_without_trust")}
    older = {**study, **dict.fromkeys(here, "old")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evidence_results, "ORDER", (file.name,))
    for path in (evidence_results.STUDIES / f"{file.name}.toml", evidence_results.RESULTS):
        path.parent.mkdir(parents=True)
    (evidence_results.STUDIES / f"{file.name}.toml").write_text(text)
    command = typer.Typer()
    command.command()(evidence_check.main)
    asked = ["--processes", "1", "--runs", "4", "--seed", "7", "--out", str(tmp_path)]
    asked += ["--carry", "a comment"]
    first = older["cells"][0]["measurements"]["kappa"]
    for lie in (0.5, 0.0):
        first[0] += lie
        evidence_results.RESULTS.write_text(
            text_of(document({file.name: older}, command="as before"))
        )
        first[0] -= lie
        done = CliRunner().invoke(command, asked)
        assert done.exit_code == (1 if lie else 0), done.output
        after = json.loads(evidence_results.RESULTS.read_text())["studies"][file.name]
        if lie:
            assert after["code"] == "old"
    assert {key: after[key] for key in here} == here
    assert after["cells"] == json.loads(json.dumps(study["cells"]))
    (record,) = after["carried_over"]
    assert record["why"] == "a comment"
    assert (record["from"], record["to"]) == ("old", here["code"])
    assert (record["runs_made_again"], record["seed"]) == (4, 7)
    assert "`old` → " in evidence_results.PAGE.read_text()
    refused = CliRunner().invoke(command, [*asked, "--only", file.name])
    assert refused.exit_code == 1
    assert "leave --only out" in refused.output
    # Whoever goes on from there keeps the note.
    monkeypatch.chdir(ROOT)
    again = evidence_results.gathered(
        [file], out=tmp_path, fashion=FASHION_FOLDER, published={file.name: after}
    )
    assert again[file.name]["carried_over"] == [record]


def test_the_check_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = typer.Typer()
    command.command()(evidence_check.main)
    runner = CliRunner()
    asked = ["--only", "tutorial-fundus", "--out", str(tmp_path)]
    done = runner.invoke(command, asked)
    assert done.exit_code == 1
    assert "Left out, for their features are not here: tutorial-fundus" in done.output
    assert "nothing that is published can be run again here" in done.output
    asked = ["--only", "robust-n5", "--out", str(tmp_path), "--fashion", str(tmp_path / "none")]
    done = runner.invoke(command, asked)
    assert done.exit_code == 1
    assert "dataset-fashion-mnist" in done.output
    assert not (tmp_path / evidence_check.RESULT).exists()
