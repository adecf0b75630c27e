"""The administrator's own command for a database whose daemon may not change its tables."""

from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from matl_coordinator.daemon import EXIT_CONFIGURATION, EXIT_FAILED, app
from matl_coordinator.store.database import create_database_engine, writing
from matl_coordinator.store.migrate import schema_drift


def test_a_database_is_migrated_without_starting_a_coordinator(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'coordinator.db'}"
    for _ in range(2):
        assert CliRunner().invoke(app, ["migrate", "--database", url]).exit_code == 0
    engine = create_database_engine(url)
    assert schema_drift(engine) == []
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    refused = CliRunner().invoke(app, ["migrate"], env={"MATL_OWNER_DATABASE": url})
    assert refused.exit_code == EXIT_CONFIGURATION
    assert "another version" in refused.stderr


@pytest.mark.parametrize(
    ("url", "status"),
    [("mysql://x", EXIT_CONFIGURATION), ("postgresql://127.0.0.1:1/x", EXIT_FAILED)],
)
def test_a_database_that_is_not_there_is_one_line(url: str, status: int) -> None:
    refused = CliRunner().invoke(app, ["migrate", "--database", url])
    assert refused.exit_code == status
    assert refused.stderr.startswith("matl-coordinator: ")
    assert refused.stderr.count("\n") == 1


def test_without_a_command_the_daemon_still_reads_its_configuration(tmp_path: Path) -> None:
    absent = CliRunner().invoke(app, ["--config", str(tmp_path / "none.toml"), "--print-config"])
    assert absent.exit_code == EXIT_CONFIGURATION
