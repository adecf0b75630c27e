import json
import os
import random
import zlib
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import pytest

from matl_common.phi import Category, scan_folder
from matl_common.phi.dicom import DicomDamagedError, check_inflated, read_dicom, scan_dicom
from matl_common.phi.dicom_profile import Action, action_on, category_of, table

pydicom = pytest.importorskip("pydicom", reason="comes with extra 'dicom'")

KEY = bytes(range(32))
VECTORS = Path(os.environ.get("MATL_VECTORS", "../shared/vectors")) / "dicom"


@pytest.mark.vectors
def test_the_table_is_the_standards() -> None:
    path = VECTORS / "confidentiality_profile_attributes.json"
    if not path.exists():
        pytest.skip(f"no table of PS3.15 in {VECTORS}; set MATL_VECTORS")
    theirs = {
        each["tag"].strip("()").replace(",", ""): each["basicProfile"]
        for each in json.loads(path.read_text("utf-8"))
        # Private elements go whatever the table says.
        if "odd" not in each["tag"].lower()
    }
    ours = table()
    assert set(ours) == set(theirs)
    for tag, action in ours.items():
        # Of alternatives, one that the standard names.
        assert action.value in theirs[tag].split("/") or theirs[tag] == "X/Z/U*"


@pytest.mark.parametrize(
    ("tag", "action"),
    [
        (0x00100010, Action.EMPTY),
        (0x00101000, Action.REMOVE),
        (0x0020000D, Action.REPLACE_UID),
        (0x60023000, Action.REMOVE),
        (0x50120020, Action.REMOVE),
        (0x00280010, None),
    ],
)
def test_repeating_groups_are_in_the_table(tag: int, action: Action | None) -> None:
    assert action_on(tag) is action


def test_an_attribute_has_the_category_of_what_it_holds() -> None:
    assert category_of("PatientName", "PN") is Category.NAME
    assert category_of("PatientID", "LO") is Category.MRN
    assert category_of("StudyDate", "DA") is Category.DATE
    assert category_of("InstitutionName", "LO") is Category.GEOGRAPHY
    assert category_of("DeviceSerialNumber", "LO") is Category.DEVICE


def files() -> list[Path]:
    known = pydicom.data.get_testdata_file("CT_small.dcm")
    return sorted(Path(known).parent.glob("*.dcm"))


def test_every_bundled_file_with_a_patient_is_found_and_nothing_is_logged_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = {path.name: scan_folder(path, key=KEY) for path in files()}
    assert len(found) > 50
    for name, report in found.items():
        assert report.files_scanned == 1, name
        # The one that holds nothing but the name of a character set.
        assert not report.is_clean or name == "empty_charset_LEI.dcm", name
    # pydicom's warnings quote values.
    assert caplog.records == []


def dataset(**attributes: object) -> bytes:
    found = pydicom.Dataset()
    for name, value in attributes.items():
        setattr(found, name, value)
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    buffer = BytesIO()
    found.save_as(buffer, enforce_file_format=False)
    return b"\0" * 128 + b"DICM" + buffer.getvalue().removeprefix(b"\0" * 128 + b"DICM")


def categories(data: bytes) -> dict[str, set[Category]]:
    found: dict[str, set[Category]] = defaultdict(set)
    for each in scan_dicom(read_dicom(data)):
        found[each.where].add(each.category)
    return dict(found)


def test_who_says_that_identity_is_removed_may_have_dummies_and_nothing_more() -> None:
    says = {"PatientIdentityRemoved": "YES", "BurnedInAnnotation": "NO"}
    assert categories(dataset(PatientName="A17", PatientID="A17", **says)) == {}
    assert categories(dataset(PatientName="A17", PatientID="A17")) == {
        "PatientName": {Category.NAME},
        "PatientID": {Category.MRN},
    }
    assert categories(dataset(PatientName="Smith^Mary", **says)) == {"PatientName": {Category.NAME}}
    assert categories(dataset(StudyDate="20210314", **says)) == {"StudyDate": {Category.DATE}}
    assert categories(dataset(StudyDate="19000101", **says)) == {}
    moved = says | {"LongitudinalTemporalInformationModified": "MODIFIED"}
    assert categories(dataset(StudyDate="20210314", **moved)) == {}
    # What must be removed must be empty, whoever says what.
    assert categories(dataset(PatientAddress="somewhere", **says)) == {
        "PatientAddress": {Category.GEOGRAPHY}
    }


def test_who_says_that_identity_is_removed_and_keeps_a_patients_name_or_number_is_found() -> None:
    says = {"PatientIdentityRemoved": "YES", "BurnedInAnnotation": "NO"}
    assert categories(dataset(PatientID="90817263", AccessionNumber="A55512345", **says)) == {
        "PatientID": {Category.UNIQUE},
        "AccessionNumber": {Category.UNIQUE},
    }
    for name in ("OKONKWO", "Okonkwo^A17", "90817263"):
        assert categories(dataset(PatientName=name, **says)) == {"PatientName": {Category.NAME}}
    for name in ("ANONYMOUS", "Anon^Patient^007", "3f2a1b4c5d6e7f80"):
        assert categories(dataset(PatientName=name, PatientID="A17", **says)) == {}, name


def test_ages_are_told_apart_at_ninety() -> None:
    assert categories(dataset(PatientAge="090Y")) == {"PatientAge": {Category.AGE}}
    assert categories(dataset(PatientAge="089Y")) == {"PatientAge": {Category.METADATA}}


def test_sequences_are_looked_into_and_burned_in_text_is_believed() -> None:
    item = pydicom.Dataset()
    item.PatientID = "1234567"
    inner = pydicom.Dataset()
    inner.ReferencedStudySequence = [item]
    found = categories(dataset(ReferencedSeriesSequence=[inner], BurnedInAnnotation="YES"))
    assert found == {
        "ReferencedSeriesSequence[1].ReferencedStudySequence[1].PatientID": {Category.MRN},
        "BurnedInAnnotation": {Category.BURNED_IN},
    }


def test_a_file_that_expands_to_too_much_is_refused() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = deflater.compress(bytes(8 << 20)) + deflater.flush()
    meta = b"\2\0\x10\0UI\x16\x001.2.840.10008.1.2.1.99"
    header = bytes(128) + b"DICM" + b"\2\0\0\0UL\4\0" + len(meta).to_bytes(4, "little") + meta
    check_inflated(header + bomb, limit=8 << 20)
    with pytest.raises(DicomDamagedError, match="too much"):
        check_inflated(header + bomb, limit=4 << 20)


def test_any_cut_of_a_file_is_read_or_refused() -> None:
    data = next(path for path in files() if path.name == "rtplan.dcm").read_bytes()
    draw = random.Random(3)
    for _ in range(60):
        cut = data[: draw.randrange(len(data))]
        try:
            list(scan_dicom(read_dicom(cut)))
        except DicomDamagedError:
            continue
