import csv
import os
import random
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matl_common.errors import ConfigurationError
from matl_common.phi import Category, scan_folder
from matl_common.phi.cleaning import CopyNotCleanError, clean_folder
from matl_common.phi.dicom import DicomDamagedError, quietly, read_dicom
from matl_common.phi.dicom_cleaning import clean_dicom
from matl_common.phi.ifd import TiffDamagedError
from matl_common.phi.jpeg import clean_jpeg, segments_of
from matl_common.phi.png import clean_png
from matl_common.phi.pseudonyms import Pseudonyms
from matl_common.phi.schema import LABELS_SCHEMA
from matl_common.phi.tiff import clean_tiff, scan_tiff
from tests.common import phi_corpus as corpus

KEY = bytes(range(32))
DRAW = random.Random(7)


def pixels(data: bytes) -> bytes:
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGB").tobytes()


def noisy(kind: str, **how: object) -> bytes:
    buffer = BytesIO()
    values = np.frombuffer(random.Random(3).randbytes(40 * 30 * 3), np.uint8)
    Image.fromarray(values.reshape(30, 40, 3)).save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    folder = tmp_path / "data"
    (folder / "images" / "Smith_John").mkdir(parents=True)
    for number, sample in enumerate(each for each in corpus.images(DRAW, 1) if each.expected):
        (folder / "images" / f"image_{number:03d}.bin").write_bytes(sample.data)
    (folder / "images" / "Smith_John" / "90817263.jpg").write_bytes(noisy("JPEG", comment=b"MRN"))
    (folder / "labels_deidentified.csv").write_text(
        "image_id,dr_level,mrn,group_key\n90817263,2,90817263,p1\nimage_001,7,1,p2\nimage_002,1,2,p2\n"
    )
    (folder / "notes.txt").write_text("Patient: Jane Roe, MRN 123456")
    (folder / "archive.zip").write_bytes(b"PK\3\4")
    (folder / "link.csv").symlink_to("labels_deidentified.csv")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_copy_is_clean_and_the_folder_is_as_it_was(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    report = clean_folder(source, tmp_path / "out", key=KEY)
    assert contents(source) == before
    found = scan_folder(tmp_path / "out", key=KEY)
    assert (found.findings, found.files_not_understood) == ((), ())
    assert report.files_written == found.files_scanned == len(contents(tmp_path / "out"))
    assert report.rows_left_out == 1
    assert sorted(each.reason for each in report.left_out) == [
        "it is a link, which is not followed",
        "it is of a kind that is not understood",
        "something in it identifies, and cannot be taken out",
    ]
    assert not list(tmp_path.glob(".*"))


def test_a_name_and_its_code_in_the_labels_become_the_same_random_one(
    source: Path, tmp_path: Path
) -> None:
    clean_folder(source, tmp_path / "out", key=KEY)
    with (tmp_path / "out" / "labels_deidentified.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["image_id", "dr_level", "group_key"]] * 2
    code = rows[0]["image_id"]
    assert code != "90817263"
    (renamed,) = (tmp_path / "out" / "images").glob("*/*.jpg")
    assert renamed.stem == code
    assert renamed.parent.name != "Smith_John"
    # Drawn, not derived: another copy has another.
    clean_folder(source, tmp_path / "other", key=KEY)
    assert not list((tmp_path / "other").rglob(f"{code}.jpg"))


def test_pixels_are_not_encoded_again(source: Path, tmp_path: Path) -> None:
    clean_folder(source, tmp_path / "out", key=KEY)
    for name, data in contents(source).items():
        copy = tmp_path / "out" / name
        if name.endswith(".bin"):
            assert pixels(copy.read_bytes()) == pixels(data), name
    jpeg = noisy("JPEG", comment=b"MRN 1234567", progressive=True)
    scans = (jpeg, clean_jpeg(jpeg))
    sizes = [
        [each.end - each.start for each in segments_of(data) if each.marker == 0xDA]
        for data in scans
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("kind", "clean"), [("JPEG", clean_jpeg), ("PNG", clean_png), ("TIFF", clean_tiff)]
)
def test_a_plain_image_is_the_same_byte_for_byte_or_picture_for_picture(
    kind: str, clean: object
) -> None:
    data = noisy(kind)
    assert callable(clean)
    if kind == "TIFF":
        assert pixels(clean(data)) == pixels(data)
    else:
        assert clean(data) == data


def test_bytes_of_a_tiff_that_nothing_refers_to_are_found_and_not_copied() -> None:
    whole = noisy("TIFF")
    first = int.from_bytes(whole[4:8], "little")
    hidden = b"Canarysson 90817263"
    # The directory once more after what nothing refers to, and the header leads there.
    data = whole + bytes(len(whole) % 2) + hidden + bytes(1)
    count = int.from_bytes(whole[first : first + 2], "little")
    directory = whole[first : first + 2 + 12 * count + 4]
    data = data[:4] + len(data).to_bytes(4, "little") + data[8:] + directory
    found = [
        each for each in scan_tiff(data) if isinstance(each.value, bytes) and hidden in each.value
    ]
    assert [each.category for each in found] == [Category.TRAILING]
    cleaned = clean_tiff(data)
    assert hidden not in cleaned
    assert list(scan_tiff(cleaned)) == []
    assert pixels(cleaned) == pixels(whole)


@pytest.mark.parametrize("at", [9_999, 2**63, 2**64 - 1])
@pytest.mark.parametrize("pointer", [None, "SubIFD", "next"])
def test_a_directory_beyond_the_end_of_a_bigtiff_is_damage(pointer: str | None, at: int) -> None:
    def header(first: int) -> bytes:
        return b"II+\0\x08\0\0\0" + struct.pack("<Q", first)

    if pointer is None:
        data = header(at)
    else:
        tag, following = (0x014A, 0) if pointer == "SubIFD" else (0x0100, at)
        entry = struct.pack("<HHQQ", tag, 16, 1, at)
        data = header(16) + struct.pack("<Q", 1) + entry + struct.pack("<Q", following)
    with pytest.raises(TiffDamagedError, match="outside of the file"):
        clean_tiff(data)


def test_the_tables_of_an_old_jpeg_in_a_tiff_are_kept_as_far_as_they_go() -> None:
    quantization, huffman = bytes(range(1, 65)), bytes([2, 1, *bytes(14)]) + b"abc"
    at = 8 + 2 + 2 * 12 + 4
    entries = struct.pack("<HHII", 0x0207, 4, 1, at) + struct.pack("<HHII", 0x0208, 4, 1, at + 64)
    data = b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + quantization + huffman
    assert list(scan_tiff(data)) == []
    assert clean_tiff(data + b"Canarysson") == data


def test_a_copy_is_never_written_over_anything_nor_into_what_is_copied(
    source: Path, tmp_path: Path
) -> None:
    for place in (source, source / "out", tmp_path, tmp_path / "nowhere" / "out"):
        with pytest.raises(ConfigurationError):
            clean_folder(source, place, key=KEY)
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(ConfigurationError, match="exists already"):
        clean_folder(source, tmp_path / "dangling", key=KEY)
    with pytest.raises(ConfigurationError, match="no such folder"):
        clean_folder(tmp_path / "missing", tmp_path / "out", key=KEY)


def test_a_copy_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clean_folder(source, tmp_path / "out", key=KEY, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_copy_in_which_something_is_found_is_thrown_away(source: Path, tmp_path: Path) -> None:
    def spoil(done: int, total: int) -> None:
        (partial,) = tmp_path.glob(".out-*")
        (partial / "late.txt").write_text("MRN 1234567")

    with pytest.raises(CopyNotCleanError, match="medical record number"):
        clean_folder(source, tmp_path / "out", key=KEY, progress=spoil)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_no_value_is_left_in_a_dicom_file_not_even_in_its_header() -> None:
    pytest.importorskip("pydicom", reason="comes with extra 'dicom'")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    canary, uid = "Canarysson", "1.2.826.0.1.99999.77777"
    item = Dataset()
    item.PatientID, item.ReferencedSOPInstanceUID = canary, uid
    for has_class in (True, False):
        for has_uid in (True, False):
            dataset = Dataset()
            dataset.PatientName = dataset.PatientID = dataset.AccessionNumber = canary
            dataset.ReferencedImageSequence = dataset.OtherPatientIDsSequence = [item]
            dataset.ReferencedStudySequence = [item]
            dataset.SeriesDescription = dataset.WindowCenterWidthExplanation = f"Dr. {canary}"
            dataset.private_block(0x0009, canary, create=True).add_new(1, "LO", canary)
            if has_class:
                dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
            if has_uid:
                dataset.SOPInstanceUID = uid
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.file_meta.MediaStorageSOPInstanceUID = UID(uid)
            dataset.file_meta.SourceApplicationEntityTitle = canary
            buffer = BytesIO()
            dataset.save_as(
                buffer, enforce_file_format=False, implicit_vr=False, little_endian=True
            )
            assert buffer.getvalue().count(canary.encode()) > 5
            try:
                clean = clean_dicom(read_dicom(buffer.getvalue()), new_uid=Pseudonyms().uid)
            except DicomDamagedError:
                # A class of objects asks for a name of each object.
                assert (has_class, has_uid) == (True, False)
                continue
            assert canary.encode() not in clean
            assert uid.encode() not in clean


def test_the_copy_is_for_its_owner_only(source: Path, tmp_path: Path) -> None:
    clean_folder(source, tmp_path / "out", key=KEY)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {os.stat(path).st_mode & 0o077 for path in (tmp_path / "out", *files)} == {0}


def test_the_schema_of_the_labels_lists_what_participants_read() -> None:
    assert set(LABELS_SCHEMA.columns) == {"image_id", "dr_level", "group_key"}


def test_dicom_is_cleaned_by_the_profile(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="comes with extra 'dicom'")
    from pydicom.data import get_testdata_file

    folder = tmp_path / "data"
    folder.mkdir()
    names = (
        "CT_small",
        "MR_small_implicit",
        "rtplan",
        "badVR",
        "SC_rgb_jpeg",
        "examples_ybr_color",
        "nested_priv_SQ",
    )
    for number, name in enumerate(names):
        path = get_testdata_file(f"{name}.dcm")
        (folder / f"image_{number}.dcm").write_bytes(Path(str(path)).read_bytes())
    report = clean_folder(folder, tmp_path / "out", key=KEY)
    assert report.left_out == ()
    for number in range(len(names)):
        before = read_dicom((folder / f"image_{number}.dcm").read_bytes())
        after = read_dicom((tmp_path / "out" / f"image_{number}.dcm").read_bytes())
        with quietly():
            assert after.PatientIdentityRemoved == "YES"
            assert not after.get("PatientName")
            assert not [element for element in after.iterall() if element.tag.is_private]
            # Frames of JPEG lose segments, and decode to the same.
            assert after.get("PixelData") == before.get("PixelData") or np.array_equal(
                after.pixel_array, before.pixel_array
            )
            if "SOPInstanceUID" in before:
                assert after.SOPInstanceUID != before.SOPInstanceUID
                assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    # The same study stays the same study.
    assert report.scan.is_clean
    assert Category.PRIVATE in scan_folder(folder, key=KEY).by_category()
