"""What the person at the terminal sees, from scenes and logs."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from matl.demo.progress import Reporter, Scene, last_activity, picture
from matl.demo.run import Death
from matl.demo.study import Attack, Settings
from matl.operations import Contribution, Evaluation, Participant, Round, Status
from matl_common.ids import NodeId

NODES = [spec.node_id for spec in Settings().hospitals]
PARTICIPANTS = tuple(
    Participant(
        *(node, 0.3 if node == "hospital_e" else 0.9, "trusted", "", 100, None),
        *(0.42, 1.0, 0.2, 4, "add-or-remove-one patient", 1e-5),
    )
    for node in NODES
)
STATUSES = (
    Contribution(NODES[0], "invited", "", 0.0, 0.9, 0.0),
    Contribution(NODES[1], "uploading", "", 0.45, 0.9, 0.0),
    Contribution(NODES[2], "admitted", "", 1.0, 0.9, 0.0),
    Contribution(NODES[3], "late", "late: no update", 0.0, 0.9, 0.0),
    Contribution(NODES[4], "refused", "refused: 325 values are NaN", 0.0, 0.3, 0.0),
)
EVALUATION = Evaluation(0.734, 0.7, 0.9, (0.7,) * 5, 500)
RELEASED = Round(1, "released", "", STATUSES, "00" * 32, "ab" * 32, EVALUATION)
COLLECTING = Round(2, "collecting", "waits for hospital_a", STATUSES, "ab" * 32, "", None)
STATUS = Status(
    "0.1.0", "dr-study", "retinopathy", False, False, 1, 6, COLLECTING, "ab" * 32, 9, "cd" * 32, 5
)
SCENE = Scene(Settings(), STATUS, PARTICIPANTS, (RELEASED, COLLECTING), {NODES[0]: "training"})


def text_of(scene: Scene) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(picture(scene))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(scene: Scene, name: str) -> str:
    return next(line for line in text_of(scene).splitlines() if line.startswith(name))


def reporter() -> tuple[Reporter, io.StringIO]:
    out = io.StringIO()
    return Reporter(Console(file=out, width=60), Settings()), out


def test_the_picture_says_where_the_round_stands() -> None:
    text = text_of(SCENE)
    assert "Round 2, 1 of 6 models released: collecting updates" in text
    assert "waits for hospital_a" in text
    assert "73.4" in text
    assert "semi-synthetic" in text


@pytest.mark.parametrize(
    ("name", "doing"),
    [
        ("Hospital A", "training"),
        ("Hospital B", "uploading"),
        ("Hospital C", "update admitted"),
        ("Hospital D", "late"),
        ("Hospital E", "refused: 325 values"),
    ],
)
def test_each_hospital_has_a_row_that_says_what_it_does(name: str, doing: str) -> None:
    assert doing in row(SCENE, name)
    assert "0.42" in row(SCENE, name)


def test_an_upload_is_shown_by_how_far_it_is() -> None:
    assert row(SCENE, "Hospital C").count("━") > row(SCENE, "Hospital C").count("╺")
    half = replace(STATUSES[1], upload_fraction=0.0)
    nothing = replace(
        SCENE, status=replace(STATUS, current_round=replace(COLLECTING, contributions=(half,)))
    )
    assert row(SCENE, "Hospital B") != row(nothing, "Hospital B")


def test_a_coordinator_that_does_not_answer_is_said_to_start() -> None:
    assert "coordinator is starting" in text_of(replace(SCENE, status=None))


def test_an_attack_is_named_below_the_picture() -> None:
    assert "forged: nan" in text_of(replace(SCENE, settings=Settings(attack=Attack.NAN)))


def test_a_round_is_reported_once_in_one_line() -> None:
    shown, out = reporter()
    with shown:
        shown.show(SCENE)
        shown.show(SCENE)
    first, *others = out.getvalue().splitlines()
    assert first.startswith("round 1   73.4 % on the holdout images")
    assert "E 0.30" in first
    assert [line.strip() for line in others] == ["hospital_e refused: 325 values are NaN"]


def test_an_aborted_round_is_reported_with_its_reason() -> None:
    shown, out = reporter()
    aborted = replace(COLLECTING, phase="aborted", reason="quorum not reached")
    shown.show(replace(SCENE, rounds=(aborted,)))
    assert "aborted: quorum not reached" in out.getvalue()


def test_a_death_is_told() -> None:
    shown, out = reporter()
    shown.tell_of(Death(NodeId("hospital_b"), -9))
    assert "hospital_b died (SIGKILL); starting it again" in out.getvalue()


def test_the_last_line_that_means_something_is_what_a_hospital_does(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    assert last_activity(log) == "starting"
    events = ["participant.connected", "participant.training", "worker.stderr"]
    lines = [json.dumps({"event": event}) for event in events]
    log.write_text("\n".join([*lines, "no JSON", "[1]", '{"event": "participant.upda']))
    assert last_activity(log) == "training"
