"""A hospital's retinal images and their labels.

The labels file is parsed once, against an allow-list of columns; every row that cannot
be used is reported by its number and a reason, never by its content. Nothing here logs,
and no message carries a value read from the file.
"""

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from matl_common.errors import InvalidInputError, MatlError
from matl_common.ids import Digest, digest_of_file
from matl_common.vision.images import BadImageError, View, augmentation, load_image, render

CLASSES = 5
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_ROWS = 5_000_000

_REQUIRED_COLUMNS = frozenset({"image_id", "dr_level"})
_ALLOWED_COLUMNS = _REQUIRED_COLUMNS | {"group_key"}
# The 18 identifiers of 45 CFR 164.514(b)(2) as they tend to be called in exports.
_IDENTIFYING_COLUMNS = frozenset(
    {
        "patient",
        "patient_id",
        "patientid",
        "pat_id",
        "person_id",
        "subject_id",
        "name",
        "patient_name",
        "first_name",
        "last_name",
        "surname",
        "full_name",
        "mrn",
        "medical_record_number",
        "record_number",
        "ssn",
        "social_security_number",
        "dob",
        "date_of_birth",
        "birth_date",
        "birthdate",
        "birthday",
        "age",
        "address",
        "street",
        "city",
        "zip",
        "zip_code",
        "postcode",
        "postal_code",
        "phone",
        "phone_number",
        "telephone",
        "mobile",
        "fax",
        "email",
        "e_mail",
        "insurance",
        "insurance_id",
        "policy_number",
        "account",
        "account_number",
        "license",
        "license_number",
        "vehicle",
        "device_id",
        "serial_number",
        "url",
        "ip",
        "ip_address",
        "fingerprint",
        "photo",
        "admission_date",
        "discharge_date",
        "exam_date",
        "study_date",
        "visit_date",
        "date_of_death",
        "accession_number",
        "accession",
    }
)
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_LEVELS = {str(level): level for level in range(CLASSES)}


class LabelsError(InvalidInputError):
    """The labels file as a whole cannot be used."""


class IdentifyingColumnError(LabelsError):
    """The labels file has a column that identifies patients."""


class BadRowError(MatlError):
    """A row cannot be used, and the policy is to stop."""


class OnBadImage(StrEnum):
    """What a missing or damaged image does to a job."""

    SKIP = "skip"
    FAIL = "fail"


class RowDefect(StrEnum):
    """Why a row is not used."""

    FIELDS = "wrong number of fields"
    IMAGE_ID = "image_id is not a safe file name"
    LEVEL = "dr_level is not 0, 1, 2, 3 or 4"
    GROUP_KEY = "group_key is not a safe name"
    DUPLICATE = "image_id appeared before"
    MISSING = "image file is missing"
    CORRUPT = "image file cannot be decoded"


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row of the labels file that is not used; the header is row 1."""

    row: int
    defect: RowDefect


@dataclass(frozen=True, slots=True)
class Record:
    """One usable image. ``patient`` numbers the group it belongs to and stays local."""

    row: int
    path: Path
    level: int
    patient: int


@dataclass(frozen=True, slots=True)
class Labels:
    """What a labels file says, parsed."""

    records: tuple[Record, ...]
    skipped: tuple[SkippedRow, ...]

    @property
    def patients(self) -> int:
        return len({record.patient for record in self.records})


def read_labels(image_dir: Path, labels_csv: Path, *, on_bad_image: OnBadImage) -> Labels:
    """Parse a labels file and find its images. Images are not decoded yet.

    Raises:
        LabelsError: not a CSV file with the allowed columns, or no usable row.
        BadRowError: a row has a defect and ``on_bad_image`` is ``FAIL``.
    """
    try:
        with labels_csv.open(newline="", encoding="utf-8-sig") as file:
            labels = _parse_rows(csv.reader(file, strict=True), image_dir, on_bad_image)
    except FileNotFoundError as error:
        raise LabelsError("the labels file does not exist; check labels_csv") from error
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise LabelsError("the labels file cannot be read as UTF-8 CSV") from error
    if not labels.records:
        raise LabelsError(
            f"the labels file has no usable row ({len(labels.skipped)} unusable); check that "
            "data_dir holds the images"
        )
    return labels


def _parse_rows(reader: Iterator[list[str]], image_dir: Path, on_bad_image: OnBadImage) -> Labels:
    columns = _parse_header(next(reader, []))
    folder = image_dir.resolve()
    records: list[Record] = []
    skipped: list[SkippedRow] = []
    seen: set[str] = set()
    patients: dict[str, int] = {}
    for row, fields in enumerate(reader, start=2):
        if row > MAX_ROWS:
            raise LabelsError(f"the labels file has more than {MAX_ROWS} rows; split the data")
        parsed = _parse_row(
            row, fields=fields, columns=columns, folder=folder, seen=seen, patients=patients
        )
        if isinstance(parsed, Record):
            records.append(parsed)
            continue
        if on_bad_image is OnBadImage.FAIL:
            raise bad_row(parsed)
        skipped.append(parsed)
    return Labels(tuple(records), tuple(skipped))


def bad_row(skipped: SkippedRow) -> BadRowError:
    """The error for a defect under the ``FAIL`` policy."""
    return BadRowError(
        f"row {skipped.row} of the labels file: {skipped.defect.value}; correct it, or set "
        "on_bad_image to 'skip'"
    )


def _parse_header(header: list[str]) -> list[str]:
    columns = [name.strip().lower() for name in header]
    for number, column in enumerate(columns, start=1):
        if column in _ALLOWED_COLUMNS:
            continue
        if re.sub(r"[^a-z0-9]+", "_", column) in _IDENTIFYING_COLUMNS:
            raise IdentifyingColumnError(
                f"column {number} of the labels file ({column!r}) identifies patients; remove it. "
                "Only image_id, dr_level and a random group_key are allowed"
            )
        # Not named: in a file without a header, the "name" would be a patient's data.
        raise LabelsError(
            f"column {number} of the labels file is not one of image_id, dr_level, group_key; "
            "remove it"
        )
    missing = _REQUIRED_COLUMNS - set(columns)
    if missing:
        raise LabelsError(f"the labels file lacks the column(s) {', '.join(sorted(missing))}")
    if len(set(columns)) != len(columns):
        raise LabelsError("the labels file has a column twice")
    return columns


def _parse_row(
    row: int,
    *,
    fields: list[str],
    columns: list[str],
    folder: Path,
    seen: set[str],
    patients: dict[str, int],
) -> Record | SkippedRow:
    if len(fields) != len(columns):
        return SkippedRow(row, RowDefect.FIELDS)
    values = dict(zip(columns, (field.strip() for field in fields), strict=True))
    image_id = values["image_id"]
    if not _SAFE_NAME.fullmatch(image_id) or ".." in image_id:
        return SkippedRow(row, RowDefect.IMAGE_ID)
    level = _LEVELS.get(values["dr_level"])
    if level is None:
        return SkippedRow(row, RowDefect.LEVEL)
    # Without a group key every image is its own patient; '/' cannot occur in a group key.
    group = values.get("group_key", f"image/{image_id}")
    if "group_key" in values and not _SAFE_NAME.fullmatch(group):
        return SkippedRow(row, RowDefect.GROUP_KEY)
    if image_id in seen:
        return SkippedRow(row, RowDefect.DUPLICATE)
    seen.add(image_id)
    path = _find_image(folder, image_id)
    if path is None:
        return SkippedRow(row, RowDefect.MISSING)
    return Record(row, path, level, patients.setdefault(group, len(patients)))


def _find_image(folder: Path, image_id: str) -> Path | None:
    for suffix in IMAGE_SUFFIXES:
        path = folder / f"{image_id}{suffix}"
        # A link out of the folder would reach files nobody listed.
        if path.is_file() and path.resolve().parent == folder:
            return path
    return None


def dataset_digest(records: Sequence[Record]) -> Digest:
    """SHA-256 over every usable row: file name, level, patient number and image bytes."""
    sha256 = hashlib.sha256()
    for record in records:
        line = f"{record.path.name}\0{record.level}\0{record.patient}\0{_digest(record)}\n"
        sha256.update(line.encode())
    return Digest(sha256.hexdigest())


def _digest(record: Record) -> str:
    try:
        return digest_of_file(record.path)
    except OSError:
        return "unreadable"


class RetinalDataset(Dataset[tuple[Tensor, int]]):
    """De-identified retinal images with their level of retinopathy (0 none … 4 proliferative).

    Items are ``(image, level)``, the image a normalised float32 tensor ``(3, size, size)``.
    The default transform is the tutorial's: a random flip and a rotation within ±10°.

    Raises:
        LabelsError, BadRowError: as ``read_labels``.
    """

    def __init__(
        self,
        image_dir: str | Path,
        labels_csv: str | Path,
        transform: Callable[[Image.Image], Tensor] | None = None,
        *,
        image_size: int = 224,
        on_bad_image: OnBadImage = OnBadImage.SKIP,
    ) -> None:
        self.labels = read_labels(Path(image_dir), Path(labels_csv), on_bad_image=on_bad_image)
        self.image_size = image_size
        self._transform = transform or random_view

    def __len__(self) -> int:
        return len(self.labels.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        record = self.labels.records[index]
        try:
            square = load_image(record.path, image_size=self.image_size)
        except BadImageError as error:
            raise bad_row(SkippedRow(record.row, RowDefect.CORRUPT)) from error
        return self._transform(square), record.level


def random_view(square: Image.Image) -> Tensor:
    """The tutorial's augmentation, drawn from the operating system's entropy."""
    flip, rotation = (int.from_bytes(os.urandom(4)) / 2**32 for _ in range(2))
    return render(square, augmentation(flip, rotation))


def plain_view(square: Image.Image) -> Tensor:
    """The image as it is."""
    return render(square, View())
