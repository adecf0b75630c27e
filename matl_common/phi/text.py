"""Text files: tables, JSON and plain text, decoded and read under limits."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from matl_common.errors import InvalidInputError
from matl_common.phi.columns import category_of_column
from matl_common.phi.findings import Found, Hit
from matl_common.phi.schema import Schema
from matl_common.phi.tables import scan_table
from matl_common.phi.values import MIN_CHARACTERS, detect

TABLE_SUFFIXES: Final = frozenset({".csv", ".tsv", ".tab"})
JSON_SUFFIXES: Final = frozenset({".json", ".geojson", ".jsonl", ".ndjson"})
MAX_JSON_BYTES: Final = 16 << 20
_MAX_LINE = 4_096
_OVERLAP = 128
_DELIMITERS = ",;\t|"
_COMPARED_ROWS = 20
_COLUMN_NAME = re.compile(r"[^\W\d][\w.\-/]*(?: [\w.\-/]+){0,2}")
_NAMED_CONTENT = re.compile(
    r"""<(?:[\w-]{1,64}:)?([A-Za-z_][\w.-]{0,127})(?=(?:\s[^<>]*)?>\s*[^\s<])
    |(?<![\w.-])([A-Za-z_][\w.-]{0,127})=["'][^"'<]""",
    re.VERBOSE,
)
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)


class NotTextError(InvalidInputError):
    """The bytes are not the kind of text that their name says."""


def decode(data: bytes) -> str:
    """Text from bytes: by its byte order mark, as UTF-8, or else as Latin-1.

    Raises:
        NotTextError: it has characters that text does not have.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _without_controls(data[len(mark) :].decode(encoding, "replace"))
    try:
        return _without_controls(data.decode("utf-8"))
    except UnicodeDecodeError:
        return _without_controls(data.decode("cp1252", "replace"))


def _without_controls(text: str) -> str:
    if "\0" in text:
        raise NotTextError("it is not text")
    return text


def table_rows(text: str) -> Iterator[list[str]]:
    """The rows of delimited text; the header tells the delimiter.

    Raises:
        NotTextError: it is no table.
    """
    header = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)
    try:
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    except csv.Error as error:
        raise NotTextError("it cannot be read as a table") from error


def scan_csv(data: bytes, schema: Schema) -> Iterator[Found]:
    """What identifies in delimited text.

    Raises:
        NotTextError: it is no table.
    """
    yield from scan_table(table_rows(decode(data)), schema)


def is_table(data: bytes) -> bool:
    """Whether text is a table whatever its file is called: names of columns, and rows as wide.

    Raises:
        NotTextError: it is not text.
    """
    lines = [line for line in decode(data).splitlines() if line.strip()][:_COMPARED_ROWS]
    try:
        rows = list(table_rows("\n".join(lines)))
    except NotTextError:
        return False
    if len(rows) < 2 or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        return False
    return all(_COLUMN_NAME.fullmatch(cell.strip()) for cell in rows[0])


def scan_xml(data: bytes) -> Iterator[Found]:
    """Elements and attributes with content and an identifier's name.

    Raises:
        NotTextError: it is not text.
    """
    for number, found in enumerate(_NAMED_CONTENT.finditer(decode(data)), start=1):
        name = found[1] or found[2]
        category = category_of_column(name)
        if category is not None:
            yield Found(f"named content {number}", category, name)


def scan_text(data: bytes) -> Iterator[Found]:
    """What identifies in plain text, line by line.

    Raises:
        NotTextError: it is not text.
    """
    for number, line in enumerate(decode(data).splitlines(), start=1):
        if len(line) < MIN_CHARACTERS:
            continue
        for hit in hits_in(line):
            yield Found(f"line {number}", hit.category, hit.value)


def hits_in(text: str) -> Iterator[Hit]:
    """What identifies in text of any length, in pieces that overlap."""
    for start in range(0, len(text) or 1, _MAX_LINE):
        yield from detect(text[start : start + _MAX_LINE + _OVERLAP])


def scan_json(data: bytes) -> Iterator[Found]:
    """What identifies in JSON, one document or one a line: keys as columns, strings as text.

    Raises:
        NotTextError: it is not JSON, or too large.
    """
    if len(data) > MAX_JSON_BYTES:
        raise NotTextError(f"it is JSON of more than {MAX_JSON_BYTES} bytes")
    try:
        document = _document(decode(data))
    except (ValueError, RecursionError) as error:
        raise NotTextError("it is not JSON") from error
    yield from _in_document(document)


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def _in_document(document: Any) -> Iterator[Found]:
    """Values are numbered as they are written, since their keys may be patients."""
    waiting: list[Any] = [document]
    number = 0
    while waiting:
        value = waiting.pop()
        match value:
            case dict():
                for key, inner in value.items():
                    number += 1
                    category = category_of_column(key) if inner not in (None, "", [], {}) else None
                    if category is not None:
                        yield Found(f"key {number}", category, key)
                    else:
                        yield from (
                            Found(f"key {number}", h.category, h.value) for h in hits_in(key)
                        )
                waiting += reversed(list(value.values()))
            case list():
                waiting += reversed(value)
            case str():
                number += 1
                yield from (Found(f"value {number}", h.category, h.value) for h in hits_in(value))
            case int() if not isinstance(value, bool):
                number += 1
                yield from (
                    Found(f"value {number}", h.category, h.value) for h in hits_in(str(value))
                )
