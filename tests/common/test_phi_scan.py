import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.phi import Category, ScanReport, scan_folder

KEY = bytes(range(32))


def scan(folder: Path) -> ScanReport:
    return scan_folder(folder, key=KEY)


def categories(folder: Path) -> set[Category]:
    return set(scan(folder).by_category())


def picture(kind: str, **how: object) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (16, 16), (90, 40, 20)).save(buffer, kind, **how)
    return buffer.getvalue()


def test_the_data_of_a_study_is_clean(tmp_path: Path) -> None:
    rows = ["image_id,dr_level,group_key"]
    for number in range(30):
        name = f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"
        kind = ("JPEG", "PNG")[number % 2]
        (tmp_path / f"{name}.{kind.lower()}").write_bytes(picture(kind))
        rows.append(f"{name},{number % 5},p{number // 2}")
    (tmp_path / "labels_deidentified.csv").write_text("\n".join(rows))
    report = scan(tmp_path)
    assert report.is_clean, report.findings
    assert (report.files_scanned, report.files_not_understood) == (31, ())
    assert report.not_tested == ("text burned into pixels: not asked for (--ocr); 30 images",)


def test_progress_counts_every_entry(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("fine")
    told: list[tuple[int, int]] = []
    scan_folder(tmp_path, key=KEY, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_short_key_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="16 random bytes"):
        scan_folder(tmp_path, key=b"short")
    with pytest.raises(ConfigurationError, match="no such folder"):
        scan(tmp_path / "nowhere")


def test_what_is_not_understood_is_counted_and_no_finding(tmp_path: Path) -> None:
    (tmp_path / "scan.jpg").write_bytes(b"damaged")
    (tmp_path / "data.zip").write_bytes(b"PK\3\4")
    (tmp_path / "raw.bin").write_bytes(bytes(range(256)))
    (tmp_path / "image.png").write_bytes(picture("PNG")[:-9])
    (tmp_path / "link.csv").symlink_to("/etc/hostname")
    report = scan(tmp_path)
    assert report.is_clean
    assert report.files_scanned == 0
    reasons = {each.file: each.reason for each in report.files_not_understood}
    assert reasons["image.png"] == "a chunk is longer than the file"
    assert len(reasons) == 5


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + bytes(4)


def in_png(*chunks: bytes) -> bytes:
    png = picture("PNG")
    return png[:33] + b"".join(chunks) + png[33:]


def in_jpeg(marker: int, payload: bytes) -> bytes:
    jpeg = picture("JPEG")
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(payload) + 2) + payload
    return jpeg[:2] + segment + jpeg[2:]


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x013B] = "Mary Smith"
    found[0x0132] = "2021:03:14 10:00:00"
    found.get_ifd(0x8825)[2] = (52.0, 30.0, 1.0)
    found.get_ifd(0x8769)[0xA431] = "SN0012345"
    return found


PICTURES = {
    "EXIF in JPEG": (
        picture("JPEG", exif=exif()),
        {Category.METADATA, Category.NAME, Category.DATE, Category.GEOGRAPHY, Category.DEVICE},
    ),
    "EXIF in PNG": (picture("PNG", exif=exif()), {Category.METADATA, Category.NAME}),
    "a comment": (
        picture("JPEG", comment=b"DOB 1961-03-02"),
        {Category.FREE_TEXT, Category.DATE},
    ),
    "XMP": (
        in_jpeg(0xE1, b"http://ns.adobe.com/xap/1.0/\0<dc:creator>Mary Smith</dc:creator>"),
        {Category.METADATA, Category.NAME},
    ),
    "IPTC": (
        in_jpeg(
            0xED,
            b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0f\x1c\x02\x50\0\x0aMary Smith\0",
        ),
        {Category.METADATA, Category.NAME},
    ),
    "a second picture": (in_jpeg(0xE2, b"MPF\0II*\0"), {Category.THUMBNAIL}),
    "a thumbnail in APP0": (in_jpeg(0xE0, b"JFXX\0\x10" + bytes(50)), {Category.THUMBNAIL}),
    "an unknown segment": (in_jpeg(0xE7, b"MRN 1234567"), {Category.METADATA, Category.MRN}),
    "bytes after a JPEG": (picture("JPEG") + b"MRN 1234567", {Category.TRAILING}),
    "bytes after a PNG": (picture("PNG") + b"MRN 1234567", {Category.TRAILING}),
    "a comment in PNG": (
        in_png(chunk(b"tEXt", b"Comment\0MRN 1234567")),
        {Category.FREE_TEXT, Category.MRN},
    ),
    "a compressed comment in PNG": (
        in_png(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"MRN 1234567"))),
        {Category.FREE_TEXT, Category.MRN},
    ),
    "a comment in UTF-8 in PNG": (
        in_png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"MRN 1234567"))),
        {Category.FREE_TEXT, Category.MRN},
    ),
    "a time in PNG": (in_png(chunk(b"tIME", bytes(7))), {Category.DATE}),
    "an unknown chunk": (in_png(chunk(b"paTi", b"MRN 1234567")), {Category.METADATA, Category.MRN}),
    "tags of TIFF": (
        picture("TIFF", tiffinfo={0x010E: "MRN 1234567", 0x013B: "Mary Smith"}),
        {Category.FREE_TEXT, Category.MRN, Category.NAME},
    ),
    "bytes after a TIFF": (picture("TIFF") + b"MRN 1234567", {Category.TRAILING}),
}


@pytest.mark.parametrize("what", PICTURES)
def test_what_an_image_carries_beside_its_pixels_is_found(tmp_path: Path, what: str) -> None:
    data, expected = PICTURES[what]
    (tmp_path / "image.png").write_bytes(data)
    assert expected <= categories(tmp_path), scan(tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_plain_image_is_clean(tmp_path: Path, kind: str) -> None:
    (tmp_path / "image.png").write_bytes(picture(kind))
    (tmp_path / "progressive.jpg").write_bytes(picture("JPEG", progressive=True, optimize=True))
    assert scan(tmp_path).is_clean


MRN, PLACE = Category.MRN, Category.GEOGRAPHY


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("export.txt", "last_name,mrn,city\nx,y,z\n", {Category.NAME, MRN, PLACE}),
        ("a.jsonl", '{"mrn": "x"}\n\n{"city": "z"}\n', {MRN, PLACE}),
        ("a.xml", '<p:all><City mrn="x">z</City><phone/></p:all>', {MRN, PLACE}),
        ("prose.txt", "Two things, said here.\nAnd, then, some more.\n", set()),
        ("lines.txt", "shape, size\nround, small\n", set()),
    ],
)
def test_names_of_fields_count_whatever_the_file_is_called(
    tmp_path: Path, name: str, text: str, expected: set[Category]
) -> None:
    (tmp_path / name).write_text(text)
    report = scan_folder(tmp_path, key=KEY)
    assert {each.category for each in report.findings} == expected
    assert report.files_scanned == 1
