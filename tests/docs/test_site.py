"""The site has every page, its links lead somewhere, and what is generated is whole.

``make docs`` builds it; this is what would break it, found without Sphinx.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from matl.connection import OperatorFile
from matl_common.wire import audit_pb2, federation_pb2, ingest_pb2, operations_pb2
from matl_coordinator.config import Config as CoordinatorConfig
from matl_coordinator.ingest.config import FrontEndConfig
from matl_participant.config import Config as ParticipantConfig
from scripts.docs.pages import DOCS, GENERATED, MARKER, ROOT, filled
from scripts.docs.wire import parse_contract
from tests.docs.shell import APPS
from tests.docs.test_configuration import keys_of

PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(`{3,}|:{3,})(?!\{container\}).*?^\1\s*?$", re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """A page without what is in fences, or in four columns of indentation."""
    text = FENCE.sub("", path.read_text("utf-8"))
    return re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """A page's headings as GitHub and MyST link to them."""
    headings = re.findall(r"^#{1,4} (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", each).lower() for each in headings)
    return {re.sub(r"[^\w\- ]", "", each.strip()).replace(" ", "-") for each in plain}


def broken_links(path: Path) -> Iterator[str]:
    for target in LINK.findall(prose(path)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        if not found.exists():
            yield f"{target}: there is no such file"
        elif anchor and found.suffix == ".md" and anchor not in anchors(found):
            yield f"{target}: there is no such heading"


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(path: Path) -> None:
    assert not list(broken_links(path))


def listed() -> list[str]:
    """What the tables of contents name, patterns written out."""
    text = (DOCS / "index.md").read_text("utf-8")
    entries: list[str] = []
    for block in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
        for line in filled(block).splitlines():
            if not line or line.startswith(":"):
                continue
            found = sorted(DOCS.glob(f"{line}.md"))
            assert found, f"index.md lists {line}, which is not there"
            entries += [str(each.relative_to(DOCS)) for each in found]
    return entries


def test_every_page_is_in_the_contents_once() -> None:
    assert sorted(listed()) == sorted(
        str(path.relative_to(DOCS)) for path in PAGES if path.name != "index.md"
    )


def test_everything_generated_is_in_a_page_and_every_page_asks_for_what_exists() -> None:
    asked = [name for path in PAGES for name in MARKER.findall(path.read_text("utf-8"))]
    assert sorted(asked) == sorted(GENERATED)


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{path} {name}")


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("commands", ("matl",)),
        ("daemons", ("matl-coordinator", "matl-participant")),
        ("scripts", ("deploy_medical_fl.py", "verify_hipaa.py", "monitor_fl_node.py")),
    ],
)
def test_the_reference_has_every_command_and_every_option_of_it(
    page: str, names: tuple[str, ...]
) -> None:
    sections = re.split(r"^## ", GENERATED[page](), flags=re.MULTILINE)
    written = {each.split("\n", 1)[0]: each for each in sections if each}
    program: dict[str, Any] = {}
    for name in names:
        program |= commands(typer.main.get_command(APPS[name]), name)
    assert written.keys() == program.keys()
    for path, command in program.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert f"`{parameter.opts[0]}`" in written[path], path


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("coordinator", CoordinatorConfig),
        ("participant", ParticipantConfig),
        ("operator", OperatorFile),
        ("front-end", FrontEndConfig),
    ],
)
def test_the_reference_has_every_key_of_a_configuration(name: str, model: Any) -> None:
    section, found = "", set()
    for line in GENERATED[f"configuration-{name}"]().splitlines():
        if heading := re.match(r"## \[+([\w.]+)\]+$", line):
            section = f"{heading[1]}."
        elif key := re.match(r"\| `(\w+)` \|", line):
            found.add(section + key[1])
    repeated = {"rounds.pre_aggregation.name", "rounds.pre_aggregation.parameters"}
    assert found - repeated == keys_of(model) - {"rounds.pre_aggregation"}


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("federation", federation_pb2),
        ("operations", operations_pb2),
        ("audit", audit_pb2),
        ("ingest", ingest_pb2),
    ],
)
def test_the_reference_has_every_method_message_and_field_of_the_contract(
    name: str, compiled: Any
) -> None:
    text = (ROOT / "proto" / "matl" / "v1" / f"{name}.proto").read_text("utf-8")
    _, declared = parse_contract(text)
    rows = {each.name: [row[0] for row in each.rows] for each in declared}

    def messages(found: Any, outer: str = "") -> Iterator[tuple[str, list[str]]]:
        path = f"{outer}{found.name}"
        yield path, [each.name for each in found.fields]
        for each in found.nested_types:
            # A map's entries are the compiler's.
            if not each.GetOptions().map_entry:
                yield from messages(each, f"{path}.")
        for each in found.enum_types:
            yield f"{path}.{each.name}", [value.name for value in each.values]

    described = compiled.DESCRIPTOR
    wanted: dict[str, list[str]] = {}
    for each in described.message_types_by_name.values():
        wanted |= messages(each)
    for each in described.enum_types_by_name.values():
        wanted[each.name] = [value.name for value in each.values]
    for each in described.services_by_name.values():
        wanted[each.name] = [method.name for method in each.methods]
    assert {key: sorted(value) for key, value in rows.items()} == {
        key: sorted(value) for key, value in wanted.items()
    }
