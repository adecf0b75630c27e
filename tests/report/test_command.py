"""What ``matl report`` refuses before it asks anybody."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

from pathlib import Path

import pytest
from typer.testing import CliRunner

from matl.cli import app


@pytest.mark.parametrize("name", ["study.pdf", "study.PDF"])
def test_the_html_is_not_written_where_the_pdf_goes(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    found = CliRunner().invoke(app, ["report", "coordinator:8470", "--out", str(out), "--pdf"])
    assert found.exit_code == 2
    assert "--out names the HTML file" in found.output
    assert not out.exists()


def test_a_folder_that_is_not_there_is_not_taken_for_an_address(tmp_path: Path) -> None:
    missing = str(tmp_path / "exported-lgo")
    found = CliRunner().invoke(app, ["report", missing, "--out", str(tmp_path / "r.html")])
    assert found.exit_code == 2
    assert "no such folder" in found.output
