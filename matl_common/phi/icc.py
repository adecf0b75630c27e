"""Colour profiles (ICC.1:2022): kept, since they change what is seen, and read as text."""

import re
from collections.abc import Iterator
from typing import Final

from matl_common.phi.findings import Category, Found
from matl_common.phi.values import detect

_HEADER_BYTES: Final = 128
_MAX_BYTES: Final = 4 << 20
_PRINTABLE = re.compile(rb"[\x20-\x7e]{6,2048}")
_WIDE = re.compile(rb"(?:\x00[\x20-\x7e]){6,1024}")
# Of a maker, not of a patient: a profile names its company, its date and its page.
_MAKERS: Final = frozenset({Category.URL, Category.NAME, Category.DATE, Category.EMAIL})


def is_profile(data: bytes) -> bool:
    """Whether bytes are a profile of the length that they say."""
    return (
        _HEADER_BYTES < len(data) <= _MAX_BYTES
        and data[36:40] == b"acsp"
        and int.from_bytes(data[:4]) == len(data)
    )


def scan_profile(data: bytes, where: str) -> Iterator[Found]:
    """What a profile holds that none should."""
    if not is_profile(data):
        yield Found(f"{where}, damaged", Category.METADATA, data)
        return
    texts = [found[0].decode("ascii") for found in _PRINTABLE.finditer(data)]
    texts += [found[0][1::2].decode("ascii") for found in _WIDE.finditer(data)]
    for text in texts:
        for hit in detect(text):
            if hit.category not in _MAKERS:
                yield Found(where, hit.category, hit.value)
