"""What is wrong with a document or table, in one line, without what it holds."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_UNKNOWN_KEY = "extra_forbidden"


def problems_in(error: ValidationError, *, whole: str, kind: type[BaseModel] | None = None) -> str:
    """Every problem with the place it is at.

    Args:
        error: what was found.
        whole: names the thing itself.
        kind: what it was to be; with it, an unknown key is answered with those that there are.
    """
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or whole}: {_said(each, kind)}"
        for each in error.errors(include_input=False, include_url=False)
    )


def _said(problem: ErrorDetails, kind: type[BaseModel] | None) -> str:
    if problem["type"] != _UNKNOWN_KEY:
        return problem["msg"].removeprefix("Value error, ")
    *path, key = problem["loc"]
    known = _keys_at(kind, path)
    if not known:
        return "no such key"
    if meant := get_close_matches(str(key), known, n=1):
        return f"no such key; did you mean {meant[0]}?"
    return f"no such key; there are {', '.join(known)}"


def _keys_at(kind: type[BaseModel] | None, path: Sequence[int | str]) -> tuple[str, ...]:
    """What may stand there; nothing where that is not one table."""
    for part in path:
        field = None if kind is None else kind.model_fields.get(str(part))
        kind = None if field is None else next(_tables_in(field.annotation), None)
    return () if kind is None else tuple(kind.model_fields)


def _tables_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that a field may be, as in ``Section | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _tables_in(each)
