"""The reference of the contract on the wire, as Markdown, from the comments in ``proto/``.

Reads the subset of the language that our files use: a comment before a declaration, or behind a
field, is about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\)\s*returns\s*\((stream )?(\w+)\)", re.MULTILINE)
_FIELD = re.compile(
    r"((?:optional |repeated )?[\w.]+(?:<[^>]+>)?) (\w+) = (\d+).*?;(?:\s*//\s*(.*))?"
)
_VALUE = re.compile(r"(\w+) = (\d+).*?;(?:\s*//\s*(.*))?")


@dataclass(slots=True)
class Declaration:
    """A service, message or enumeration."""

    kind: str
    name: str
    comment: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """Of a service: method, signature, comment. Else: name, type or number, comment."""


def parse_contract(text: str) -> tuple[str, list[Declaration]]:
    """The comment at the top of a file, and what it declares, nested ones by their full names.

    Raises:
        ValueError: a line that is none of what our files consist of.
    """
    declared: list[Declaration] = []
    open_ones: list[Declaration | None] = []
    comment: list[str] = []
    head, is_head = "", True
    for line in _joined(text):
        if line.startswith("//"):
            comment.append(line[2:].removeprefix(" "))
            continue
        said, comment = "\n".join(comment), []
        if is_head:
            head, is_head, said = said, False, ""
        if not line or line.startswith(("syntax", "package", "import", "option ", "reserved")):
            continue
        if opened := re.match(r"(service|message|enum) (\w+) \{(\})?", line):
            outer = ".".join(each.name.split(".")[-1] for each in open_ones if each is not None)
            name = f"{outer}.{opened[2]}" if outer else opened[2]
            made = Declaration(opened[1], name, said)
            declared.append(made)
            if opened[3] is None:
                open_ones.append(made)
        elif line.startswith("oneof"):
            open_ones.append(None)
        elif line == "}":
            open_ones.pop()
        else:
            inside = next(each for each in reversed(open_ones) if each is not None)
            inside.rows.append(_row(line, said, inside.kind, in_oneof=open_ones[-1] is None))
    return head, declared


def _joined(text: str) -> Iterator[str]:
    """Lines without indentation: a method on several as one, a message on one as several."""
    kept = ""
    for raw in text.splitlines():
        line = f"{kept} {raw.strip()}".strip()
        kept = ""
        if line.startswith("rpc ") and not line.endswith((";", "}")):
            kept = line
        elif whole := re.match(r"((?:message|enum) \w+ \{) (.+;) *\}$", line):
            yield from (whole[1], *re.findall(r"[^;\s][^;]*;", whole[2]), "}")
        else:
            yield line


def _row(line: str, before: str, kind: str, *, in_oneof: bool) -> tuple[str, str, str]:
    if kind == "service" and (method := _RPC.match(line)):
        name, stream_in, takes, stream_out, gives = method.groups()
        return name, f"{stream_in or ''}{takes} → {stream_out or ''}{gives}", before
    if kind == "enum" and (value := _VALUE.match(line)):
        return value[1], value[2], value[3] or before
    if kind == "message" and (member := _FIELD.match(line)):
        one_of = "one of: " if in_oneof else ""
        return member[2], f"{one_of}{member[1]}", member[4] or before
    raise ValueError(f"not understood in a contract: {line}")


def wire_reference(text: str) -> str:
    """A file of ``proto/`` as Markdown: services first, then what they carry."""
    head, declared = parse_contract(text)
    return "\n".join([f"{head}\n", *(part for each in declared for part in _parts(each))])


def _parts(declared: Declaration) -> Iterator[str]:
    yield f"## {declared.name}\n"
    if declared.comment:
        yield f"{declared.comment}\n"
    if declared.kind == "service":
        for name, signature, comment in declared.rows:
            yield f"### {declared.name}.{name}\n\n`{signature}`\n\n{comment}\n"
        return
    if declared.rows:
        yield f"| {'value' if declared.kind == 'enum' else 'field'} | | |\n|---|---|---|"
        for name, kind, comment in declared.rows:
            said = " ".join(comment.split()).replace("|", "\\|")
            yield f"| `{name}` | `{kind}` | {said} |"
        yield ""
    else:
        yield "Empty.\n"
