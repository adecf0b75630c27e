"""DICOM: attributes by the profile of PS3.15, private ones, and what else a file carries.

A file that says PatientIdentityRemoved is believed as far as dummies go: the profile lets
them stand where an attribute may not be missing. What must be removed must be empty, a
person's name must be a known dummy, and a number short or random. One that does not say so
may have no value at all there.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.phi.codes import detect_in_code
from matl_common.phi.dicom_profile import Action, action_on, category_of
from matl_common.phi.findings import Category, Found
from matl_common.phi.jpeg import JpegDamagedError, scan_jpeg
from matl_common.phi.text import hits_in
from matl_common.phi.tokens import without_random

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

MAX_DEPTH: Final = 32
MAX_INFLATED: Final = 256 << 20
DUMMY_DATE: Final = "19000101"
DUMMY_NAME: Final = "ANONYMOUS"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_BASELINE = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57",
             "1.2.840.10008.1.2.4.70")  # fmt: skip
PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_TEXT: Final = frozenset({"AE", "LO", "LT", "SH", "ST", "UC", "UR", "UT", "CS", "AS"})
_BYTES: Final = frozenset({"UN", "OB"})
_CODES: Final = frozenset({"LO", "SH", "CS"})
_NOBODY: Final = frozenset(
    {"anon", "anonym", "anonymous", "anonymized", "anonymised", "deidentified", "removed", "none",
     "unknown", "patient", "subject", "case", "dummy", "phantom"}
)  # fmt: skip
_WORD = re.compile(r"[^\W\d_]{2,}")
_MAX_BYTES = 64 << 10
_META: Final = {
    **dict.fromkeys((0x00020016, 0x00020017, 0x00020018), Category.DEVICE),
    **dict.fromkeys((0x00020026, 0x00020027, 0x00020028), Category.URL),
    **dict.fromkeys((0x00020100, 0x00020102), Category.PRIVATE),
}


class DicomDamagedError(InvalidInputError):
    """The bytes are not DICOM that can be read."""


class NoDicomError(ConfigurationError):
    """What reads DICOM is not installed."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a file says of its own de-identification."""

    is_removed: bool
    dates_are_shifted: bool
    burned_in: str


@contextmanager
def quietly() -> Iterator[None]:
    """Keep pydicom's warnings, which quote values, from every log."""
    log = logging.getLogger("pydicom")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was_disabled


def read_dicom(data: bytes) -> FileDataset:
    """Parse a file, with or without its preamble.

    Raises:
        NoDicomError: pydicom is not installed.
        DicomDamagedError: it is not DICOM, or expands to too much.
    """
    try:
        from pydicom import config, dcmread
    except ImportError as error:
        raise NoDicomError("pydicom is not installed; install the extra: matl[dicom]") from error
    config.settings.reading_validation_mode = config.IGNORE
    if _DEFLATED in data[:4096]:
        check_inflated(data)
    try:
        with quietly():
            dataset = dcmread(io.BytesIO(data), force=True)
            tags = list(dataset.keys())
            if not any(0x0004 <= tag.group <= 0x7FE0 for tag in tags):
                raise DicomDamagedError("it is not DICOM that can be read")
    except DicomDamagedError:
        raise
    # Whatever its many parsers raise on damaged bytes.
    except Exception as error:
        raise DicomDamagedError("it is not DICOM that can be read") from error
    return dataset


def check_inflated(data: bytes, *, limit: int = MAX_INFLATED) -> None:
    """Refuse a small file that would fill the memory.

    Raises:
        DicomDamagedError: its attributes, which are compressed, are more than ``limit`` bytes.
    """
    length = int.from_bytes(data[140:144], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total, rest = 0, data[144 + length :]
    try:
        while rest and not inflater.eof:
            total += len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
            if total > limit:
                raise DicomDamagedError("it expands to too much")
    except zlib.error as error:
        raise DicomDamagedError("it is not DICOM that can be read") from error


def said_of(dataset: Dataset) -> Said:
    """What the file claims, by its own attributes."""
    with quietly():
        return Said(
            _text(dataset, "PatientIdentityRemoved") == "YES",
            _text(dataset, "LongitudinalTemporalInformationModified") == "MODIFIED",
            _text(dataset, "BurnedInAnnotation"),
        )


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        return str(dataset.get(keyword) or "").strip().upper()
    # A value that cannot be converted says nothing.
    except Exception:  # noqa: BLE001
        return ""


def has_pixels(dataset: Dataset) -> bool:
    """Whether the file is an image."""
    return any(tag in dataset for tag in PIXELS)


def scan_dicom(dataset: FileDataset) -> Iterator[Found]:
    """What identifies in a file: its attributes, sequences, private groups and frames.

    Raises:
        DicomDamagedError: its attributes cannot be followed.
    """
    said = said_of(dataset)
    try:
        with quietly():
            found = list(_in_file(dataset, said))
    # Attributes are converted as they are looked at, by any of many parsers.
    except Exception as error:
        raise DicomDamagedError("it is not DICOM that can be read") from error
    yield from found


def _in_file(dataset: FileDataset, said: Said) -> Iterator[Found]:
    preamble = getattr(dataset, "preamble", None) or b""
    if preamble.strip(b"\0"):
        yield Found("preamble", Category.METADATA, preamble)
    yield from _in_header(dataset, said)
    yield from _in_dataset(dataset, said, "", 0)
    if said.burned_in == "YES":
        yield Found("BurnedInAnnotation", Category.BURNED_IN, "YES")
    yield from _in_frames(dataset)


def _in_header(dataset: FileDataset, said: Said) -> Iterator[Found]:
    meta = getattr(dataset, "file_meta", None)
    for tag in list(meta.keys()) if meta is not None else ():
        value = _value(meta, tag)
        if int(tag) in _META and value is not None and not _is_empty(value):
            yield Found(f"({tag.group:04X},{tag.element:04X})", _META[int(tag)], str(value))
    name = "MediaStorageSOPInstanceUID"
    if meta is not None and not said.is_removed and _text(meta, name):
        yield Found(name, Category.UNIQUE, _text(meta, name))


def _in_dataset(dataset: Dataset, said: Said, path: str, depth: int) -> Iterator[Found]:
    if depth > MAX_DEPTH:
        yield Found(f"{path}…", Category.METADATA, "")
        return
    for tag in sorted(dataset.keys()):
        place = f"{path}{name_of(tag)}"
        if tag.is_private:
            if tag.element > 0xFF or not tag.is_private_creator:
                value = _value(dataset, tag)
                if value is None or not _is_empty(value):
                    yield Found(place, Category.PRIVATE, _as_text(value))
            continue
        if tag.element == 0 or int(tag) in PIXELS:
            continue
        try:
            element = dataset[tag]
        # A value that cannot be converted cannot be judged either.
        except Exception:  # noqa: BLE001
            if action_on(tag) is not None:
                yield Found(place, Category.METADATA, "")
            continue
        yield from found_in_element(element, said, place)
        if element.VR == "SQ":
            for number, item in enumerate(element.value or (), start=1):
                yield from _in_dataset(item, said, f"{place}[{number}].", depth + 1)


def found_in_element(element: Any, said: Said, place: str) -> Iterator[Found]:
    """What one attribute says, its own items left aside."""
    value, kind = element.value, str(element.VR)
    if _is_empty(value):
        return
    text = _as_text(value)
    action = action_on(element.tag)
    category = category_of(element.keyword, kind)
    if kind == "AS" and not _is_old(text):
        category = Category.METADATA
    if action is Action.REMOVE or (action is not None and not said.is_removed):
        # A sequence of nothing but what is looked at below says nothing itself.
        if kind != "SQ" or action is Action.REMOVE:
            yield Found(place, category, text)
    elif kind in ("DA", "DT"):
        if not said.dates_are_shifted and not text.startswith(DUMMY_DATE):
            yield Found(place, Category.DATE, text)
    elif kind == "PN":
        if action is None or not _is_nobody(text):
            yield Found(place, Category.NAME, text)
    elif action is not None and kind in _CODES:
        for line in text[:_MAX_BYTES].splitlines():
            yield from (Found(place, hit.category, hit.value) for hit in detect_in_code(line))
    elif kind in _TEXT or kind in _BYTES:
        yield from (Found(place, hit.category, hit.value) for hit in hits_in(text[:_MAX_BYTES]))


def _is_nobody(name: str) -> bool:
    """Whether a person's name is a dummy: words for nobody, short numbers, random codes."""
    rest = without_random(name)
    if any(word.lower() not in _NOBODY for word in _WORD.findall(rest)):
        return False
    return not any(detect_in_code(_WORD.sub(" ", rest)))


def _is_old(age: str) -> bool:
    return age.endswith("Y") and age[:-1].isdecimal() and int(age[:-1]) > 89


def _in_frames(dataset: FileDataset) -> Iterator[Found]:
    """JPEG frames have segments of their own."""
    for number, frame in enumerate(frames_of(dataset), start=1):
        try:
            for found in scan_jpeg(frame.rstrip(b"\0")):
                yield Found(f"frame {number}, {found.where}", found.category, found.value)
        except JpegDamagedError:
            yield Found(f"frame {number}, damaged", Category.METADATA, frame)


def frames_of(dataset: FileDataset) -> list[bytes]:
    """The frames of an image that are JPEG files; none of another kind."""
    from pydicom.encaps import generate_frames

    meta = getattr(dataset, "file_meta", None)
    if meta is None or str(meta.get("TransferSyntaxUID", "")) not in _BASELINE:
        return []
    if "PixelData" not in dataset:
        return []
    try:
        count = int(dataset.get("NumberOfFrames") or 1)
        return list(generate_frames(dataset.PixelData, number_of_frames=count))
    # Fragments that cannot be put together are no frames.
    except Exception:  # noqa: BLE001
        return []


def name_of(tag: Any) -> str:
    """An attribute by the standard's keyword, or by its number."""
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag) or f"({tag.group:04X},{tag.element:04X})"


def _value(dataset: Any, tag: Any) -> Any:
    with suppress(Exception):
        return dataset[tag].value
    return None


def _is_empty(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, (bytes, bytearray)):
        return not value.strip(b"\0 ")
    if _is_list(value):
        return all(map(_is_empty, value))
    return not str(value).strip("\0 ^=")


def _as_text(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value[:_MAX_BYTES]).decode("latin-1")
    if _is_list(value):
        return "\n".join(map(str, list(value)[:1000]))
    return str(value)


def _is_list(value: Any) -> bool:
    """Several values; a person's name can be iterated over and is one."""
    return isinstance(value, Sequence) and not isinstance(value, str)
