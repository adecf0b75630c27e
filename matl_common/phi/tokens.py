"""How names of files and codes are cut into parts, and which codes are random.

A random code (a UUID, 16 hexadecimal digits) holds runs of digits by chance, which are no
record numbers. Where a code has no letters, its company tells whether it is random.
"""

import re
from collections.abc import Iterable
from typing import Final

MIN_RANDOM_CHARACTERS: Final = 12
_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_HEXADECIMAL = re.compile(r"[0-9a-f]+|[0-9A-F]+")
_LETTERS = re.compile(r"[A-Fa-f]+")
_UUID = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f])", re.I)
_SEPARATORS = re.compile(r"[\W_]+")
_CASES = re.compile(r"(?<=[a-z])(?=[A-Z])")


def tokens_of(name: str) -> list[str]:
    """The random codes, runs of letters and runs of digits of a name."""
    tokens: list[str] = []
    for code in codes_of(name):
        if is_random(code):
            tokens.append(code)
        else:
            tokens += [part for run in _TOKEN.findall(code) for part in _CASES.split(run)]
    return tokens


def codes_of(name: str) -> list[str]:
    """The parts of a name between its separators, UUIDs left out."""
    return [code for code in _SEPARATORS.split(_UUID.sub(" ", name)) if code]


def is_random(code: str) -> bool:
    """Whether letters and digits alternate in a hexadecimal code as they do by chance."""
    return (
        len(code) >= MIN_RANDOM_CHARACTERS
        and _HEXADECIMAL.fullmatch(code) is not None
        and len(_LETTERS.findall(code)) >= 2
    )


def random_lengths(codes: Iterable[str]) -> frozenset[int]:
    """The lengths at which four in five of the codes, and ten at least, are random.

    Then all of that length are: among random codes a few have hardly a letter.
    """
    counts: dict[int, tuple[int, int]] = {}
    for code in codes:
        if len(code) >= MIN_RANDOM_CHARACTERS and _HEXADECIMAL.fullmatch(code):
            every, random = counts.get(len(code), (0, 0))
            counts[len(code)] = every + 1, random + is_random(code)
    return frozenset(
        length for length, (every, random) in counts.items() if random >= max(10, 0.8 * every)
    )


def without_random(name: str, lengths: frozenset[int] = frozenset()) -> str:
    """A name in which UUIDs, random codes and hexadecimal codes of ``lengths`` are blanked."""

    def blanked(found: re.Match[str]) -> str:
        code = found[0]
        is_one = len(code) in lengths and _HEXADECIMAL.fullmatch(code) is not None
        return " " if is_one or is_random(code) else code

    return re.sub(r"[^\W_]+", blanked, _UUID.sub(" ", name))
