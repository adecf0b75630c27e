"""Every control and every test that the threat model names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.split("## Spoofing")[1].splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| threat"))
]


def functions_of(path: Path) -> set[str]:
    """The names of a test file's functions."""
    tree = ast.parse(path.read_text("utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_every_threat_names_a_control_and_a_test_that_exist() -> None:
    assert len(ROWS) > 30
    for threat, control, tests in ROWS:
        modules = [each for each in re.findall(r"`([^`]+)`", control) if "/" in each]
        assert modules, threat
        for module in modules:
            assert (ROOT / module).exists(), f"{threat}: there is no {module}"
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert named, f"{threat}: no test"
        for file, function in named:
            assert function in functions_of(ROOT / "tests" / file), f"{threat}: {file}::{function}"


def test_all_of_stride_is_there_and_what_remains() -> None:
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE) == [
        "Spoofing",
        "Tampering",
        "Repudiation",
        "Information disclosure",
        "Denial of service",
        "Elevation of privilege",
        "What remains",
    ]
