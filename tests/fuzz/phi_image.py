"""Images: whatever their parts hold, a cleaned JPEG or PNG holds nothing to be found."""

from __future__ import annotations

import zlib
from io import BytesIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from matl_common.phi.exif import scan_exif
from matl_common.phi.jpeg import clean_jpeg, scan_jpeg
from matl_common.phi.png import SIGNATURE, clean_png, scan_png
from matl_common.phi.tiff import clean_tiff, scan_tiff
from tests.fuzz.target import Target

XMP = b"http://ns.adobe.com/xap/1.0/\0<dc:creator>Mary Smith</dc:creator>"
IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0f\x1c\x02\x50\0\x0aMary Smith\0"


def _run(data: bytes) -> None:
    if data.startswith((b"II", b"MM")):
        for found in (*scan_exif(data, "EXIF"), *scan_tiff(data)):
            assert found.where
        clean_tiff(data)
    elif data.startswith(SIGNATURE):
        assert all(found.where for found in scan_png(data))
        assert not any(scan_png(clean_png(data)))
    else:
        assert all(found.where for found in scan_jpeg(data))
        assert not any(scan_jpeg(clean_jpeg(data)))


def _picture(kind: str, **how: object) -> bytes:
    exif = Image.Exif()
    exif[0x013B] = "Mary Smith"
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 1.0)
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (90, 40, 20)).save(buffer, kind, exif=exif, **how)
    return buffer.getvalue()


def _jpeg() -> bytes:
    jpeg = _picture("JPEG", comment=b"MRN 1234567", progressive=True)
    for marker, payload in ((0xE1, XMP), (0xED, IPTC)):
        length = (len(payload) + 2).to_bytes(2)
        jpeg = jpeg[:2] + b"\xff" + bytes([marker]) + length + payload + jpeg[2:]
    return jpeg


def _png() -> bytes:
    texts = PngInfo()
    texts.add_text("Comment", "MRN 1234567", zip=True)
    texts.add_itxt("Author", "Mary Smith", zip=True)
    texts.add(b"iCCP", b"sRGB\0\0" + zlib.compress(bytes(200)))
    return _picture("PNG", pnginfo=texts)


TARGET = Target(
    run=_run,
    seeds=[
        _jpeg(),
        _png(),
        _picture("TIFF", tiffinfo={0x010E: "MRN 1234567"}),
        _picture("TIFF", big_tiff=True),
    ],
)
