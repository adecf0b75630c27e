"""What a terminal shows of a daemon's log lines."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from matl.demo.run import DEPLOY
from matl.demo.study import COORDINATOR
from matl.deploy.progress import Scene, parse_line, picture, seen, told, watch
from matl.deploy.terminal import without_done
from tests.demo.test_federation import prepared

LINES: tuple[Mapping[str, object], ...] = (
    {"event": "coordinator_ready", "level": "info", "phase": "scheduled"},
    {"event": "round_phase", "level": "info", "round": 1, "phase": "collecting"},
    {"event": "update_receiving", "level": "info", "round": 1, "node": "hospital_a"},
    {"event": "update_receiving", "level": "info", "round": 1, "node": "hospital_b"},
    {"event": "update_admitted", "level": "info", "round": 1, "node": "hospital_a"},
    {"event": "few_open_files", "level": "warning", "allowed": 1024},
)


def folded(*lines: Mapping[str, object]) -> Scene:
    scene = Scene()
    for each in lines:
        scene = seen(scene, each)
    return scene


def test_uploads_belong_to_their_round() -> None:
    scene = folded(*LINES)
    assert (scene.round, scene.doing) == (1, "collecting updates")
    assert scene.uploads == {"hospital_a": "admitted", "hospital_b": "uploading"}
    after = seen(scene, {"event": "round_phase", "round": 2, "phase": "scheduled"})
    assert (after.round, after.uploads) == (2, {})
    late = seen(after, {"event": "update_admitted", "round": 1, "node": "hospital_b"})
    assert late.uploads == {}


def test_a_release_is_counted_with_its_accuracy() -> None:
    scene = folded(*LINES, {"event": "model_released", "round": 1, "accuracy": 0.81})
    assert (scene.released, scene.accuracy) == (1, 0.81)


def test_trouble_is_kept_and_the_oldest_of_it_is_forgotten() -> None:
    scene = folded(*({"event": f"e{i}", "level": "error"} for i in range(20)))
    assert len(scene.trouble) == 6
    assert scene.trouble[-1].startswith("error: e19")


def test_a_line_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in told({"event": "x\x1b[2J", "level": "error", "node": "\x1b]0;y"})


def test_what_is_no_structured_line_is_shown_as_it_is() -> None:
    assert parse_line("Traceback") is None
    assert parse_line("[1]") is None
    console = Console(record=True, force_terminal=True, width=100)
    lines = [*(json.dumps(each) for each in LINES), "somebody's own words"]
    watch(lines, console, title="coordinator", expected=3)
    text = console.export_text()
    for shown in ("somebody's own words", "round 1", "1 of 3", "hospital_b", "uploading"):
        assert shown in text


def test_a_hospital_has_no_bar_of_updates() -> None:
    console = Console(record=True, width=100)
    scene = folded({"event": "participant.training", "level": "info", "round": 4})
    console.print(picture(scene, "participant", 0))
    assert "updates" not in console.export_text()


def test_what_was_done_before_the_daemon_started_is_not_done_again() -> None:
    given = ["--role", "coordinator", "--compliance", "hipaa", "--registry=x", "--audit-db", "y"]
    assert without_done(given) == ["--role", "coordinator", "--audit-db", "y"]


def test_on_a_terminal_the_daemon_runs_behind_the_picture_and_its_status_is_kept(
    tmp_path: Path,
) -> None:
    # Without its images the coordinator says what is wrong, and ends with 2.
    config = prepared(tmp_path).config(COORDINATOR)
    near, far = pty.openpty()
    with os.fdopen(near, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, str(DEPLOY), "--role", "coordinator", "--config", str(config)],
            stderr=far,
            cwd=tmp_path,
        )
        os.close(far)
        shown = b""
        # Linux says EIO once nobody has the other end open.
        with suppress(OSError):
            while block := terminal.read(65536):
                shown += block
    assert process.wait() == 2
    assert b"coordinator" in shown
    assert b"configuration_does_not_work" in shown
