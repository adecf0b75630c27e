"""The reference of a configuration file, as Markdown, from the model that reads it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from matl_common.configuration import Section

_BOUNDS = (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "to"))
_PLAIN = {str: "string", int: "integer", float: "number", bool: "true or false", Path: "path"}


def configuration_reference(model: type[Section], *, example: str) -> str:
    """Every key of ``model``, section by section.

    Args:
        model: the whole file.
        example: the text of a TOML example, whose comments describe what the model does not.
    """
    return "\n".join(_parts(model, comments_in(example)))


def comments_in(example: str) -> dict[str, str]:
    """What the lines of a TOML example say behind their values, by section and key."""
    found, section = {}, ""
    for line in example.splitlines():
        bare = line.removeprefix("# ")
        if heading := re.match(r"\[+([\w.]+)\]+$", bare):
            section = f"{heading[1]}."
        elif said := re.match(r"(\w+) = .*?\s# (.+)$", bare):
            found[section + said[1]] = said[2]
    return found


def _parts(model: type[Section], comments: Mapping[str, str], section: str = "") -> Iterator[str]:
    """The keys of a table, then its own tables."""
    documented = _docstrings(model)
    inner: list[tuple[str, type[Section], bool]] = []
    rows = []
    for name, field in model.model_fields.items():
        kind, is_optional = _without_none(field.annotation)
        repeated = next((each for each in get_args(kind) if _is_section(each)), None)
        if _is_section(kind):
            inner.append((f"[{section}{name}]", kind, is_optional))
            continue
        if repeated is not None:
            inner.append((f"[[{section}{name}]]", repeated, True))
            continue
        said = documented.get(name) or _sentence(comments.get(section + name, ""))
        default = (
            "required"
            if field.is_required()
            else _shown(field.get_default(call_default_factory=True, validated_data={}))
        )
        rows.append(f"| `{name}` | {_type(kind, field.metadata)} | {default} | {_cell(said)} |")
    if rows:
        yield "| key | value | default | |\n|---|---|---|---|"
        yield from rows
        yield ""
    for title, kind, is_optional in inner:
        yield f"## {title}\n"
        doc = inspect.cleandoc(kind.__doc__ or "")
        yield f"{_code(doc)}{' May be left out.' if is_optional else ''}\n"
        yield from _parts(kind, comments, f"{title.strip('[]')}.")


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _without_none(kind: Any) -> tuple[Any, bool]:
    if get_origin(kind) in (Union, UnionType):
        rest = tuple(each for each in get_args(kind) if each is not NoneType)
        return (rest[0] if len(rest) == 1 else kind), len(rest) < len(get_args(kind))
    return kind, False


def _type(kind: Any, metadata: list[Any]) -> str:
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        return _type(kind, [*metadata, *more])
    if get_origin(kind) is Literal:
        return ", ".join(f"`{each}`" for each in get_args(kind))
    if get_origin(kind) is dict:
        return "table"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{each.value}`" for each in kind)
    bounds = [
        f"{word} {getattr(said, name):.12g}"
        for each in metadata
        for said in (each, *getattr(each, "metadata", ()))
        for name, word in _BOUNDS
        if getattr(said, name, None) is not None
    ]
    return " ".join([_PLAIN.get(kind, "path or `pkcs11:` URI"), *bounds])


def _shown(value: Any) -> str:
    match value:
        case None | "":
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case Enum():
            return f"`{value.value}`"
        case dict() | tuple():
            return ""
        case _:
            return f"`{value}`"


def _docstrings(model: type[Section]) -> dict[str, str]:
    """What stands below each field in the model's source."""
    (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: _code(" ".join(said.value.value.split()))
        for field, said in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(said, ast.Expr)
        and isinstance(said.value, ast.Constant)
        and isinstance(said.value.value, str)
    }


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _code(text: str) -> str:
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
