"""PNG, chunk by chunk (ISO/IEC 15948): what decoding needs may stay, nothing else.

A cleaned file is the same file without chunks; no pixel is decoded or encoded.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from matl_common.errors import InvalidInputError
from matl_common.phi.exif import found_in_text, scan_exif
from matl_common.phi.findings import Category, Found
from matl_common.phi.icc import scan_profile
from matl_common.phi.xmp import scan_xmp

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS: Final = 1_000_000
MAX_INFLATED: Final = 64 << 10
MAX_EXPANSION: Final = 16
"""Beyond ``MAX_INFLATED`` bytes: text seldom is compressed to less than a sixteenth."""
_FIXED: Final = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"cICP": 4}
_STRUCTURE: Final = frozenset(
    {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sBIT", b"bKGD", b"hIST"}
)
_KEYWORDS: Final = frozenset(
    {"title", "author", "description", "copyright", "creation time", "software", "disclaimer",
     "warning", "source", "comment", "xml:com.adobe.xmp"}
)  # fmt: skip
_BY_KEYWORD: Final = {"author": Category.NAME, "creation time": Category.DATE,
                      "software": Category.METADATA}  # fmt: skip


class PngDamagedError(InvalidInputError):
    """The bytes are not the chunks of a PNG file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk with its content."""

    name: bytes
    start: int
    content: bytes
    end: int


def chunks_of(data: bytes) -> Iterator[Chunk]:
    """The chunks from the first to the image's end.

    Raises:
        PngDamagedError: they cannot be followed to an end.
    """
    if not data.startswith(SIGNATURE):
        raise PngDamagedError("it does not begin as PNG does")
    at = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data) or not name.isalpha():
            raise PngDamagedError("a chunk is longer than the file")
        # Pixels are not copied.
        content = b"" if name == b"IDAT" else data[at + 8 : end - 4]
        yield Chunk(name, at, content, end)
        if name == b"IEND":
            return
        at = end
    raise PngDamagedError("it has no end")


def is_needed(chunk: Chunk) -> bool:
    """Whether decoding may need a chunk, and it can hold nothing else."""
    if chunk.name in _FIXED:
        return len(chunk.content) == _FIXED[chunk.name]
    if chunk.name == b"iCCP":
        return not any(_in_profile(chunk.content))
    if chunk.name == b"IEND":
        return not chunk.content
    return chunk.name in _STRUCTURE and len(chunk.content) <= 1024


def scan_png(data: bytes) -> Iterator[Found]:
    """What identifies in a PNG file beside its pixels.

    Raises:
        PngDamagedError: it cannot be followed to its end.
    """
    end = len(data)
    for chunk in chunks_of(data):
        end = chunk.end
        if not is_needed(chunk):
            yield from _in_chunk(chunk)
    if data[end:].strip(b"\0"):
        yield Found(f"{len(data) - end} bytes after the end", Category.TRAILING, data[end:])


def _in_chunk(chunk: Chunk) -> Iterator[Found]:
    content = chunk.content
    match chunk.name:
        case b"tEXt" | b"zTXt" | b"iTXt":
            yield from _in_text(chunk.name, content)
        case b"eXIf":
            yield Found("chunk eXIf", Category.METADATA, content)
            yield from scan_exif(content, "chunk eXIf")
        case b"tIME":
            yield Found("chunk tIME", Category.DATE, content)
        case b"iCCP":
            yield from _in_profile(content)
        case b"fdAT" | b"fcTL" | b"acTL":
            yield Found("further frames", Category.THUMBNAIL, content)
        case name:
            # Four letters that anybody may have chosen: told only if a reader may need them.
            known = name.decode() if name in _STRUCTURE or name in _FIXED else "of an unknown kind"
            yield Found(f"chunk {known}", Category.METADATA, content)
            yield from found_in_text(f"chunk {known}", content.decode("utf-8", "replace"))


def _in_text(kind: bytes, content: bytes) -> Iterator[Found]:
    raw_keyword, _, rest = content.partition(b"\0")
    keyword = raw_keyword.decode("latin-1").lower()
    shown = keyword if keyword in _KEYWORDS else "of its own keyword"
    where = f"chunk {kind.decode()} ({shown})"
    yield Found(where, _BY_KEYWORD.get(keyword, Category.FREE_TEXT), content)
    if keyword not in _KEYWORDS:
        yield from found_in_text(where, keyword)
    if kind == b"zTXt":
        rest = _inflated(rest[1:])
    elif kind == b"iTXt" and len(rest) >= 2:
        is_compressed, texts = rest[0], rest[2:].split(b"\0", 2)
        rest = _inflated(texts[-1]) if is_compressed else texts[-1]
    if keyword == "xml:com.adobe.xmp":
        yield from scan_xmp(rest, where)
    else:
        yield from found_in_text(where, rest.decode("utf-8", "replace"))


def _in_profile(content: bytes) -> Iterator[Found]:
    name, _, rest = content.partition(b"\0")
    yield from found_in_text("chunk iCCP", name.decode("latin-1"))
    yield from scan_profile(_inflated(rest[1:]), "chunk iCCP")


def _inflated(data: bytes) -> bytes:
    """The beginning of what was compressed; nothing where it is damaged."""
    try:
        return zlib.decompressobj().decompress(data, MAX_INFLATED + MAX_EXPANSION * len(data))
    except zlib.error:
        return b""


def clean_png(data: bytes) -> bytes:
    """The file without the chunks that decoding does not need, nor what follows its end.

    Raises:
        PngDamagedError: it cannot be followed to its end.
    """
    kept = [data[chunk.start : chunk.end] for chunk in chunks_of(data) if is_needed(chunk)]
    return b"".join([SIGNATURE, *kept])
