"""XMP packets: properties of pictures in XML, looked at as text."""

import re
from collections.abc import Iterator
from typing import Final

from matl_common.phi.exif import found_in_text
from matl_common.phi.findings import Category, Found

MAX_BYTES: Final = 4 << 20
# Not parsed as XML: an entity or a namespace must not decide what is looked at.
_NAMESPACE = re.compile(
    r"""\bxmlns:[\w.-]{1,64}\s{0,8}=\s{0,8}(?:"[^"]{0,512}"|'[^']{0,512}')|rdf:about="[^"]{0,512}\""""
)
_TAG_NAMES = re.compile(r"</?[\w:.-]{1,128}|<\?[^>]{0,256}\?>|[/>]")
_PROPERTIES: Final = (
    ("creator", Category.NAME, re.compile(r"dc:creator|Iptc4xmpExt:PersonInImage")),
    ("date", Category.DATE, re.compile(r"xmp:\w{1,16}Date|photoshop:DateCreated|exif:DateTime")),
    ("position", Category.GEOGRAPHY, re.compile(r"exif:GPS|photoshop:City|Iptc4xmpCore:Location")),
    ("serial number", Category.DEVICE, re.compile(r"SerialNumber")),
    ("document id", Category.UNIQUE, re.compile(r"xmpMM:(?:Document|Instance|OriginalDocument)ID")),
    ("thumbnail", Category.THUMBNAIL, re.compile(r"xmp:Thumbnails|xmpGImg:image")),
    ("description", Category.FREE_TEXT, re.compile(r"dc:description|dc:title|exif:UserComment")),
)  # fmt: skip


def scan_xmp(data: bytes, where: str) -> Iterator[Found]:
    """What an XMP packet says."""
    text = data[:MAX_BYTES].decode("utf-8", "replace")
    for name, category, pattern in _PROPERTIES:
        if pattern.search(text):
            yield Found(f"{where}, {name}", category, text)
    plain = _TAG_NAMES.sub("\n", _NAMESPACE.sub(" ", text))
    for line in plain.splitlines():
        yield from found_in_text(where, line)
