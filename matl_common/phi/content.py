"""What is in a file, by its first bytes and its suffix, and who looks at it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from matl_common.phi import ocr
from matl_common.phi.dicom import has_pixels, read_dicom, said_of, scan_dicom
from matl_common.phi.dicom_pixels import grey_of
from matl_common.phi.findings import Category, Found
from matl_common.phi.jpeg import scan_jpeg
from matl_common.phi.png import SIGNATURE, scan_png
from matl_common.phi.schema import Schema
from matl_common.phi.text import (
    JSON_SUFFIXES,
    TABLE_SUFFIXES,
    NotTextError,
    decode,
    hits_in,
    is_table,
    scan_csv,
    scan_json,
    scan_text,
    scan_xml,
)
from matl_common.phi.tiff import scan_tiff

MAX_FILE_BYTES: Final = 512 << 20
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff"})
_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_OTHER_SUFFIXES = frozenset(
    {".gif", ".bmp", ".webp", ".heic", ".heif", ".jp2", ".j2k", ".pdf", ".zip", ".gz", ".xz",
     ".bz2", ".zst", ".7z", ".tar", ".xls", ".xlsx", ".doc", ".docx", ".ods", ".odt", ".nii",
     ".parquet", ".npy", ".npz", ".h5", ".hdf5", ".db", ".sqlite", ".pkl", ".pt", ".safetensors"}
)  # fmt: skip


class Kind(StrEnum):
    """The kinds of files that are understood."""

    JPEG = "JPEG"
    PNG = "PNG"
    TIFF = "TIFF"
    DICOM = "DICOM"
    TABLE = "table"
    JSON = "JSON"
    XML = "XML"
    TEXT = "text"


@dataclass(slots=True)
class Look:
    """How files are looked at, and what could not be."""

    schema: Schema
    ocr: bool
    burned_in_untested: dict[str, int] = field(default_factory=dict)
    """Images whose pixels nobody read, by why. Written by the one thread that scans."""

    def scan(self, kind: Kind, data: bytes) -> Iterator[Found]:
        """What identifies in a file.

        Raises:
            InvalidInputError: it is damaged, or not what it seems to be.
            NoDicomError: what reads DICOM is not installed.
        """
        match kind:
            case Kind.JPEG:
                yield from scan_jpeg(data)
                yield from self._in_pixels(data)
            case Kind.PNG:
                yield from scan_png(data)
                yield from self._in_pixels(data)
            case Kind.TIFF:
                yield from scan_tiff(data)
                yield from self._in_pixels(data)
            case Kind.DICOM:
                yield from self._in_dicom(data)
            case Kind.TABLE:
                yield from scan_csv(data, self.schema)
            case Kind.JSON:
                yield from scan_json(data)
            case Kind.XML:
                yield from scan_xml(data)
                yield from scan_text(data)
            case Kind.TEXT:
                yield from scan_text(data)
                if is_table(data):
                    yield from scan_csv(data, self.schema)

    def _in_dicom(self, data: bytes) -> Iterator[Found]:
        dataset = read_dicom(data)
        yield from scan_dicom(dataset)
        # "YES" is a finding already, and "NO" is believed.
        if not has_pixels(dataset) or said_of(dataset).burned_in in ("YES", "NO"):
            return
        if not self._may_read():
            return
        try:
            yield from _seen(ocr.words_in(grey_of(dataset)))
        except ocr.UnreadableImageError:
            self._untested("text burned into pixels: the image cannot be decoded here")

    def _in_pixels(self, data: bytes) -> Iterator[Found]:
        if not self._may_read():
            return
        try:
            yield from _seen(ocr.words_in_file(data))
        except ocr.UnreadableImageError:
            self._untested("text burned into pixels: the image cannot be decoded here")

    def _may_read(self) -> bool:
        if not self.ocr:
            self._untested(ocr.NOT_ASKED)
        elif not ocr.is_available():
            self._untested(ocr.ABSENT)
        else:
            return True
        return False

    def _untested(self, why: str) -> None:
        self.burned_in_untested[why] = self.burned_in_untested.get(why, 0) + 1


def _seen(words: list[str]) -> Iterator[Found]:
    if not words:
        return
    text = " ".join(words)
    yield Found("pixels", Category.BURNED_IN, text)
    yield from (Found("pixels", hit.category, hit.value) for hit in hits_in(text))


def kind_of(data: bytes, suffix: str) -> Kind | None:
    """The kind of a file: its first bytes decide, then its suffix, then whether it is text."""
    if data.startswith(b"\xff\xd8\xff"):
        return Kind.JPEG
    if data.startswith(SIGNATURE):
        return Kind.PNG
    if data[128:132] == b"DICM" or suffix in _DICOM_SUFFIXES:
        return Kind.DICOM
    if data.startswith(_TIFF):
        return Kind.TIFF
    if suffix in _IMAGE_SUFFIXES or suffix in _OTHER_SUFFIXES:
        return None
    if suffix in TABLE_SUFFIXES:
        return Kind.TABLE
    if suffix in JSON_SUFFIXES:
        return Kind.JSON
    if suffix == ".xml" or data.startswith(b"<?xml"):
        return Kind.XML
    return Kind.TEXT if _is_text(data) else None


def _is_text(data: bytes) -> bool:
    try:
        decode(data)
    except NotTextError:
        return False
    # Bytes of any kind are Latin-1.
    sample = data[:4096]
    return sum(byte < 9 or 14 <= byte < 32 for byte in sample) == 0
