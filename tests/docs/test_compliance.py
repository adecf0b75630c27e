"""``docs/compliance.md``: its table is the catalogue's, and its registry can be read."""

import re
from datetime import date
from pathlib import Path

from matl.compliance.catalogue import table_lines
from matl.compliance.registry import load_registry
from tests.compliance.words import forbidden_in

PAGE = Path(__file__).parents[2] / "docs" / "compliance.md"


def test_the_table_is_the_catalogues() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = [line for line in text.splitlines() if line.startswith(("| control ", "| `"))]
    expected = [line for line in table_lines() if not line.startswith("|---")]

    assert shown == expected


def test_the_registry_can_be_read_with_every_line_of_it(tmp_path: Path) -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "safeguards.toml"
    file.write_text(re.sub(r"(?m)^# (\w+ = )", r"\1", toml))
    found = load_registry(file, beside=tmp_path)
    assert found.agreements[0].signed == date(2026, 1, 10)
    assert found.agreements[0].document == tmp_path / "agreements" / "hospital_b.pdf"
    assert found.probes.ocr


def test_it_says_nothing_of_an_organisations_standing() -> None:
    assert not forbidden_in(PAGE.read_bytes())
