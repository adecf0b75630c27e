"""JPEG, segment by segment (ITU-T T.81, annex B): what decoding needs may stay, nothing else.

A cleaned file is the same file without segments; no pixel is decoded or encoded.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from matl_common.errors import InvalidInputError
from matl_common.phi.exif import found_in_text, scan_exif
from matl_common.phi.findings import Category, Found
from matl_common.phi.icc import is_profile, scan_profile
from matl_common.phi.iptc import scan_resources
from matl_common.phi.xmp import scan_xmp

MAX_SEGMENTS: Final = 4_096
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_APP0, _APP1, _APP2, _APP13, _APP14, _COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
_STRUCTURE = frozenset({*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD}) - {0xC8}
_AFTER_SCAN = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]", re.DOTALL)
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_MORE_XMP, _PHOTOSHOP = b"http://ns.adobe.com/xmp/extension/\0", b"Photoshop 3.0\0"
_ICC, _MULTI_PICTURE = b"ICC_PROFILE\0", b"MPF\0"
_JFIF, _ADOBE = b"JFIF\0", b"Adobe"


class JpegDamagedError(InvalidInputError):
    """The bytes are not the segments of a JPEG file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A marker with its parameters, and after a start of scan also the data."""

    marker: int
    start: int
    payload: bytes
    end: int


def segments_of(data: bytes) -> Iterator[Segment]:
    """The segments between start and end of image; the end's own is the last.

    Raises:
        JpegDamagedError: they cannot be followed to an end.
    """
    if data[:2] != b"\xff\xd8":
        raise JpegDamagedError("it does not begin as JPEG does")
    at = 2
    for _ in range(MAX_SEGMENTS):
        start = at
        if data[at : at + 1] != b"\xff":
            raise JpegDamagedError("a segment is missing")
        while data[at : at + 1] == b"\xff":
            at += 1
        if at >= len(data):
            break
        marker = data[at]
        at += 1
        if marker == _END:
            yield Segment(marker, start, b"", at)
            return
        length = int.from_bytes(data[at : at + 2])
        if length < 2 or at + length > len(data) or marker in (0, 1, _START, *range(0xD0, 0xD8)):
            raise JpegDamagedError("a segment is longer than the file")
        payload = data[at + 2 : at + length]
        at += length
        if marker == _SCAN:
            found = _AFTER_SCAN.search(data, at)
            if found is None:
                raise JpegDamagedError("it has no end")
            at = found.start()
        yield Segment(marker, start, payload, at)
    raise JpegDamagedError("it has no end")


def is_needed(segment: Segment) -> bool:
    """Whether decoding may need a segment, and it can hold nothing else."""
    payload = segment.payload
    match segment.marker:
        case 0xE0:
            # Nothing beyond 14 bytes: a thumbnail of no pixels.
            return payload.startswith(_JFIF) and len(payload) == 14 and payload[12:] == b"\0\0"
        case 0xE2:
            return payload.startswith(_ICC)
        case 0xEE:
            return payload.startswith(_ADOBE) and len(payload) == 12
    return segment.marker in _STRUCTURE or segment.marker == _END


def scan_jpeg(data: bytes) -> Iterator[Found]:
    """What identifies in a JPEG file beside its pixels.

    Raises:
        JpegDamagedError: it cannot be followed to its end.
    """
    end = len(data)
    profile = b""
    for segment in segments_of(data):
        end = segment.end
        if segment.marker == _APP2 and segment.payload.startswith(_ICC):
            profile += segment.payload[len(_ICC) + 2 :]
        elif not is_needed(segment):
            yield from _in_segment(segment)
    if profile:
        yield from scan_profile(profile, "ICC profile")
    if data[end:].strip(b"\0"):
        yield Found(f"{len(data) - end} bytes after the end", Category.TRAILING, data[end:])


def _in_segment(segment: Segment) -> Iterator[Found]:
    payload = segment.payload
    match segment.marker, payload:
        case 0xE1, _ if payload.startswith(_EXIF):
            yield Found("segment APP1 (EXIF)", Category.METADATA, payload)
            yield from scan_exif(payload[len(_EXIF) :], "segment APP1 (EXIF)")
        case 0xE1, _ if payload.startswith((_XMP, _MORE_XMP)):
            yield Found("segment APP1 (XMP)", Category.METADATA, payload)
            yield from scan_xmp(payload.split(b"\0", 1)[1], "segment APP1 (XMP)")
        case 0xED, _ if payload.startswith(_PHOTOSHOP):
            yield Found("segment APP13 (Photoshop)", Category.METADATA, payload)
            yield from scan_resources(payload[len(_PHOTOSHOP) :], "segment APP13 (Photoshop)")
        case 0xFE, _:
            yield Found("comment", Category.FREE_TEXT, payload)
            yield from found_in_text("comment", payload.decode("utf-8", "replace"))
        case 0xE0, _:
            yield Found("segment APP0, thumbnail", Category.THUMBNAIL, payload)
        case 0xE2, _ if payload.startswith(_MULTI_PICTURE):
            yield Found("segment APP2 (further pictures)", Category.THUMBNAIL, payload)
        case marker, _:
            name = f"APP{marker - _APP0}" if _APP0 <= marker < _APP0 + 16 else f"{marker:#04x}"
            yield Found(f"segment {name}", Category.METADATA, payload)
            yield from found_in_text(f"segment {name}", payload.decode("utf-8", "replace"))


def clean_jpeg(data: bytes) -> bytes:
    """The file without the segments that decoding does not need, nor what follows its end.

    A profile that is none, or says more than a profile does, goes as well.

    Raises:
        JpegDamagedError: it cannot be followed to its end.
    """
    segments = list(segments_of(data))
    profile = b"".join(
        s.payload[len(_ICC) + 2 :]
        for s in segments
        if s.marker == _APP2 and s.payload.startswith(_ICC)
    )
    keeps_profile = is_profile(profile) and not any(scan_profile(profile, ""))
    kept = [b"\xff\xd8"]
    for segment in segments:
        if is_needed(segment) and (segment.marker != _APP2 or keeps_profile):
            kept.append(data[segment.start : segment.end])
    return b"".join(kept)
