"""DICOM files without what identifies, by the actions of PS3.15's basic profile.

Every private element goes, every attribute of the table is removed, emptied, or replaced,
and so is what detectors object to elsewhere. Pixels stay; what is burned into them does, too.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from matl_common.phi.dicom import (
    DUMMY_DATE,
    DUMMY_NAME,
    PIXELS,
    DicomDamagedError,
    Said,
    found_in_element,
    frames_of,
    name_of,
    quietly,
)
from matl_common.phi.dicom_profile import Action, action_on
from matl_common.phi.jpeg import JpegDamagedError, clean_jpeg

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

METHOD: Final = (
    "MATL phi scan --clean; DICOM PS3.15 Basic Application Level Confidentiality Profile"
)
_PROFILE_CODE: Final = ("113100", "DCM", "Basic Application Confidentiality Profile")
_DUMMIES: Final[dict[str, Any]] = {
    "DA": DUMMY_DATE,
    "TM": "000000",
    "DT": DUMMY_DATE,
    "PN": DUMMY_NAME,
    "AS": "000Y",
    "IS": "0",
    "DS": "0",
    **dict.fromkeys(("US", "SS", "UL", "SL", "FL", "FD", "UV", "SV"), 0),
    **dict.fromkeys(("OB", "OW", "OD", "OF", "OL", "OV", "UN"), b""),
}
_SAID: Final = Said(is_removed=True, dates_are_shifted=False, burned_in="NO")
_META_KEPT: Final = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020010, 0x00020012})


def clean_dicom(dataset: FileDataset, *, new_uid: Callable[[str], str]) -> bytes:
    """The file without what identifies; ``dataset`` is changed on the way.

    Args:
        dataset: as read.
        new_uid: the same new identifier for the same old one.

    Raises:
        DicomDamagedError: what is left cannot be written as a file.
    """
    try:
        with quietly():
            _clean(dataset, new_uid)
            _clean_frames(dataset)
            _declare(dataset)
            _clean_header(dataset)
            buffer = io.BytesIO()
            # A file that names no class of object cannot be a DICOM file, and need not become one.
            dataset.save_as(buffer, enforce_file_format="SOPClassUID" in dataset)
    # Whatever writing raises for values that were never valid.
    except Exception as error:
        raise DicomDamagedError("what is left of it cannot be written") from error
    return buffer.getvalue()


def _clean(dataset: Dataset, new_uid: Callable[[str], str]) -> None:
    for tag in list(dataset.keys()):
        if tag.is_private:
            del dataset[tag]
            continue
        if int(tag) in PIXELS:
            continue
        element = dataset[tag]
        match action_on(tag):
            case Action.REMOVE:
                del dataset[tag]
            case Action.EMPTY:
                element.value = [] if element.VR == "SQ" else None
            case Action.DUMMY if element.VR != "SQ":
                element.value = _DUMMIES.get(str(element.VR), "REMOVED")
            case Action.REPLACE_UID if element.VR != "SQ":
                many = isinstance(element.value, (list, tuple)) or element.VM > 1
                values = element.value if many else [element.value]
                element.value = [new_uid(str(each)) for each in values if each]
            case None if any(found_in_element(element, _SAID, name_of(tag))):
                del dataset[tag]
        if tag in dataset and dataset[tag].VR == "SQ":
            for item in dataset[tag].value or ():
                _clean(item, new_uid)


def _clean_frames(dataset: FileDataset) -> None:
    from pydicom.encaps import encapsulate

    frames = frames_of(dataset)
    if not frames:
        return
    frames = [frame.rstrip(b"\0") for frame in frames]
    try:
        cleaned = [clean_jpeg(frame) for frame in frames]
    except JpegDamagedError as error:
        raise DicomDamagedError("a frame of it is damaged") from error
    if cleaned != frames:
        dataset.PixelData = encapsulate(cleaned)


def _declare(dataset: FileDataset) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = _PROFILE_CODE
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD[:64]
    dataset.DeidentificationMethodCodeSequence = Sequence([code])
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


def _clean_header(dataset: FileDataset) -> None:
    dataset.preamble = bytes(128)
    meta = dataset.file_meta
    for tag in list(meta.keys()):
        if int(tag) not in _META_KEPT:
            del meta[tag]
    if "SOPInstanceUID" in dataset:
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
