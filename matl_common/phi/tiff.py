"""TIFF, tag by tag: what decoding needs may stay, nothing else.

A cleaned file has the same pixels at the same places. Tags are taken out of their directory
and their values overwritten with zeros.
"""

import struct
from collections.abc import Iterator

from matl_common.phi.exif import STRUCTURE, found_in_entry
from matl_common.phi.findings import Category, Found
from matl_common.phi.icc import scan_profile
from matl_common.phi.ifd import (
    ASCII,
    POINTERS,
    SUB_DIRECTORIES,
    Directory,
    Entry,
    Tree,
    read_tree,
)

_PROFILE = 0x8773
_OFFSETS = {0x0111: 0x0117, 0x0144: 0x0145, 0x0201: 0x0202}
_QUANTIZATION, _HUFFMAN = 0x0207, frozenset({0x0208, 0x0209})
_MAX_PARTS = 1_000_000


def scan_tiff(data: bytes) -> Iterator[Found]:
    """What identifies in a TIFF file beside its pixels.

    Raises:
        TiffDamagedError: its structure cannot be followed.
    """
    tree = read_tree(data)
    for number, directory in enumerate(tree.directories):
        for entry in directory.entries:
            if entry.tag == _PROFILE:
                yield from scan_profile(entry.value(data), f"{directory.name}, ICC profile")
            elif not _is_needed(directory, entry):
                yield from found_in_entry(data, entry, directory.name)
                if entry.tag in POINTERS:
                    yield Found(f"{directory.name}, {POINTERS[entry.tag]}", Category.METADATA, b"")
        if number and _is_image(directory):
            yield Found(f"{directory.name}, further image", Category.THUMBNAIL, b"")
    for start, end in _gaps(data, tree):
        if data[start:end].strip(b"\0"):
            where = "after the end" if end == len(data) else f"at {start}, which belong to nothing"
            yield Found(f"{end - start} bytes {where}", Category.TRAILING, data[start:end])


def _is_needed(directory: Directory, entry: Entry) -> bool:
    is_structure = entry.tag in STRUCTURE and entry.kind != ASCII
    return is_structure and directory.name not in ("EXIF", "GPS", "interoperability")


def _is_image(directory: Directory) -> bool:
    return any(entry.tag in _OFFSETS for entry in directory.entries)


def _gaps(data: bytes, tree: Tree) -> Iterator[tuple[int, int]]:
    """The ranges to which no directory refers, the one after the end with them."""
    at = 8
    for start, end in sorted(_referenced(data, tree)):
        if start > at:
            yield at, start
        at = max(at, end)
    if at < len(data):
        yield at, len(data)


def _referenced(data: bytes, tree: Tree) -> Iterator[tuple[int, int]]:
    yield 0, 16 if tree.layout.is_big else 8
    for directory in tree.directories:
        yield directory.at, directory.end
        yield from ((entry.start, entry.end) for entry in directory.entries)
        tags = {entry.tag: entry for entry in directory.entries}
        for offsets, lengths in _OFFSETS.items():
            if offsets in tags and lengths in tags:
                starts = tags[offsets].numbers(data, tree.layout, limit=_MAX_PARTS)
                sizes = tags[lengths].numbers(data, tree.layout, limit=_MAX_PARTS)
                for start, size in zip(starts, sizes, strict=False):
                    yield min(start, len(data)), min(start + size, len(data))
        for tag in tags.keys() & {_QUANTIZATION, *_HUFFMAN}:
            for start in tags[tag].numbers(data, tree.layout):
                # TIFF 6.0, section 22: tables of JPEG, whose length nothing says.
                size = 64 if tag == _QUANTIZATION else 16 + sum(data[start : start + 16])
                yield min(start, len(data)), min(start + size, len(data))


def clean_tiff(data: bytes) -> bytes:
    """The file with what decoding needs and zeros where the rest stood.

    Raises:
        TiffDamagedError: its structure cannot be followed.
    """
    tree = read_tree(data)
    cleaned = bytearray(data)
    for directory in tree.directories:
        kept = [entry for entry in directory.entries if _keeps(data, directory, entry)]
        for entry in directory.entries:
            if entry not in kept:
                cleaned[entry.start : entry.end] = bytes(entry.end - entry.start)
        _rewrite(cleaned, data, tree, directory, kept)
    return _without_gaps(bytes(cleaned))


def _without_gaps(data: bytes) -> bytes:
    """Zeros where nothing refers to any more, and nothing after the end."""
    cleaned = bytearray(data)
    for start, end in _gaps(data, read_tree(data)):
        cleaned[start:end] = b"" if end == len(data) else bytes(end - start)
    return bytes(cleaned)


def _keeps(data: bytes, directory: Directory, entry: Entry) -> bool:
    if entry.tag == _PROFILE:
        return not any(scan_profile(entry.value(data), ""))
    return _is_needed(directory, entry) and (
        entry.tag not in POINTERS or entry.tag == SUB_DIRECTORIES
    )


def _rewrite(
    cleaned: bytearray, data: bytes, tree: Tree, directory: Directory, kept: list[Entry]
) -> None:
    """Write a directory again where it stood, shorter."""
    layout = tree.layout
    following = data[directory.next_at : directory.next_at + layout.offset_bytes]
    entries = b"".join(data[entry.at : entry.at + layout.entry_bytes] for entry in kept)
    written = struct.pack(layout.count, len(kept)) + entries + following
    room = min(directory.end, len(cleaned)) - directory.at
    cleaned[directory.at : directory.at + room] = written.ljust(room, b"\0")[:room]
