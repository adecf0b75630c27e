"""What tags of TIFF and EXIF say, and which of them an image needs."""

from collections.abc import Iterator
from typing import Final

from matl_common.phi.findings import Category, Found
from matl_common.phi.ifd import ASCII, POINTERS, Entry, TiffDamagedError, Tree, read_tree
from matl_common.phi.text import hits_in

THUMBNAIL_OFFSET, THUMBNAIL_LENGTH = 0x0201, 0x0202
_NAME, _DATE, _DEVICE, _TEXT, _OTHER = (
    Category.NAME,
    Category.DATE,
    Category.DEVICE,
    Category.FREE_TEXT,
    Category.METADATA,
)
TAGS: Final[dict[int, tuple[str, Category]]] = {
    0x010D: ("DocumentName", _TEXT),
    0x010E: ("ImageDescription", _TEXT),
    0x010F: ("Make", _OTHER),
    0x0110: ("Model", _OTHER),
    0x011D: ("PageName", _TEXT),
    0x0131: ("Software", _OTHER),
    0x0132: ("DateTime", _DATE),
    0x013B: ("Artist", _NAME),
    0x013C: ("HostComputer", _DEVICE),
    0x02BC: ("XMP", _OTHER),
    0x8298: ("Copyright", _NAME),
    0x83BB: ("IPTC", _OTHER),
    0x8649: ("Photoshop", _OTHER),
    0x9003: ("DateTimeOriginal", _DATE),
    0x9004: ("DateTimeDigitized", _DATE),
    0x9010: ("OffsetTime", _OTHER),
    0x9290: ("SubSecTime", _OTHER),
    0x927C: ("MakerNote", _OTHER),
    0x9286: ("UserComment", _TEXT),
    0x9C9B: ("XPTitle", _TEXT),
    0x9C9C: ("XPComment", _TEXT),
    0x9C9D: ("XPAuthor", _NAME),
    0x9C9E: ("XPKeywords", _TEXT),
    0x9C9F: ("XPSubject", _TEXT),
    0xA420: ("ImageUniqueID", Category.UNIQUE),
    0xA430: ("CameraOwnerName", _NAME),
    0xA431: ("BodySerialNumber", _DEVICE),
    0xA435: ("LensSerialNumber", _DEVICE),
    0xC4A5: ("PrintImageMatching", _OTHER),
    0xC62F: ("CameraSerialNumber", _DEVICE),
}
_WIDE = range(0x9C9B, 0x9CA0)
STRUCTURE: Final = frozenset(
    {
        0x00FE, 0x00FF, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0107, 0x010A, 0x0111, 0x0112,
        0x0115, 0x0116, 0x0117, 0x0118, 0x0119, 0x011A, 0x011B, 0x011C, 0x0120, 0x0121, 0x0122,
        0x0123, 0x0124, 0x0125, 0x0128, 0x012D, 0x013D, 0x013E, 0x013F, 0x0140, 0x0141, 0x0142,
        0x0143, 0x0144, 0x0145, 0x014A, 0x014C, 0x0152, 0x0153, 0x0154, 0x0155, 0x0156, 0x015B,
        0x0200, 0x0201, 0x0202, 0x0203, 0x0207, 0x0208, 0x0209, 0x0211, 0x0212, 0x0213, 0x0214,
        0x8773,
    }
)  # fmt: skip
"""What decoding a TIFF file may need. An ICC profile is one of them."""
HARMLESS: Final = STRUCTURE.union(
    POINTERS, {0x9000, 0x9101, 0xA000, 0xA001, 0xA002, 0xA003, 0x0001, 0x0002}
)


def scan_exif(data: bytes, where: str) -> Iterator[Found]:
    """What EXIF says, tag by tag; where it is damaged, that it cannot be read."""
    try:
        tree = read_tree(data)
    except TiffDamagedError:
        yield Found(f"{where}, damaged", Category.METADATA, data)
        return
    for directory in tree.directories:
        for entry in directory.entries:
            is_harmless = entry.tag in HARMLESS
            if directory.name != "GPS" and is_harmless:
                continue
            yield from found_in_entry(data, entry, f"{where}, {directory.name}")
    yield from thumbnails(data, tree, where)


def found_in_entry(data: bytes, entry: Entry, where: str) -> Iterator[Found]:
    """What a tag is, and what stands in it."""
    value = entry.value(data)
    name, category = TAGS.get(entry.tag, (f"tag {entry.tag:#06x}", _OTHER))
    if where.endswith("GPS"):
        category = Category.GEOGRAPHY
    place = f"{where}, {name}"
    if not value.strip(b"\0 "):
        return
    yield Found(place, category, value)
    if entry.kind == ASCII or category is _TEXT:
        yield from found_in_text(place, text_of(entry.tag, value))


def text_of(tag: int, value: bytes) -> str:
    """The text in a tag, as far as it is text."""
    if tag in _WIDE:
        return value.decode("utf-16-le", "replace").rstrip("\0")
    if value[:8] in (b"ASCII\0\0\0", b"UNICODE\0", b"\0" * 8):
        encoding = "utf-16" if value.startswith(b"UNICODE") else "utf-8"
        return value[8:].decode(encoding, "replace").rstrip("\0")
    return value.decode("utf-8", "replace").rstrip("\0")


def found_in_text(where: str, text: str) -> Iterator[Found]:
    """What detectors find in a piece of metadata."""
    yield from (Found(where, hit.category, hit.value) for hit in hits_in(text))


def thumbnails(data: bytes, tree: Tree, where: str) -> Iterator[Found]:
    """Small copies, which may show what was cropped from the image."""
    for directory in tree.directories:
        tags = {entry.tag: entry for entry in directory.entries}
        if directory.name != "IFD0" and THUMBNAIL_OFFSET in tags and THUMBNAIL_LENGTH in tags:
            start = next(iter(tags[THUMBNAIL_OFFSET].numbers(data, tree.layout)), 0)
            length = next(iter(tags[THUMBNAIL_LENGTH].numbers(data, tree.layout)), 0)
            content = data[start : start + length]
            yield Found(f"{where}, {directory.name}, thumbnail", Category.THUMBNAIL, content)
