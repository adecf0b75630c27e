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
    end = _end(data, tree)
    if data[end:].strip(b"\0"):
        yield Found(f"{len(data) - end} bytes after the end", Category.TRAILING, data[end:])


def _is_needed(directory: Directory, entry: Entry) -> bool:
    is_structure = entry.tag in STRUCTURE and entry.kind != ASCII
    return is_structure and directory.name not in ("EXIF", "GPS", "interoperability")


def _is_image(directory: Directory) -> bool:
    return any(entry.tag in _OFFSETS for entry in directory.entries)


def _end(data: bytes, tree: Tree) -> int:
    """Where the last byte ends that some directory refers to."""
    end = 8
    for directory in tree.directories:
        end = max(end, directory.end, *(entry.end for entry in directory.entries), 0)
        tags = {entry.tag: entry for entry in directory.entries}
        for offsets, lengths in _OFFSETS.items():
            if offsets in tags and lengths in tags:
                starts = tags[offsets].numbers(data, tree.layout, limit=_MAX_PARTS)
                sizes = tags[lengths].numbers(data, tree.layout, limit=_MAX_PARTS)
                end = max(end, *(a + b for a, b in zip(starts, sizes, strict=False)), 0)
    return end


def clean_tiff(data: bytes) -> bytes:
    """The file with what decoding needs and zeros where the rest stood.

    Raises:
        TiffDamagedError: its structure cannot be followed.
    """
    tree = read_tree(data)
    end = _end(data, tree)
    cleaned = bytearray(data[:end])
    for directory in tree.directories:
        kept = [entry for entry in directory.entries if _keeps(data, directory, entry)]
        for entry in directory.entries:
            if entry not in kept:
                cleaned[entry.start : entry.end] = bytes(entry.end - entry.start)
        _rewrite(cleaned, data, tree, directory, kept)
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
