"""Which code a result came of, so that it is not taken for another's."""

import hashlib
import io
import tokenize
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
_LAYOUT: Final = frozenset({tokenize.NL, tokenize.INDENT, tokenize.DEDENT})


def sources_hash(entries: Iterable[str], *, without: Collection[str] = ()) -> "hashlib._Hash":
    """SHA-256 of what Python files carry out, open for more that a result hangs on.

    Comments, docstrings and blank lines do not enter: whoever mends a sentence need not
    measure again.

    Args:
        entries: files, and folders with all below them, from the repository's root.
        without: names of files that change no result.
    """
    digest = hashlib.sha256()
    for entry in entries:
        place = ROOT / entry
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            if path.name not in without:
                digest.update(_what_runs(path.read_bytes()))
    return digest


def _what_runs(content: bytes) -> bytes:
    try:
        return carried_out(content.decode()).encode()
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        # Half a file, say: another digest, and whoever imports it says why.
        return content


def carried_out(source: str) -> str:
    """A Python file without its comments, its docstrings and its blank lines.

    What is left is text and not a syntax tree, which another version of Python would write
    otherwise.
    """
    lines = list(io.StringIO(source))
    for first, column, last in sorted(_told(source), reverse=True):
        line = lines[first - 1][:column].rstrip()
        lines[first - 1 : last] = [f"{line}\n"] if line else []
    return "".join(lines)


def _told(source: str) -> Iterator[tuple[int, int, int]]:
    """First line and column, and last line, of comments, of statements of a string alone, and of
    blank lines. Nothing else stands behind them on that line."""
    lines = source.split("\n")
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.NL and not token.line.strip()):
            yield *token.start, token.end[0]
        elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if statement and all(map(_is_plain, statement)):
                first, column = statement[0].start
                # Else the line before would go on with what follows.
                if not lines[first - 2].endswith("\\"):
                    yield first, column, statement[-1].end[0]
            statement = []
        elif token.type not in _LAYOUT:
            statement.append(token)


def _is_plain(token: tokenize.TokenInfo) -> bool:
    """Whether this is a string that computes nothing: an f-string may call."""
    text = token.string.lstrip("rRuUbB")
    return token.type == tokenize.STRING and text[:1] in {"'", '"'}
