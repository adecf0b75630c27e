"""How files and columns are named in a report, where their names may be what was found.

A name is shown if every part of it is a word that names nobody, a few digits, or a random
code. Any other is told by where it stands: ``#17~3f2a.jpg`` is the 17th entry of its folder,
sorted by bytes (``ls -A | LC_ALL=C sort | sed -n 17p``), and ``3f2a`` begins its mark.
"""

import re
from collections.abc import Iterable

from matl_common.phi.columns import is_only_known
from matl_common.phi.findings import mark_of
from matl_common.phi.tokens import is_random, tokens_of
from matl_common.phi.words import HARMLESS

_SHOWN_DIGITS = 5
_MARK_CHARACTERS = 8
_PLAIN = re.compile(r"[A-Za-z0-9 _.()+-]{1,200}")
_SUFFIX = re.compile(r"\.(?:csv|tsv|txt|json|jpe?g|png|tiff?|dcm|dicom|xml|md|log|toml)", re.I)


def is_harmless(name: str) -> bool:
    """Whether a name may be shown, whoever reads the report."""
    return _PLAIN.fullmatch(name) is not None and all(map(_is_harmless_token, tokens_of(name)))


def _is_harmless_token(token: str) -> bool:
    if token.isdigit():
        return len(token.lstrip("0")) <= _SHOWN_DIGITS
    return token.lower() in HARMLESS or is_random(token)


def shown_name(name: str, number: int, *, key: bytes) -> str:
    """The name of the ``number``th entry of a folder, or where it stands."""
    if is_harmless(name):
        return name
    dot = name.rfind(".")
    suffix = name[dot:] if dot > 0 and _SUFFIX.fullmatch(name[dot:]) else ""
    return f"#{number}~{mark_of(key, name)[:_MARK_CHARACTERS]}{suffix.lower()}"


def shown_column(name: str, number: int, *, known: Iterable[str] = ()) -> str:
    """A column by its number, and by its name where that may be shown.

    In a file without a header the "name" is a patient's.
    """
    plain = name.strip().lower()
    if plain in known or is_harmless(plain) or is_only_known(plain):
        return f"column {number} ({plain})"
    return f"column {number}"
