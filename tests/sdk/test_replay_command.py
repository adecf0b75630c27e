"""``matl audit replay`` tells whether a round comes out the same, and the log that it was asked."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from sqlalchemy import text
from typer.testing import CliRunner, Result

from matl.cli import app
from matl_coordinator.os_account import current_account
from tests.coordinator.harness import Site, events_of, make_site, play, running
from tests.sdk.test_audit_commands import LOG_KEY_FILE, config_file


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = make_site(
        tmp_path_factory.mktemp("site"),
        study={"rounds": 1},
        keep_spooled=10,
        rule="coordinate_median",
    )

    async def study() -> None:
        async with running(site) as coordinator:
            await play(coordinator)

    asyncio.run(study())
    (site.config.state_dir / "log-encryption.key").write_bytes(LOG_KEY_FILE)
    shutil.copytree(site.config.state_dir, site.folder / "sound")
    return site


@pytest.fixture
def site(played: Site) -> Site:
    """A coordinator's machine as its study left it."""
    shutil.rmtree(played.config.state_dir)
    shutil.copytree(played.folder / "sound", played.config.state_dir)
    return played


def replay(site: Site, number: int, *options: str) -> Result:
    config = ("--coordinator-config", str(config_file(site)))
    return CliRunner().invoke(app, ["audit", "replay", str(number), *config, *options])


def newest(site: Site) -> dict[str, Any]:
    store = site.connect_store()
    found = events_of(store)[-1]
    store.close()
    return found


def test_a_round_that_comes_out_the_same_is_put_on_record(site: Site) -> None:
    found = replay(site, 1, "--json")
    assert found.exit_code == 0, found.output
    report, logged = json.loads(found.stdout), newest(site)
    assert report["record"] == f"entry {report['recorded']} of the log tells of this run"
    assert (logged["event"], logged["round"], logged["result"]) == ("round_replayed", 1, "same")
    assert logged["account"] == current_account()
    assert logged["same"] == [each["what"] for each in report["same"]]
    assert logged["model"] == report["same"][-1]["found"]
    # Nor is the record any part of what the next one goes by.
    again = replay(site, 1)
    assert again.exit_code == 0, again.output
    assert f"entry {report['recorded'] + 1} of the log" in again.stdout


def test_a_round_that_comes_out_differently_is_put_on_record_without_the_errors_text(
    site: Site,
) -> None:
    path = site.config.state_dir / "spool" / "1" / "hospital_c.update"
    values = np.fromfile(path, dtype="<f4")
    values[0] += 1
    values.tofile(path)
    found = replay(site, 1)
    assert (found.exit_code, "hospital_c is not the one that it signed" in found.stderr) == (
        1,
        True,
    )
    assert "On record: entry" in found.stderr
    logged = newest(site)
    assert (logged["event"], logged["round"]) == ("round_replayed", 1)
    assert (logged["result"], logged["same"]) == ("different", ["Study plan"])
    assert set(logged) == {"v", "at", "event", "round", "account", "result", "same"}


def test_a_round_of_which_nothing_can_be_said_is_not_put_on_record(site: Site) -> None:
    before = newest(site)
    shutil.rmtree(site.config.state_dir / "spool" / "1")
    for number, told in ((1, "no longer spooled"), (9, "no round_scheduled of round 9")):
        found = replay(site, number)
        assert (found.exit_code, told in found.stderr) == (2, True), found.output
    assert newest(site) == before


@pytest.mark.parametrize("status", [0, 1])
def test_a_replay_that_cannot_be_put_on_record_says_so_and_is_no_worse_for_it(
    site: Site, status: int
) -> None:
    if status == 1:
        path: Path = site.config.state_dir / "spool" / "1" / "hospital_c.update"
        path.write_bytes(bytes(path.stat().st_size))
    engine = sqlalchemy.create_engine(site.config.database_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER reader BEFORE INSERT ON log_nodes "
                "BEGIN SELECT RAISE(ABORT, 'permission denied'); END"
            )
        )
    engine.dispose()
    found = replay(site, 1)
    assert found.exit_code == status, found.output
    assert "this run could not be logged" in found.output
