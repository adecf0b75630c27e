"""What ``matl doctor`` says, run as an operator runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from typer.testing import CliRunner

from matl.cli import app

Link = Mapping[str, str]


def diagnosis(config: Path, *arguments: str) -> Mapping[str, Link]:
    """Every link by its name; whether one is broken shows in the exit status as well."""
    command = ["doctor", "--config", str(config), "--json", *arguments]
    result = CliRunner().invoke(app, command)
    links: list[Link] = json.loads(result.output)["links"]
    assert result.exit_code == any(each["status"] != "ok" for each in links), result.output
    return {each["link"]: each for each in links}


def broken(links: Mapping[str, Link]) -> list[str]:
    """The links that do not hold; every one comes with what to do."""
    found = [name for name, each in links.items() if each["status"] == "broken"]
    assert all(links[name]["remedy"] for name in found)
    return found
