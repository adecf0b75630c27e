"""The units are hardened as far as the documentation says, and what they name is there."""

import os
import re
import shlex
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pytest

from matl import cli
from matl_coordinator import config as coordinator
from matl_coordinator import daemon as coordinator_daemon
from matl_participant import config as participant
from matl_participant import daemon
from matl_participant.node_config import load_node_config
from tests.deploy.command_lines import parse
from tests.deploy.test_examples import EXAMPLES, LOADERS

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
WORST = 1.5
"""Exposure by ``systemd-analyze security`` above which a unit has lost something."""


DAEMONS = [name for name in LOADERS if name != "front-end"]
"""Each a program of its own with a state of its own."""
TIMED = ("backup", "verify")


def settings(name: str, kind: str = "service") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / f"matl-{name}.{kind}").read_text("utf-8").splitlines():
        if match := re.match(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="apt-get install systemd, which rates units"
)
@pytest.mark.parametrize("name", [*LOADERS, *TIMED])
def test_a_units_exposure_is_what_the_documentation_says_and_low(name: str) -> None:
    said = run(
        *("systemd-analyze", "security", "--offline=true", "--no-pager"),
        str(UNITS / f"matl-{name}.service"),
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= WORST
    # Other versions rate a little differently.
    if name in LOADERS and run("systemd-analyze", "--version").startswith("systemd 252 "):
        assert f"`matl-{name}.service` | {found[1]} " in PAGE


@pytest.mark.parametrize("name", DAEMONS)
def test_a_unit_starts_the_daemon_on_the_example_and_owns_its_state(name: str) -> None:
    unit = settings(name)
    example = LOADERS[name](EXAMPLES / f"{name}.toml", environment={})
    (command,) = unit["ExecStart"]
    assert shlex.split(command) == [
        f"/opt/matl/bin/matl-{name}",
        "--config",
        f"/etc/matl/{name}.toml",
    ]
    assert unit["StateDirectory"] == [example.state_dir.name]
    assert example.state_dir.parent == Path("/var/lib")


def test_the_unit_of_a_front_end_starts_it_on_the_example_and_writes_to_the_spool_alone() -> None:
    unit = settings("front-end")
    example = LOADERS["front-end"](EXAMPLES / "front-end.toml", environment={})
    (command,) = unit["ExecStart"]
    assert command == "/opt/matl/bin/matl-coordinator ingest --config /etc/matl/front-end.toml"
    parse({"matl-coordinator": coordinator_daemon.app}, ["matl-coordinator", *command.split()[1:]])
    assert unit["ReadWritePaths"] == [str(example.spool)]
    assert "StateDirectory" not in unit
    assert float(unit["TimeoutStopSec"][0]) > example.limits.drain_seconds
    assert unit["RestartPreventExitStatus"] == [str(coordinator_daemon.EXIT_CONFIGURATION)]


@pytest.mark.parametrize("name", TIMED)
def test_what_a_timer_starts_is_a_command_of_ours_on_the_coordinators_state(name: str) -> None:
    unit, timer = settings(name), settings(name, "timer")
    (command,) = unit["ExecStart"]
    words = shlex.split(command.replace("%%", "%").replace("$$", "$"))
    words = shlex.split(words[2]) if words[0] == "/bin/sh" else words
    program = words.index("/opt/matl/bin/matl")
    parse({"matl": cli.app}, ["matl", *words[program + 1 :]])
    assert words[-1] == "/etc/matl/coordinator.toml"
    for same in ("User", "Group", "StateDirectory", "Environment"):
        assert unit[same] == settings("coordinator")[same]
    assert unit["Type"] == ["oneshot"]
    assert timer["Persistent"] == ["yes"]
    assert timer["WantedBy"] == ["timers.target"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_timers_are_as_frequent_as_the_alerts_want() -> None:
    for name, apart in (("backup", 1), ("verify", 7)):
        (when,) = settings(name, "timer")["OnCalendar"]
        said = run("systemd-analyze", "calendar", "--iterations=2", when)
        days = re.findall(r"(?:Next elapse|Iter. #2|Iteration #2): \w+ ([\d-]+)", said)
        first, second = map(date.fromisoformat, days)
        assert (second - first).days == apart


def test_the_units_wait_longer_than_the_daemons_drain() -> None:
    ours = coordinator.load_config(EXAMPLES / "coordinator.toml", environment={})
    theirs = participant.load_config(EXAMPLES / "participant.toml", environment={})
    assert float(settings("coordinator")["TimeoutStopSec"][0]) > ours.limits.drain_seconds
    assert float(settings("participant")["TimeoutStopSec"][0]) > theirs.daemon.drain_seconds
    node = load_node_config(EXAMPLES / "training-node.toml")
    for each, images in (("participant", theirs.data.images), ("training-node", node.data.images)):
        assert Path(settings(each)["ReadOnlyPaths"][0]) == images


def test_the_coordinator_takes_its_password_from_a_file_that_nobody_else_can_read() -> None:
    name, _, file = settings("coordinator")["Environment"][0].partition("=")
    assert name == "PGPASSFILE"
    modes = (UNITS / "tmpfiles.d" / "matl.conf").read_text("utf-8")
    assert re.search(rf"^z {re.escape(file)} +0600 matl matl -$", modes, re.MULTILINE)


def test_a_participant_that_has_ended_in_order_or_for_good_is_not_started_again() -> None:
    unit = settings("participant")
    assert unit["Restart"] == ["on-failure"]
    for_good = {str(daemon.EXIT_CONFIGURATION), str(daemon.EXIT_HALTED)}
    assert set(unit["RestartPreventExitStatus"][0].split()) == for_good


def test_a_coordinator_that_was_replaced_is_not_started_to_replace_the_other_in_turn() -> None:
    unit = settings("coordinator")
    assert unit["Restart"] == ["always"]
    for_good = {str(coordinator_daemon.EXIT_CONFIGURATION), str(coordinator_daemon.EXIT_REPLACED)}
    assert set(unit["RestartPreventExitStatus"][0].split()) == for_good
    assert str(coordinator_daemon.EXIT_FAILED) not in for_good


def test_sizes_that_journald_is_given_are_bytes() -> None:
    text = (UNITS / "journald.conf.d" / "matl.conf").read_text("utf-8")
    sizes = re.findall(r"^System\w+=(.*)$", text, re.MULTILINE)
    assert len(sizes) == 2
    assert all(re.fullmatch(r"\d+[KMGT]?", each) for each in sizes)


def test_a_unit_documents_itself_with_a_page_that_is_there() -> None:
    for name in (*LOADERS, *TIMED):
        (page,) = settings(name)["Documentation"]
        assert (ROOT / "docs" / Path(page).name).exists()


@pytest.mark.skipif(
    os.geteuid() != 0 or None in map(shutil.which, ("systemd-sysusers", "systemd-tmpfiles")),
    reason="needs root and systemd",
)
def test_account_and_folder_are_made_so_that_only_the_daemons_use_the_keys(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    for kind in ("sysusers.d", "tmpfiles.d"):
        (etc / kind).mkdir(parents=True)
        shutil.copy(UNITS / kind / "matl.conf", etc / kind)
    (etc / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\n")
    keys = etc / "matl"
    keys.mkdir()
    for name in ("tls.key", "pin", "pgpass", "tls.crt", "coordinator.toml"):
        (keys / name).touch(mode=0o644)
    run("systemd-sysusers", f"--root={tmp_path}")
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", "matl.conf")
    account = next(
        line.split(":")
        for line in (etc / "passwd").read_text().splitlines()
        if line.startswith("matl:")
    )
    uid, gid = int(account[2]), int(account[3])

    def held(path: Path) -> tuple[int, int, int]:
        found = path.stat()
        return found.st_uid, found.st_gid, found.st_mode & 0o777

    assert held(keys) == (0, gid, 0o750)
    for name in ("tls.key", "pin", "pgpass"):
        assert held(keys / name) == (uid, gid, 0o600)
    assert held(keys / "coordinator.toml") == held(keys / "tls.crt") == (0, gid, 0o640)
