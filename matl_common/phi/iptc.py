"""Photoshop's image resources and the IPTC records inside them (IIM 4.2)."""

import struct
from collections.abc import Iterator
from typing import Final

from matl_common.phi.exif import found_in_text, scan_exif
from matl_common.phi.findings import Category, Found
from matl_common.phi.xmp import scan_xmp

_IPTC, _EXIF, _XMP = 0x0404, 0x0422, 0x0424
_THUMBNAILS = (0x0409, 0x040C)
MAX_RECORDS: Final = 4_096
_RECORDS: Final[dict[tuple[int, int], tuple[str, Category]]] = {
    (2, 5): ("title", Category.FREE_TEXT),
    (2, 25): ("keywords", Category.FREE_TEXT),
    (2, 55): ("date created", Category.DATE),
    (2, 60): ("time created", Category.DATE),
    (2, 62): ("date digitized", Category.DATE),
    (2, 80): ("by-line", Category.NAME),
    (2, 90): ("city", Category.GEOGRAPHY),
    (2, 92): ("sub-location", Category.GEOGRAPHY),
    (2, 95): ("state", Category.GEOGRAPHY),
    (2, 105): ("headline", Category.FREE_TEXT),
    (2, 110): ("credit", Category.NAME),
    (2, 118): ("contact", Category.NAME),
    (2, 120): ("caption", Category.FREE_TEXT),
    (2, 122): ("writer", Category.NAME),
}


def scan_resources(data: bytes, where: str) -> Iterator[Found]:
    """What stands in Photoshop's resources, as far as they can be followed."""
    at = 0
    while data[at : at + 4] == b"8BIM" and at + 7 <= len(data):
        (number,) = struct.unpack_from(">H", data, at + 4)
        # A name of its own length in front, and both padded to even lengths.
        name_bytes = (1 + data[at + 6] + 1) & ~1
        size_at = at + 6 + name_bytes
        if size_at + 4 > len(data):
            return
        (size,) = struct.unpack_from(">I", data, size_at)
        content = data[size_at + 4 : size_at + 4 + size]
        yield from _in_resource(number, content, where)
        at = size_at + 4 + size + size % 2


def _in_resource(number: int, content: bytes, where: str) -> Iterator[Found]:
    if number == _IPTC:
        yield from scan_iptc(content, where)
    elif number in _THUMBNAILS:
        yield Found(f"{where}, thumbnail", Category.THUMBNAIL, content)
    elif number == _EXIF:
        yield from scan_exif(content, f"{where}, EXIF")
    elif number == _XMP:
        yield from scan_xmp(content, f"{where}, XMP")


def scan_iptc(data: bytes, where: str) -> Iterator[Found]:
    """What IPTC records say, as far as they can be followed."""
    at = 0
    for _ in range(MAX_RECORDS):
        if data[at : at + 1] != b"\x1c" or at + 5 > len(data):
            return
        record, number, size = struct.unpack_from(">BBH", data, at + 1)
        if size & 0x8000:
            return
        value = data[at + 5 : at + 5 + size]
        name, category = _RECORDS.get((record, number), (f"record {record}:{number}", None))
        place = f"{where}, IPTC {name}"
        if category is not None and value.strip():
            yield Found(place, category, value)
        yield from found_in_text(place, value.decode("utf-8", "replace"))
        at += 5 + size
