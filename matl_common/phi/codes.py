"""Identifiers in short names: of files, of folders, and in columns of codes.

Such a name should be random. What speaks against it: a date, a name, a word such as "mrn",
six digits or more that are no counter, and whatever ``values.py`` finds in text.
"""

import re
from collections.abc import Iterator
from typing import Final

from matl_common.phi.findings import Category, Hit
from matl_common.phi.tokens import tokens_of, without_random
from matl_common.phi.values import detect, names_in

MIN_DIGITS: Final = 6
_DIGITS = re.compile(r"\d+")
_BORING = re.compile(r"[A-Za-z]?[0-9]{1,5}|[0-9a-f]{12,64}")


def detect_in_code(name: str, *, lengths: frozenset[int] = frozenset()) -> Iterator[Hit]:
    """Every identifier in a short name.

    Args:
        name: without the suffix of a file.
        lengths: of hexadecimal codes that are random, as their company shows.
    """
    rest = without_random(name, lengths)
    if not rest.strip() or (_BORING.fullmatch(rest) and not _long_runs(rest)):
        return
    found: dict[Category, Hit] = {}
    # An underscore separates words here, and belongs to none.
    for text in (rest.replace("_", "-"), rest.replace("_", " "), rest):
        for hit in detect(text):
            found.setdefault(hit.category, hit)
    for hit in names_in(tokens_of(rest)):
        found.setdefault(hit.category, hit)
    yield from found.values()
    known = "".join(hit.value for hit in found.values() if hit.category is Category.DATE)
    for run in _long_runs(rest):
        if run not in known:
            yield Hit(Category.UNIQUE, run)


def _long_runs(text: str) -> list[str]:
    """Runs of digits that are no counter: zeros in front do not count."""
    return [run for run in _DIGITS.findall(text) if len(run.lstrip("0")) >= MIN_DIGITS]
