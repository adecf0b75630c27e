"""Tables: what their columns are called, what stands in them, and how nearly unique it is.

Takes decoded rows, whoever read them. Memory is bounded by ``MAX_DISTINCT`` values a column.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Final

from matl_common.phi.codes import detect_in_code
from matl_common.phi.columns import category_of_column
from matl_common.phi.findings import MAX_FINDINGS_PER_FILE, Category, Found, Hit
from matl_common.phi.schema import ChoiceColumn, CodeColumn, NumberColumn, Schema
from matl_common.phi.showing import shown_column
from matl_common.phi.tokens import random_lengths
from matl_common.phi.values import detect

MAX_COLUMNS: Final = 10_000
MAX_DISTINCT: Final = 100_000
"""Beyond so many different values, uniqueness is judged by the rows up to there."""
SAMPLE_ROWS: Final = 1_000
NEAR_UNIQUE: Final = 0.4
"""Two images of every patient make half of a patient's column repeats."""
MIN_DISTINCT: Final = 5
_MAX_CELL = 10_000
_INTEGER = re.compile(r"\d{2,3}")
_AGE_NAME = re.compile(r"(?:^|[\W_])age(?:$|[\W_])|^age|age$", re.IGNORECASE)


@dataclass(slots=True)
class _Distinct:
    """How many of a column's values differ, by short digests."""

    seen: set[bytes] = field(default_factory=set)
    values: int = 0

    def add(self, value: str) -> None:
        if len(self.seen) < MAX_DISTINCT:
            self.values += 1
            self.seen.add(blake2b(value.encode("utf-8", "replace"), digest_size=8).digest())

    @property
    def is_near_unique(self) -> bool:
        return len(self.seen) >= MIN_DISTINCT and len(self.seen) >= NEAR_UNIQUE * self.values


@dataclass(frozen=True, slots=True)
class _Column:
    number: int
    name: str
    shown: str
    declared: CodeColumn | NumberColumn | ChoiceColumn | None
    lengths: frozenset[int]
    is_age: bool

    def hits(self, value: str) -> Iterator[Hit]:
        match self.declared:
            case None:
                yield from detect(value)
                if self.is_age and _INTEGER.fullmatch(value) and int(value) > 89:
                    yield Hit(Category.AGE, value)
            case CodeColumn():
                yield from detect_in_code(value, lengths=self.lengths)
            case declared:
                if not declared.allows(value):
                    yield Hit(Category.UNDECLARED, value)


def scan_table(rows: Iterable[Sequence[str]], schema: Schema) -> Iterator[Found]:
    """What identifies in a table whose first row names its columns."""
    reader = iter(rows)
    header = next(reader, [])[:MAX_COLUMNS]
    first = [row for row, _ in zip(reader, range(SAMPLE_ROWS), strict=False)]
    columns = [_column(number, name, first, schema) for number, name in enumerate(header)]
    for column in columns:
        yield from _in_header(column)
    distinct = [_Distinct() for _ in columns]
    told = [0] * len(columns)
    for number, row in enumerate(chain(first, reader), start=2):
        for column, cell in zip(columns, row, strict=False):
            value = cell.strip()
            if not value:
                continue
            if column.declared is None:
                distinct[column.number].add(value)
            # What is left out of the report need not be looked for.
            if told[column.number] < MAX_FINDINGS_PER_FILE:
                for hit in column.hits(value[:_MAX_CELL]):
                    told[column.number] += 1
                    yield Found(f"row {number}, {column.shown}", hit.category, hit.value)
        for place, cell in enumerate(row[len(columns) :], start=len(columns) + 1):
            if cell.strip():
                yield Found(f"row {number}, field {place}", Category.UNDECLARED, cell)
                break
    for column, counted in zip(columns, distinct, strict=True):
        if counted.is_near_unique:
            yield Found(column.shown, Category.UNLISTED, column.name)


def _column(number: int, name: str, first: Sequence[Sequence[str]], schema: Schema) -> _Column:
    plain = name.strip().lower()
    declared = schema.columns.get(plain)
    lengths: frozenset[int] = frozenset()
    if isinstance(declared, CodeColumn):
        lengths = random_lengths(row[number].strip() for row in first if number < len(row))
    return _Column(
        number,
        name,
        shown_column(name, number + 1, known=schema.columns),
        declared,
        lengths,
        _AGE_NAME.search(name) is not None,
    )


def _in_header(column: _Column) -> Iterator[Found]:
    if column.declared is not None:
        return
    category = category_of_column(column.name)
    if category is not None:
        yield Found(column.shown, category, column.name)
        return
    # Without a header, the first row is a patient's.
    for hit in detect_in_code(column.name):
        yield Found(f"{column.shown}, its name", hit.category, hit.value)
