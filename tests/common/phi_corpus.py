"""A corpus of files that identify nobody real: what each holds is known, since it was put there.

Everything is drawn from a seed, with generators that the scanner does not share. Names come
from a list of their own, of which some are in the scanner's and most are not.
"""

from __future__ import annotations

import csv
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from PIL import Image

from matl_common.phi import Category

# The most frequent names of several countries, as they come; not the scanner's lists.
NAMES = (
    "Olivia Brown",
    "Liam Walsh",
    "Noah Byrne",
    "Emma Thompson",
    "Wei Chen",
    "Li Na",
    "Hiroshi Tanaka",
    "Yuki Sato",
    "Minjun Park",
    "Jiwoo Choi",
    "Aarav Sharma",
    "Ananya Iyer",
    "Fatima Zahra",
    "Omar Haddad",
    "Kwame Mensah",
    "Amina Okafor",
    "Chinedu Eze",
    "Ingrid Solberg",
    "Lars Nygaard",
    "Zofia Wojcik",
    "Jakub Kaminski",
    "Giulia Ricci",
    "Matteo Greco",
    "Lucía Fernández",
    "Mateo Rojas",
    "João Almeida",
    "Beatriz Carvalho",
    "Élodie Girard",
    "Théo Lambert",
    "Anneliese Vogt",
    "Jürgen Krause",
    "Oksana Bondar",
    "Dmytro Kovalenko",
    "Nguyen Thi Hoa",
    "Tran Van Minh",
    "Siti Nurhaliza",
    "Budi Santoso",
    "Maria Garcia",
    "James Smith",
    "Mary Johnson",
    "Robert Jones",
    "Patricia Davis",
)
LETTERS = "ACDEFGHJKMNPQRTUVWXY"
STREETS = ("Maple Street", "Oak Avenue", "High Road", "Church Lane", "Park Drive", "Mill Way")
CITIES = ("Springfield, IL", "Portland, OR", "Austin, TX", "Boston, MA")


@dataclass(frozen=True)
class Sample:
    """A file, and what a scan should say of it: at least one of these, or nothing."""

    name: str
    data: bytes
    expected: frozenset[Category]
    group: str


def digits(draw: random.Random, count: int) -> str:
    return str(draw.randrange(1, 10)) + "".join(str(draw.randrange(10)) for _ in range(count - 1))


def day(draw: random.Random) -> date:
    return date(1930, 1, 1) + timedelta(days=draw.randrange(34_000))


def ssn(draw: random.Random) -> str:
    area = draw.choice([number for number in range(1, 899) if number != 666])
    return f"{area:03d}-{draw.randrange(1, 100):02d}-{draw.randrange(1, 10_000):04d}"


def npi(draw: random.Random) -> str:
    """Nine digits and their check digit, by the sum as the standard writes it down."""
    first = str(draw.choice("12")) + digits(draw, 8)
    doubled = [int(each) * 2 for each in first[::-2]]
    total = 24 + sum(each // 10 + each % 10 for each in doubled) + sum(map(int, first[-2::-2]))
    return first + str(-total % 10)


def mbi(draw: random.Random) -> str:
    """By the form that CMS publishes: A a letter, 0 a digit."""
    body = "".join(
        {"A": draw.choice(LETTERS), "0": str(draw.randrange(10))}.get(each, each)
        for each in "A00-A00-AA00"
    )
    return f"{draw.randrange(1, 10)}{body}"


def phone(draw: random.Random) -> str:
    area, office = f"{draw.randrange(201, 990)}", f"{draw.randrange(200, 999)}"
    line = f"{draw.randrange(10_000):04d}"
    return draw.choice(
        [
            f"({area}) {office}-{line}",
            f"{area}-{office}-{line}",
            f"{area}.{office}.{line}",
            f"+1 {area} {office} {line}",
            f"+44 20 {draw.randrange(7000, 7999)} {line}",
            f"+49 {area} {digits(draw, 7)}",
            f"{area}{office}{line}",
        ]
    )


def written_date(draw: random.Random) -> str:
    when = day(draw)
    return draw.choice(
        [
            f"{when:%Y-%m-%d}",
            f"{when:%m/%d/%Y}",
            f"{when:%d.%m.%Y}",
            f"{when:%B %d, %Y}",
            f"{when:%d %b %Y}",
            f"{when:%Y%m%d}",
            f"{when:%B %Y}",
            f"{when:%m/%d/%y}",
            f"{when:%d%b%Y}",
        ]
    )


def age(draw: random.Random) -> str:
    years = draw.randrange(90, 109)
    return draw.choice(
        [f"aged {years}", f"{years} y/o", f"{years}-year-old", f"age: {years}", f"{years} yo"]
    )


def geography(draw: random.Random) -> str:
    code = f"{draw.randrange(501, 99_950):05d}"
    return draw.choice(
        [
            f"{draw.randrange(1, 9999)} {draw.choice(STREETS)}",
            f"{draw.choice(CITIES)} {code}",
            f"ZIP {code}",
            f"{code}-{draw.randrange(1, 9999):04d}",
            f"{draw.choice(CITIES)}",
        ]
    )


def record(draw: random.Random) -> str:
    number = digits(draw, draw.randrange(6, 10))
    return draw.choice(
        [
            f"MRN {number}",
            f"MRN: {number}",
            f"patient id {number}",
            f"medical record number {number}",
            f"MRN#{number}",
            f"hospital no. {number}",
            number,
        ]
    )


def name(draw: random.Random) -> str:
    who = draw.choice(NAMES)
    first, last = who.split(" ", 1)
    return draw.choice(
        [who, f"Dr. {last}", f"Patient: {who}", f"{last}, {first}", f"{last}^{first}", first]
    )


def email(draw: random.Random) -> str:
    first, last = draw.choice(NAMES[:14]).lower().split(" ", 1)
    return f"{first}.{last.replace(' ', '')}@{draw.choice(['example.org', 'mail.example.co.uk'])}"


def address(draw: random.Random) -> str:
    v4 = ".".join(str(draw.randrange(1, 255)) for _ in range(4))
    v6 = ":".join(f"{draw.randrange(1, 65536):x}" for _ in range(8))
    return draw.choice([v4, v6])


VALUES: dict[Category, Callable[[random.Random], str]] = {
    Category.NAME: name,
    Category.GEOGRAPHY: geography,
    Category.DATE: written_date,
    Category.AGE: age,
    Category.PHONE: phone,
    Category.EMAIL: email,
    Category.SSN: ssn,
    Category.MRN: record,
    Category.INSURANCE: lambda draw: draw.choice([mbi(draw), f"member id {digits(draw, 9)}"]),
    Category.ACCOUNT: lambda draw: f"account {draw.choice(['', 'no. '])}{digits(draw, 10)}",
    Category.LICENCE: lambda draw: f"licence {draw.choice(LETTERS)}{digits(draw, 7)}",
    Category.DEVICE: lambda draw: draw.choice(
        [
            f"serial number {draw.choice(LETTERS)}{digits(draw, 6)}",
            f"S/N {digits(draw, 8)}",
            ":".join(f"{draw.randrange(256):02x}" for _ in range(6)),
        ]
    ),
    Category.URL: lambda draw: (
        f"{draw.choice(['https://', 'http://', 'www.'])}example.org/p/{digits(draw, 5)}"
    ),
    Category.IP: address,
    Category.UNIQUE: lambda draw: draw.choice(
        [
            npi(draw),
            f"accession {digits(draw, 8)}",
            f"1.2.826.0.1.{digits(draw, 7)}.{digits(draw, 4)}.1",
        ]
    ),
}
SENTENCES = (
    "Seen today: {}. Follow-up in six months.",
    "{}",
    "left eye, {}, grade 2",
    "note - {} - end",
)
BENIGN = (
    "Moderate non-proliferative retinopathy, left eye.",
    "Image quality 0.87, field 2 of 3.",
    "Grade 3 of 4; macula centred.",
    "Resolution 2048 x 1536, 24 bit.",
    "Batch 12 of 40, seed 1234.",
    "Trained for 20 epochs, learning rate 0.001.",
    "Version 1.2.3 of the camera's protocol.",
    "Acquired in 2019 at field angle 45.",
    "Haemorrhages in 3 quadrants.",
    "Kappa 0.812 +- 0.013",
    "Patients aged 18 to 89 were included.",
    "No macular oedema.",
    "See table 4.",
    "Exposure 1/60 s, ISO 200.",
    "Green channel, CLAHE, 8 x 8 tiles.",
    "Left: mild; right: none.",
    "AUC 0.941 (95 % CI 0.92 to 0.96).",
    "Software wrote 12345 files in 678 s.",
    "The optic disc is blurred.",
    "Rose bengal, May to June.",
)


def identifying_texts(draw: random.Random, count: int) -> Iterator[tuple[Category, str]]:
    """Sentences, each with one value, ``count`` a category."""
    for category, value in VALUES.items():
        for _ in range(count):
            yield category, draw.choice(SENTENCES).format(value(draw))


def table_of(columns: dict[str, list[str]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue().encode()


def random_codes(draw: random.Random, count: int, *, size: int = 16) -> list[str]:
    return [f"{draw.getrandbits(4 * size):0{size}x}" for _ in range(count)]


def tables(draw: random.Random, count: int) -> Iterator[Sample]:
    """Labels with one column more, whose name says nothing, and labels without."""
    for category, value in VALUES.items():
        for number in range(count):
            columns = {
                "image_id": random_codes(draw, 20),
                "dr_level": [str(draw.randrange(5)) for _ in range(20)],
                "x": [value(draw) for _ in range(20)],
            }
            expected = frozenset({category, Category.UNLISTED})
            yield Sample(f"labels_{number}.csv", table_of(columns), expected, f"table: {category}")
    for number in range(4 * count):
        columns = {
            "image_id": random_codes(draw, 60, size=draw.choice([12, 16, 32])),
            "dr_level": [str(draw.randrange(5)) for _ in range(60)],
            "group_key": [f"p{row // 2}" for row in range(60)],
            "quality": [draw.choice(["good", "usable", "bad"]) for _ in range(60)],
        }
        yield Sample(f"labels_{number}.csv", table_of(columns), frozenset(), "benign table")


def picture(draw: random.Random, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    colour = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
    Image.new("RGB", (24, 24), colour).save(buffer, kind, **how)
    return buffer.getvalue()


def with_segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(payload) + 2) + payload
    return jpeg[:2] + segment + jpeg[2:]


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + struct.pack(">I", len(content)) + kind + content + check + png[33:]


def exif_of(draw: random.Random) -> Image.Exif:
    found = Image.Exif()
    found[0x013B] = draw.choice(NAMES)
    found[0x0132] = f"{day(draw):%Y:%m:%d} 10:00:00"
    return found


def images(draw: random.Random, count: int) -> Iterator[Sample]:
    """Images with one carrier of metadata each, and images with none."""
    for _ in range(count):
        secret = f"{draw.choice(NAMES)} {record(draw)}"
        text = secret.encode()
        jpeg, png = picture(draw, "JPEG"), picture(draw, "PNG")
        xmp = b"<x:xmpmeta><dc:creator>" + text + b"</dc:creator></x:xmpmeta>"
        iptc = b"\x1c\x02\x50" + struct.pack(">H", len(text)) + text
        resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc
        carriers = {
            "JPEG EXIF": picture(draw, "JPEG", exif=exif_of(draw)),
            "JPEG comment": picture(draw, "JPEG", comment=text),
            "JPEG XMP": with_segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp),
            "JPEG IPTC": with_segment(jpeg, 0xED, b"Photoshop 3.0\0" + resource),
            "JPEG APP7": with_segment(jpeg, 0xE7, text),
            "JPEG thumbnail": with_segment(jpeg, 0xE0, b"JFXX\0\x10" + picture(draw, "JPEG")),
            "JPEG trailing bytes": jpeg + text,
            "PNG text": with_chunk(png, b"tEXt", b"Comment\0" + text),
            "PNG compressed text": with_chunk(png, b"zTXt", b"Note\0\0" + zlib.compress(text)),
            "PNG EXIF": picture(draw, "PNG", exif=exif_of(draw)),
            "PNG time": with_chunk(png, b"tIME", struct.pack(">HBBBBB", 2021, 3, 4, 5, 6, 7)),
            "PNG unknown chunk": with_chunk(png, b"maTl", text),
            "PNG trailing bytes": png + text,
            "TIFF tags": picture(draw, "TIFF", tiffinfo={0x010E: secret, 0x013B: "Wei Chen"}),
            "TIFF trailing bytes": picture(draw, "TIFF") + text,
        }
        for group, data in carriers.items():
            yield Sample("image.bin", data, frozenset(Category), group)
        for kind in ("JPEG", "PNG", "TIFF"):
            yield Sample("image.bin", picture(draw, kind), frozenset(), f"benign {kind}")


def file_names(draw: random.Random, count: int) -> Iterator[tuple[str, bool]]:
    """Stems of files, and whether they identify."""
    for code in random_codes(draw, count, size=16):
        yield code, False
    for number in range(count):
        yield (
            draw.choice(
                [f"{number}_left", f"image_{number:06d}", f"eye{number}-od", f"IDRiD_{number:03d}"]
            ),
            False,
        )
    for _ in range(count):
        first, last = draw.choice(NAMES).lower().split(" ", 1)
        when = day(draw)
        yield (
            draw.choice(
                [
                    f"{last}_{first}",
                    f"{first}-{last}-os",
                    digits(draw, 7),
                    f"mrn{digits(draw, 8)}",
                    f"{when:%Y%m%d}_od",
                    f"scan {when:%Y-%m-%d}",
                    f"{when:%d%m%Y}_left",
                    f"IMG_{digits(draw, 9)}",
                ]
            ),
            True,
        )
