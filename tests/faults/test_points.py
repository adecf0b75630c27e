"""The harness itself: what it says it does to a process, it does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from matl_coordinator.store.database import create_database_engine, reading
from tests.faults.points import Mode, Plan, visited
from tests.faults.power import DurableImage, restore
from tests.system.processes import ROOT

pytestmark = pytest.mark.crash

WRITER = """
import json, os, sys
from pathlib import Path
from matl_common.durable import write_atomically
from matl_coordinator.store.database import create_database_engine, writing
from sqlalchemy import text
from tests.faults.points import Plan, install

plan = Plan(**json.loads(sys.argv[1]))
install(plan)
root = Path(plan.root)
match sys.argv[2]:
    case "file":
        write_atomically(root / "file", [b"whole"])
    case "careless":
        (root / "temporary").write_bytes(b"whole")
        os.rename(root / "temporary", root / "careless")
        folder = os.open(root, os.O_RDONLY)
        os.fsync(folder)
        os.fsync(folder)
    case "append":
        ledger = os.open(root / "ledger", os.O_WRONLY | os.O_CREAT)
        os.write(ledger, b"one line")
    case "commit":
        engine = create_database_engine(f"sqlite:///{root / 'coordinator.db'}")
        with writing(engine) as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS rounds (phase TEXT)"))
            connection.execute(text("INSERT INTO rounds VALUES ('open')"))
"""


def lives_until_done(plan: Plan, what: str) -> list[int]:
    """Run the writer until it ends in order; returns the exit statuses."""
    statuses: list[int] = []
    while not statuses or statuses[-1]:
        ended = subprocess.run(
            [sys.executable, "-c", WRITER, plan.encode(), what], cwd=ROOT, check=False
        )
        restore(Path(plan.root), plan.image)
        statuses.append(ended.returncode)
        assert len(statuses) < 20
    return statuses


def plan_of(tmp_path: Path, mode: Mode, *, only: str = "") -> Plan:
    root = tmp_path / "coordinator"
    root.mkdir()
    return Plan(root=str(root), mode=mode, visited=str(tmp_path / "visited"), only=only)


def test_a_writer_dies_once_at_each_of_its_steps_and_comes_to_its_end(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Mode.KILL_BEFORE)
    assert lives_until_done(plan, "file") == [-9, -9, -9, 0]
    assert visited(plan) == [
        "sync coordinator/<temporary>",
        "rename to coordinator/file",
        "sync folder coordinator",
    ]
    assert (Path(plan.root) / "file").read_bytes() == b"whole"


def test_a_write_is_torn_by_a_kill_before_its_end_and_whole_after_it(tmp_path: Path) -> None:
    for mode, left in ((Mode.KILL_BEFORE, b"one "), (Mode.KILL_AFTER, b"one line")):
        folder = tmp_path / mode.name
        folder.mkdir()
        plan = plan_of(folder, mode)
        command = [sys.executable, "-c", WRITER, plan.encode(), "append"]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
        assert (Path(plan.root) / "ledger").read_bytes() == left


def test_a_power_cut_takes_what_a_careless_writer_did_not_flush(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Mode.POWER_CUT, only="sync folder")
    command = [sys.executable, "-c", WRITER, plan.encode(), "careless"]
    # The folder was not flushed at the first cut: not even the name is there.
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    assert restore(Path(plan.root), plan.image)
    assert list(Path(plan.root).iterdir()) == []
    again = Plan(plan.root, plan.mode, f"{plan.visited}-2", limit=1, only="nowhere")
    assert lives_until_done(again, "careless") == [0]


@pytest.mark.parametrize(("mode", "rows"), [(Mode.KILL_BEFORE, 1), (Mode.KILL_AFTER, 2)])
def test_a_commit_is_durable_only_if_the_process_dies_after_it(
    tmp_path: Path, mode: Mode, rows: int
) -> None:
    plan = plan_of(tmp_path, mode, only="commit")
    assert lives_until_done(plan, "commit") == [-9, 0]
    assert visited(plan) == ["commit rounds"]
    engine = create_database_engine(f"sqlite:///{plan.root}/coordinator.db")
    with reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM rounds")).scalar_one() == rows
    engine.dispose()


def test_a_full_disk_is_an_error_that_the_writer_sees(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Mode.DISK_FULL, only="sync coordinator")
    assert lives_until_done(plan, "file") == [1, 0]
    assert [path.name for path in Path(plan.root).iterdir()] == ["file"]


def test_a_file_that_got_the_inode_of_a_folder_that_is_gone_is_left_as_a_file(
    tmp_path: Path,
) -> None:
    image = DurableImage(tmp_path)
    file = tmp_path / "ledger"
    file.write_bytes(b"charged")
    # File systems hand inodes on when they like.
    image._names[file.stat().st_ino] = {}
    for path in (file, tmp_path):
        descriptor = os.open(path, os.O_RDONLY)
        image.flushed(descriptor)
        os.close(descriptor)
    assert image.left() == {"ledger": b"charged"}
